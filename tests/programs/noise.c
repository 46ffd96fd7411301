/*
 * Memory that does not compress at all: written once, then read in order, at random, and in order backwards while some of it is
 * written anew. Every page is checked each time.
 * usage: noise [MIB [ROUNDS [MS]]] [text]     with `text`, the same on memory that compresses 2.4:1
 */
#include "check.h"

/* Pages whose number ends in these two bits are noise. */
#define NUMBER(i) ((uint64_t)(i) * 4 + 3 + text)

int main(int argc, char **argv)
{
    uint64_t text = argc > 1 && strcmp(argv[argc - 1], "text") == 0 ? TEXT : 0;
    if (text)
        argc--;
    size_t pages = arg_of(argc, argv, 1, 128) * MIB / PAGE, rounds = arg_of(argc, argv, 2, 1);
    char *base = map_anon(pages * PAGE);
    uint32_t *version = calloc(pages, sizeof *version);
    MUST(version != NULL);
    uint64_t random = 1;
    for (size_t i = 0; i < pages; i++)
        page_fill(base + i * PAGE, NUMBER(i), version[i] = 1);
    if (argc > 3) {
        /* The caller may look around, and do what it likes to our memory on disk. */
        printf("filled\n");
        fflush(stdout);
        sleep_ms((long)arg_of(argc, argv, 3, 0));
    }
    for (size_t round = 0; round < rounds; round++) {
        for (size_t i = 0; i < pages; i++)
            page_check(base + i * PAGE, NUMBER(i), version[i], "in order");
        for (size_t n = 0; n < pages / 4; n++) {
            size_t i = hot_page(rng_next(&random), pages);
            page_check(base + i * PAGE, NUMBER(i), version[i], "at random");
        }
        for (size_t i = pages; i-- > 0;) {
            page_check(base + i * PAGE, NUMBER(i), version[i], "backwards");
            if (mix(i + round) % 8 == 0)
                page_fill(base + i * PAGE, NUMBER(i), ++version[i]);
        }
    }
    for (size_t i = 0; i < pages; i++)
        page_check(base + i * PAGE, NUMBER(i), version[i], "at the end");
    printf("ok noise %zu rounds\n", rounds);
    return 0;
}
