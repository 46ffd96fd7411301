/*
 * Writes and checks its memory from two threads until a byte or the end of standard input comes, then checks everything once more; for
 * attach and detach while it runs. Says "ready PID" when it is up.
 */
#include "check.h"
#include <poll.h>

#define THREADS 2
static size_t pages;
static char *base;
static uint32_t *version;
static atomic_int stop;

static void *run(void *arg)
{
    size_t me = (uintptr_t)arg, first = pages * me / THREADS, last = pages * (me + 1) / THREADS;
    uint64_t state = me + 1;
    while (!atomic_load(&stop)) {
        uint64_t r = rng_next(&state);
        size_t i = first + (r >> 8) % (last - first), run_length = r % 64 ? 1 : 256;
        for (; run_length > 0 && i < last; run_length--, i++) {
            page_check(base + i * PAGE, i, version[i], "while running");
            if ((r >> 4) % 4 == 0)
                page_fill(base + i * PAGE, i, ++version[i]);
        }
        if (r % 1024 == 7) {
            size_t length = 1 + (r >> 40) % 200, at = first + (r >> 12) % (last - first - length);
            MUST(madvise(base + at * PAGE, length * PAGE, MADV_DONTNEED) == 0);
            for (size_t p = at; p < at + length; p++)
                version[p] = 0;
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pages = arg_of(argc, argv, 1, 64) * MIB / PAGE;
    base = map_anon(pages * PAGE);
    version = versions_filled(base, pages);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], NULL, run, (void *)i) == 0);
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    while (poll(&input, 1, -1) < 0)
        MUST(errno == EINTR);
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_join(threads[i], NULL) == 0);
    for (size_t i = 0; i < pages; i++)
        page_check(base + i * PAGE, i, version[i], "at the end");
    printf("ok checker\n");
    return 0;
}
