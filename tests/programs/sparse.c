/* 64 GiB of address space of which few pages are touched, far apart and in clumps; untouched neighbours stay zero. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 64), rounds = arg_of(argc, argv, 2, 3), giant = 64UL << 30;
    char *base = mmap(NULL, giant, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(base != MAP_FAILED);
    madvise(base, giant, MADV_NOHUGEPAGE);
    size_t touched = mib * MIB / PAGE, clump = 4, clumps = touched / clump, stride = giant / PAGE / clumps;
    for (uint64_t round = 1; round <= rounds; round++) {
        for (size_t c = 0; c < clumps; c++) {
            size_t first = c * stride + mix(c) % (stride - clump - 2) + 1;
            for (size_t i = first; i < first + clump; i++) {
                page_check(base + i * PAGE, i, round - 1, "a touched page");
                page_fill(base + i * PAGE, i, round);
            }
            if (c % 64 == 0 && round == rounds)
                page_check(base + (first - 1) * PAGE, 0, 0, "an untouched neighbour");
        }
    }
    for (size_t c = 0; c < clumps; c++) {
        size_t first = c * stride + mix(c) % (stride - clump - 2) + 1;
        range_check(base + first * PAGE, clump, first, rounds, "the last look");
    }
    MUST(munmap(base + giant / 4, giant / 2) == 0);
    for (size_t c = 0; c < clumps / 5; c++) {
        size_t first = c * stride + mix(c) % (stride - clump - 2) + 1;
        range_check(base + first * PAGE, clump, first, rounds, "after unmapping the middle");
    }
    printf("ok sparse %zu pages in 64 GiB\n", touched);
    return 0;
}
