/*
 * Uses a tenth of its memory for some seconds a round and leaves the rest alone, long enough to be packed again in the background; then a
 * child checks all of it and changes it, and the parent checks and changes it too.
 */
#include "check.h"

int main(int argc, char **argv)
{
    size_t pages = arg_of(argc, argv, 1, 96) * MIB / PAGE, rounds = arg_of(argc, argv, 2, 1);
    char *base = map_anon(pages * PAGE);
    uint32_t *version = versions_filled(base, pages);
    for (size_t round = 0; round < rounds; round++) {
        for (int i = 0; i < 130; i++) {
            for (size_t page = 0; page < pages / 10; page++)
                page_check(base + page * PAGE, page, version[page], "hot");
            sleep_ms(100);
        }
        pid_t child = fork();
        MUST(child >= 0);
        for (size_t page = pages; page-- > 0;) {
            page_check(base + page * PAGE, page, version[page], child == 0 ? "in the child" : "in the parent");
            if (page % 3 == 0)
                page_fill(base + page * PAGE, page, ++version[page]);
        }
        range_check(base, 1, 0, version[0], "again");
        if (child == 0)
            _exit(0);
        int status;
        MUST(waitpid(child, &status, 0) == child && status == 0);
    }
    printf("ok cold %zu rounds\n", rounds);
    return 0;
}
