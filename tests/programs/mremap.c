/* mremap of memory that is partly gone: grow in place, grow and move, shrink, move to a fixed place, leave the old one. */
#include "check.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* Keeps a hole of the arena from being handed out by the kernel. */
static void reserve(char *at, size_t bytes)
{
    MUST(mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == at);
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 6);
    struct ballast b = ballast_new(mib * 2 / 3);
    size_t pages = mib * MIB / PAGE / 6 / 8 * 8;
    char *arena = mmap(NULL, pages * PAGE * 8, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(arena != MAP_FAILED);
    char *at = map_anon(pages * PAGE);
    range_fill(at, pages, 0, 1);
    for (size_t round = 1; round <= rounds; round++) {
        uint64_t version = round;
        ballast_push(&b, 90);
        /* Grow: the new half is zero, the old half is as it was. */
        char *grown = mremap(at, pages * PAGE, pages * PAGE * 2, MREMAP_MAYMOVE);
        MUST(grown != MAP_FAILED);
        range_check(grown, pages / 2, 0, version, "after growing");
        range_check(grown + pages * PAGE, pages, pages, 0, "the grown half");
        range_fill(grown + pages * PAGE, pages, pages, version);
        ballast_push(&b, 90);
        /* Shrink: the end goes away, and reads as zeros when it is grown again. */
        MUST(mremap(grown, pages * PAGE * 2, pages * PAGE / 2, 0) == grown);
        at = mremap(grown, pages * PAGE / 2, pages * PAGE, MREMAP_MAYMOVE);
        MUST(at != MAP_FAILED);
        range_check(at + pages / 2 * PAGE, pages / 2, 0, 0, "after shrinking and growing");
        range_fill(at + pages / 2 * PAGE, pages / 2, pages / 2, version);
        ballast_push(&b, 90);
        /* Move to a fixed place, over something that has contents of its own. */
        char *target = arena + pages * PAGE * (round % 4);
        MUST(mmap(target, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == target);
        range_fill(target, pages, 1u << 20, 9);
        ballast_push(&b, 50);
        MUST(mremap(at, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target);
        char *old = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        MUST(old == at);
        range_check(old, pages, 0, 0, "the place that was moved away from");
        range_check(target, pages, 0, version, "after moving");
        /* Move every fourth part on its own, then put the parts together again elsewhere, in order. */
        char *next = arena + pages * PAGE * 4;
        MUST(mmap(next, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == next);
        ballast_push(&b, 70);
        size_t quarter = pages / 4 * PAGE;
        for (size_t q = 0; q < 4; q++)
            MUST(mremap(target + q * quarter, quarter, quarter, MREMAP_MAYMOVE | MREMAP_FIXED, next + q * quarter) == next + q * quarter);
        range_check(next, pages / 4 * 4, 0, version, "after moving in parts");
        reserve(target, pages * PAGE);
        /* Move and leave an empty mapping behind. */
        char *last = mremap(next, pages / 4 * 4 * PAGE, pages / 4 * 4 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
        if (last == MAP_FAILED) {
            MUST(errno == EINVAL);
            last = next;
        } else {
            ballast_push(&b, 30);
            range_check(next, pages / 4 * 4, 0, 0, "after DONTUNMAP");
            reserve(next, pages * PAGE);
        }
        range_check(last, pages / 4 * 4, 0, version, "the last place");
        MUST(munmap(old, pages * PAGE) == 0);
        at = map_anon(pages * PAGE);
        range_fill(at, pages, 0, version + 1);
        if (last == next)
            reserve(next, pages * PAGE);
        else
            MUST(munmap(last, pages / 4 * 4 * PAGE) == 0);
    }
    range_check(b.base, b.pages, 1u << 30, 1, "ballast at the end");
    printf("ok mremap %zu rounds\n", rounds);
    return 0;
}
