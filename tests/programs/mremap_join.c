/*
 * mremap over two mappings that were made one after the other side by side: natively they are one mapping. Registration with a userfaultfd
 * keeps them apart if only the first one is registered by then, and the kernel refuses to move both at once.
 */
#include "check.h"

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 2), half = 2048;
    struct ballast b = ballast_new(mib);
    for (size_t round = 1; round <= rounds; round++) {
        char *room = mmap(NULL, 3 * half * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        int rw = PROT_READ | PROT_WRITE, how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        MUST(room != MAP_FAILED && mmap(room, half * PAGE, rw, how, -1, 0) == room);
        range_fill(room, half, 0, round);
        ballast_push(&b, 100);
        MUST(mmap(room + half * PAGE, half * PAGE, rw, how, -1, 0) == room + half * PAGE);
        range_fill(room + half * PAGE, half, half, round);
        char *joined = mremap(room, 2 * half * PAGE, 3 * half * PAGE, MREMAP_MAYMOVE);
        MUST(joined != MAP_FAILED);
        range_check(joined, 2 * half, 0, round, "both together");
        range_check(joined + 2 * half * PAGE, half, 0, 0, "the grown part");
        MUST(munmap(joined, 3 * half * PAGE) == 0);
        if (joined != room)
            (void)!munmap(room + 2 * half * PAGE, half * PAGE);
    }
    printf("ok mremap_join %zu rounds\n", rounds);
    return 0;
}
