/* MAP_FIXED over memory with contents: anonymous, another protection, a file, shared; what was there is gone. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 6);
    struct ballast b = ballast_new(mib / 2);
    size_t pages = mib * MIB / PAGE / 2, file_pages = 600;
    char *base = map_anon(pages * PAGE);
    uint32_t *version = calloc(pages, sizeof *version);
    uint64_t state = 13;
    int file = memfd_create("map_fixed", MFD_CLOEXEC);
    MUST(version != NULL && file >= 0 && ftruncate(file, (off_t)(file_pages * PAGE)) == 0);
    char *window = mmap(NULL, file_pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    MUST(window != MAP_FAILED);
    for (size_t i = 0; i < pages; i++)
        page_fill(base + i * PAGE, i, version[i] = 1);
    for (size_t round = 0; round < rounds; round++) {
        range_fill(window, file_pages, 1u << 21, round + 1);
        ballast_push(&b, 90);
        for (size_t n = 0; n < 30; n++) {
            uint64_t r = rng_next(&state);
            size_t length = 1 + (r >> 4) % file_pages, first = (r >> 20) % (pages - length);
            char *at = base + first * PAGE;
            int shared = r % 3 == 0, private_file = r % 3 == 1;
            if (shared || private_file) {
                /* The file for a while: its contents, then (if private) changes of our own that the file must not see. */
                MUST(mmap(at, length * PAGE, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED, file, 0) == at);
                range_check(at, length, 1u << 21, round + 1, "the file");
                if (private_file) {
                    range_fill(at, length, 5, 77);
                    ballast_push(&b, 5);
                    range_check(at, length, 5, 77, "private pages of a file");
                    range_check(window, length, 1u << 21, round + 1, "the file behind private pages");
                }
            }
            MUST(mmap(at, length * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
            for (size_t i = first; i < first + length; i++)
                version[i] = 0;
            if (r & 4096)
                range_check(at, length, 0, 0, "fresh memory over the old");
            for (size_t i = first; i < first + length; i += 2)
                page_fill(base + i * PAGE, i, version[i] = round + 2);
        }
        for (size_t i = 0; i < pages; i++)
            page_check(base + i * PAGE, i, version[i], "the whole");
    }
    printf("ok map_fixed %zu rounds\n", rounds);
    return 0;
}
