/*
 * Writes pages that were only read before and drops them at once: each must be zeros again, also where it is looked at and
 * taken out meanwhile because it was the zero page.
 */
#include "check.h"

int main(int argc, char **argv)
{
    size_t held = arg_of(argc, argv, 1, 96) * MIB / PAGE, rounds = arg_of(argc, argv, 2, 40);
    size_t pages = 64 * MIB / PAGE;
    char *base = map_anon(held * PAGE);
    /* More than the budget: mappings are registered as they come from here on. */
    for (size_t i = 0; i < held; i++)
        page_fill(base + i * PAGE, i * 4 + i % 2, 1);
    uint64_t state = 88172645463325252u;
    for (size_t round = 0; round < rounds; round++) {
        char *zeros = map_anon(pages * PAGE);
        MUST(madvise(zeros, pages * PAGE, MADV_NOHUGEPAGE) == 0);
        for (size_t i = 0; i < pages; i++)
            MUST(((volatile uint64_t *)(zeros + i * PAGE))[0] == 0);
        struct timespec begin, now;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        size_t at = 0;
        do {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            at = (at + state % 600) % pages;
            volatile uint64_t *word = (volatile uint64_t *)(zeros + at * PAGE);
            *word = state | 1;
            MUST(madvise((void *)word, PAGE, MADV_DONTNEED) == 0);
            MUST(*word == 0);
            clock_gettime(CLOCK_MONOTONIC, &now);
        } while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < 80);
        MUST(munmap(zeros, pages * PAGE) == 0);
    }
    for (size_t i = 0; i < held; i++)
        page_check(base + i * PAGE, i * 4 + i % 2, 1, "after all rounds");
    printf("ok zero_drop %zu pages\n", held);
    return 0;
}
