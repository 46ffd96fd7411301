/* Many threads fault while the first one calls _exit(7); the same in children, which are killed or leave at odd moments. */
#include "check.h"

#define THREADS 12
static char *base;
static size_t pages;

static void *faulter(void *arg)
{
    uint64_t state = (uintptr_t)arg;
    for (;;) {
        size_t i = rng_next(&state) % pages;
        page_check(base + i * PAGE, i, 1, "a page while leaving");
    }
    return NULL;
}

static void storm(long ms)
{
    pthread_t thread;
    for (uintptr_t i = 0; i < THREADS; i++)
        MUST(pthread_create(&thread, NULL, faulter, (void *)(i + 1)) == 0);
    sleep_ms(ms);
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 6);
    pages = mib * MIB / PAGE;
    base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, 1);
    for (size_t round = 0; round < rounds; round++) {
        pid_t pid = fork();
        MUST(pid >= 0);
        if (pid == 0) {
            storm((long)(3 + 13 * (round % 4)));
            if (round % 2)
                pause();
            _exit(7);
        }
        int status;
        if (round % 2) {
            sleep_ms(60);
            MUST(kill(pid, SIGKILL) == 0);
        }
        MUST(waitpid(pid, &status, 0) == pid);
        if (round % 2 ? !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL : !WIFEXITED(status) || WEXITSTATUS(status) != 7)
            fail("MISMATCH exit_storm: a child ended with status %x", status);
    }
    storm(200);
    printf("ok exit_storm %zu rounds\n", rounds);
    fflush(stdout);
    _exit(7);
}
