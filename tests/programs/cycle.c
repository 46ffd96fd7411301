/*
 * Read-mostly: goes through memory that compresses some 4:1, over and over, and changes one page in a hundred of it each
 * time. Nothing that is pushed out is missed less than anything else.
 */
#include "check.h"

#define NUMBER(i) ((i) % 2 == 0 ? TEXT + (i) : (uint64_t)(i) * 4 + 1)

int main(int argc, char **argv)
{
    size_t pages = arg_of(argc, argv, 1, 96) * MIB / PAGE, rounds = arg_of(argc, argv, 2, 10);
    char *base = map_anon(pages * PAGE);
    uint32_t *version = calloc(pages, sizeof *version);
    MUST(version != NULL);
    for (size_t i = 0; i < pages; i++)
        page_fill(base + i * PAGE, NUMBER(i), version[i] = 1);
    for (size_t round = 0; round < rounds; round++)
        for (size_t i = 0; i < pages; i++) {
            page_check(base + i * PAGE, NUMBER(i), version[i], "cycle");
            if (mix(i + round) % 100 == 0)
                page_fill(base + i * PAGE, NUMBER(i), ++version[i]);
        }
    printf("ok cycle %zu rounds\n", rounds);
    return 0;
}
