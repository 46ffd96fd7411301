/*
 * Random reads and writes, nine in ten of them in the hot tenth, and in between passes over everything: what was lost while it was in use is
 * missed soon after.
 */
#include "check.h"

int main(int argc, char **argv)
{
    size_t pages = arg_of(argc, argv, 1, 96) * MIB / PAGE, rounds = arg_of(argc, argv, 2, 4);
    char *base = map_anon(pages * PAGE);
    uint32_t *version = versions_filled(base, pages);
    uint64_t state = 42;
    for (size_t round = 0; round < rounds; round++) {
        for (size_t i = 0; i < pages * 3; i++) {
            uint64_t r = rng_next(&state);
            size_t page = hot_page(r, pages);
            if ((r >> 40) % 4 == 0)
                page_fill(base + page * PAGE, page, ++version[page]);
            else
                page_check(base + page * PAGE, page, version[page], "random");
        }
        for (size_t i = 0; i < pages; i++)
            page_check(base + i * PAGE, i, version[i], "pass");
    }
    printf("ok passes %zu rounds\n", rounds);
    return 0;
}
