/* Orphans all the time: each child forks and leaves at once, and the grandchild looks at memory that it inherited. */
#include "check.h"

#include <stdatomic.h>

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 60);
    size_t pages = mib * MIB / PAGE;
    char *base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, 1);
    atomic_int *running = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(running != MAP_FAILED);
    for (size_t round = 0; round < rounds; round++) {
        while (atomic_load(running) >= 6)
            range_check(base, pages / 50, 0, 1, "parent");
        atomic_fetch_add(running, 1);
        pid_t pid = fork();
        MUST(pid >= 0);
        if (pid == 0) {
            pid = fork();
            MUST(pid >= 0);
            if (pid > 0)
                _exit(0);
            uint64_t state = round;
            for (size_t n = 0; n < 300; n++) {
                size_t i = rng_next(&state) % pages;
                page_check(base + i * PAGE, i, 1, "in an orphan");
            }
            atomic_fetch_sub(running, 1);
            _exit(0);
        }
        MUST(waitpid(pid, NULL, 0) == pid);
    }
    while (atomic_load(running) > 0)
        sched_yield();
    printf("ok orphans\n");
    return 0;
}
