/* Random reads and writes, nine in ten of them in the hot tenth; prints a checksum that depends on every access. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t pages = arg_of(argc, argv, 1, 96) * MIB / PAGE, rounds = arg_of(argc, argv, 2, 4);
    char *base = map_anon(pages * PAGE);
    uint32_t *version = versions_filled(base, pages);
    uint64_t state = 42, sum = 0;
    for (size_t i = 0; i < pages * rounds; i++) {
        uint64_t r = rng_next(&state);
        size_t page = hot_page(r, pages);
        if ((r >> 40) % 4 == 0) {
            page_fill(base + page * PAGE, page, ++version[page]);
        } else if ((r >> 40) % 4 == 1) {
            page_check(base + page * PAGE, page, version[page], "random");
        } else {
            size_t at = (r >> 48) % WORDS;
            uint64_t is = ((volatile uint64_t *)(base + page * PAGE))[at];
            if (is != word_of(page, version[page], at))
                fail("MISMATCH hotcold: page %zu word %zu version %u is %016llx", page, at, version[page], (unsigned long long)is);
            sum = sum * 31 + is;
        }
    }
    for (size_t i = 0; i < pages; i++)
        page_check(base + i * PAGE, i, version[i], "last pass");
    printf("ok hotcold %zu pages checksum %016llx\n", pages, (unsigned long long)sum);
    return 0;
}
