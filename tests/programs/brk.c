/* The heap by brk: grows, shrinks and grows again; what was given back reads zeros, the rest stays. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 6);
    struct ballast b = ballast_new(mib / 2);
    size_t pages = mib * MIB / PAGE / 2;
    char *base = sbrk(0);
    MUST(base != (void *)-1);
    size_t skew = (PAGE - (uintptr_t)base % PAGE) % PAGE;
    MUST(sbrk((intptr_t)skew) == base);
    base += skew;
    size_t now = pages;
    MUST(sbrk((intptr_t)(now * PAGE)) == base);
    range_fill(base, now, 0, 1);
    uint64_t state = 19;
    for (size_t round = 1; round <= rounds; round++) {
        ballast_push(&b, 90);
        range_check(base, now, 0, round, "the heap");
        size_t kept = 1 + rng_next(&state) % (now - 1);
        MUST(sbrk(-(intptr_t)((now - kept) * PAGE)) == base + now * PAGE);
        ballast_push(&b, 50);
        MUST(sbrk((intptr_t)((pages - kept) * PAGE)) == base + kept * PAGE);
        range_check(base + kept * PAGE, pages - kept, kept, 0, "the heap grown again");
        range_check(base, kept, 0, round, "the kept part of the heap");
        now = pages;
        range_fill(base, now, 0, round + 1);
    }
    MUST(brk(base) == 0 && sbrk(0) == base);
    printf("ok brk %zu rounds\n", rounds);
    return 0;
}
