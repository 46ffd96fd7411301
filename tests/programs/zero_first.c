/*
 * Reads its memory before it writes it: every page is the zero page first and becomes memory of its own without being
 * missing in between. A sleeping thread has a block in memory that may never leave. Two threads write, so pages are written
 * while they are looked at.
 */
#include "check.h"

static void *sleeper(void *arg)
{
    pause();
    return arg;
}

struct part {
    char *base;
    size_t first, end;
};

static void *fill(void *arg)
{
    struct part *part = arg;
    /* Same-filled and text-like pages only: all of it fits a small budget. */
    for (size_t i = part->end; i-- > part->first;)
        page_fill(part->base + i * PAGE, i * 4 + i % 2, 1);
    return arg;
}

int main(int argc, char **argv)
{
    size_t pages = arg_of(argc, argv, 1, 192) * MIB / PAGE, rounds = arg_of(argc, argv, 2, 40);
    char *base = map_anon(pages * PAGE);
    pthread_t thread, other;
    MUST(pthread_create(&thread, NULL, sleeper, NULL) == 0);
    MUST(madvise(base, pages * PAGE, MADV_NOHUGEPAGE) == 0);
    uint64_t sum = 0;
    for (size_t i = 0; i < pages; i++)
        sum += ((volatile uint64_t *)(base + i * PAGE))[0];
    MUST(sum == 0);
    struct part lower = {base, 0, pages / 2}, upper = {base, pages / 2, pages};
    MUST(pthread_create(&other, NULL, fill, &upper) == 0);
    fill(&lower);
    MUST(pthread_join(other, NULL) == 0);
    for (size_t round = 0; round < rounds; round++)
        for (size_t i = 0; i < pages / 8; i++)
            page_check(base + i * PAGE, i * 4 + i % 2, 1, "in use");
    for (size_t i = 0; i < pages; i++)
        page_check(base + i * PAGE, i * 4 + i % 2, 1, "after all was written");
    printf("ok zero_first %zu pages\n", pages);
    return 0;
}
