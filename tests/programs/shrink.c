/*
 * Needs much for a while, and then little: what it keeps went out of the way first. Waits with that before it looks at it again.
 * usage: shrink [KEPT_MIB [MORE_MIB [MS]]]
 */
#include "check.h"

#define NUMBER(i) ((uint64_t)(i) * 4 + 3)

int main(int argc, char **argv)
{
    size_t kept = arg_of(argc, argv, 1, 20) * MIB / PAGE, more = arg_of(argc, argv, 2, 128) * MIB / PAGE;
    char *base = map_anon(kept * PAGE);
    for (size_t i = 0; i < kept; i++)
        page_fill(base + i * PAGE, NUMBER(i), 1);
    char *other = map_anon(more * PAGE);
    for (size_t i = 0; i < more; i++)
        page_fill(other + i * PAGE, NUMBER(kept + i), 1);
    for (size_t i = 0; i < more; i++)
        page_check(other + i * PAGE, NUMBER(kept + i), 1, "before it is freed");
    MUST(munmap(other, more * PAGE) == 0);
    sleep_ms((long)arg_of(argc, argv, 3, 0));
    for (size_t i = 0; i < kept; i++)
        page_check(base + i * PAGE, NUMBER(i), 1, "at the end");
    printf("ok shrink\n");
    return 0;
}
