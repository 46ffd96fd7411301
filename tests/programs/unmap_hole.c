/* munmap in the middle and mmap at the same place: the hole reads zeros, its neighbours are untouched. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 6);
    struct ballast b = ballast_new(mib / 2);
    size_t pages = mib * MIB / PAGE / 2;
    char *base = map_anon(pages * PAGE);
    uint32_t *version = versions_filled(base, pages);
    uint64_t state = 7;
    for (size_t round = 0; round < rounds; round++) {
        ballast_push(&b, 80);
        for (size_t hole = 0; hole < 40; hole++) {
            uint64_t r = rng_next(&state);
            /* From one page to several 2 MiB chunks, at any page. */
            size_t length = 1 + (hole % 4 == 0 ? (r >> 4) % 1500 : (r >> 4) % 20), first = (r >> 20) % (pages - length);
            char *at = base + first * PAGE;
            MUST(munmap(at, length * PAGE) == 0);
            if (r & 1)
                ballast_push(&b, 1);
            MUST(mmap(at, length * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at);
            for (size_t i = first; i < first + length; i++) {
                version[i] = 0;
                if (r & 2)
                    page_check(base + i * PAGE, i, 0, "the hole at once");
                if ((r & 12) == 4 && i % 3)
                    page_fill(base + i * PAGE, i, version[i] = round + 2);
            }
            if (first > 0)
                page_check(base + (first - 1) * PAGE, first - 1, version[first - 1], "the page before the hole");
            page_check(base + (first + length) * PAGE, first + length, version[first + length], "the page behind the hole");
        }
        for (size_t i = 0; i < pages; i++)
            page_check(base + i * PAGE, i, version[i], "the whole");
    }
    printf("ok unmap_hole %zu rounds\n", rounds);
    return 0;
}
