/* mlock and mlockall: locked memory stays (VmLck says so, mincore finds it), unlocked memory may go again. */
#include "check.h"
#include <sys/resource.h>

static long locked_kib(void)
{
    FILE *status = fopen("/proc/self/status", "r");
    char line[200];
    long kib = -1;
    MUST(status != NULL);
    while (fgets(line, sizeof line, status))
        if (sscanf(line, "VmLck: %ld", &kib) == 1)
            break;
    fclose(status);
    return kib;
}

static void all_resident(char *base, size_t pages, const char *when)
{
    unsigned char *seen = malloc(pages);
    MUST(seen != NULL && mincore(base, pages * PAGE, seen) == 0);
    for (size_t i = 0; i < pages; i++)
        if (!(seen[i] & 1))
            fail("MISMATCH lock: page %zu is locked and not resident (%s)", i, when);
    free(seen);
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 64), rounds = arg_of(argc, argv, 2, 4);
    size_t pages = 4 * MIB / PAGE;
    struct ballast b = ballast_new(mib);
    char *base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, 1);
    for (size_t round = 1; round <= rounds; round++) {
        ballast_push(&b, 100);
        if (mlock(base, pages * PAGE) != 0) {
            skipped("mlock of 4 MiB: %s", strerror(errno));
            return 77;
        }
        all_resident(base, pages, "right after mlock");
        if (locked_kib() != (long)(pages * PAGE / 1024))
            fail("MISMATCH lock: VmLck is %ld kB", locked_kib());
        ballast_push(&b, 100);
        all_resident(base, pages, "after much else");
        range_check(base, pages, 0, round, "locked");
        range_fill(base, pages, 0, round + 1);
        MUST(munlock(base, pages * PAGE) == 0);
        ballast_push(&b, 100);
        range_check(base, pages, 0, round + 1, "unlocked");
        /* Locked on first touch: only what is touched is there. */
        char *lazy = map_anon(64 * PAGE);
        MUST(mlock2(lazy, 64 * PAGE, MLOCK_ONFAULT) == 0);
        range_fill(lazy, 32, 9, 1);
        ballast_push(&b, 60);
        all_resident(lazy, 32, "locked on touch");
        range_check(lazy, 32, 9, 1, "locked on touch");
        range_check(lazy + 32 * PAGE, 32, 9, 0, "untouched");
        MUST(munmap(lazy, 64 * PAGE) == 0);
    }
    MUST(mlockall(MCL_FUTURE) == 0);
    char *future = map_anon(256 * PAGE);
    all_resident(future, 256, "mapped after MCL_FUTURE");
    range_fill(future, 256, 9, 1);
    ballast_push(&b, 50);
    all_resident(future, 256, "MCL_FUTURE later");
    MUST(munlockall() == 0);
    ballast_push(&b, 100);
    range_check(future, 256, 9, 1, "after munlockall");
    printf("ok lock %zu rounds\n", rounds);
    return 0;
}
