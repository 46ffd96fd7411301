/* Many short processes, some with memory of their own, some executing something else, some killed, several at a time. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 48), rounds = arg_of(argc, argv, 2, 60);
    struct ballast b = ballast_new(mib);
    uint64_t state = 37;
    size_t running = 0, own = 2 * MIB / PAGE;
    int bad = 0;
    for (size_t round = 0; round < rounds || running > 0;) {
        if (round < rounds && running < 4) {
            uint64_t r = rng_next(&state);
            pid_t pid = fork();
            MUST(pid >= 0);
            if (pid == 0) {
                if (r % 4 == 0) {
                    execl("/bin/sh", "sh", "-c", "x=$(seq 1 500 | wc -l); test $x = 500", (char *)NULL);
                    _exit(99);
                }
                char *mine = map_anon(own * PAGE);
                range_fill(mine, own, r % 1000, 2);
                ballast_push(&b, 5);
                range_check(mine, own, r % 1000, 2, "a short process");
                if (r % 4 == 1)
                    kill(getpid(), SIGKILL);
                _exit(0);
            }
            running++;
            round++;
            ballast_push(&b, 3);
        } else {
            int status;
            MUST(waitpid(-1, &status, 0) > 0);
            running--;
            bad += !(WIFEXITED(status) && WEXITSTATUS(status) == 0) && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        }
    }
    if (bad != 0)
        fail("MISMATCH process_churn: %d processes ended badly", bad);
    ballast_push(&b, 100);
    printf("ok process_churn %zu processes\n", rounds);
    return 0;
}
