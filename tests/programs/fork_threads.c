/*
 * fork from a process whose other threads go on writing; WIPEONFORK reads zeros in the child, DONTFORK is not there, and children that nobody
 * waits for outlive their parents.
 */
#include "check.h"

#define THREADS 3
static size_t pages;
static char *base;
static atomic_int stop;

/* Each thread owns a part; it writes versions and checks the last one. */
static void *writer(void *arg)
{
    size_t me = (uintptr_t)arg, first = pages * me / THREADS, last = pages * (me + 1) / THREADS;
    for (uint64_t version = 2; !atomic_load(&stop); version++)
        for (size_t i = first; i < last && !atomic_load(&stop); i++) {
            page_fill(base + i * PAGE, i, version);
            size_t other = first + (i - first) * 7 % (i - first + 1);
            page_check(base + other * PAGE, other, version, "a thread's own page");
        }
    return NULL;
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 64), rounds = arg_of(argc, argv, 2, 8);
    size_t still_pages = mib * MIB / PAGE / 2, special = 300;
    pages = mib * MIB / PAGE / 2;
    base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, 1);
    char *still = map_anon(still_pages * PAGE);
    range_fill(still, still_pages, 1u << 22, 3);
    char *wiped = map_anon(special * PAGE), *absent = map_anon(special * PAGE);
    MUST(madvise(wiped, special * PAGE, MADV_WIPEONFORK) == 0 && madvise(absent, special * PAGE, MADV_DONTFORK) == 0);
    range_fill(wiped, special, 100, 4);
    range_fill(absent, special, 200, 5);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], NULL, writer, (void *)i) == 0);
    for (size_t round = 0; round < rounds; round++) {
        range_check(still, still_pages, 1u << 22, 3 + round, "the still part");
        int tell[2];
        MUST(pipe(tell) == 0);
        pid_t pid = fork();
        MUST(pid >= 0);
        if (pid == 0) {
            close(tell[0]);
            range_check(still, still_pages, 1u << 22, 3 + round, "the still part in the child");
            range_check(wiped, special, 0, 0, "WIPEONFORK in the child");
            unsigned char seen;
            if (mincore(absent, PAGE, &seen) == 0 || errno != ENOMEM)
                fail("MISMATCH fork_threads: DONTFORK memory is in the child");
            for (size_t i = 0; i < still_pages; i += 2)
                page_fill(still + i * PAGE, i, 50 + round);
            /* A grandchild that outlives its parent and reports on its own. */
            pid_t grand = fork();
            MUST(grand >= 0);
            if (grand > 0)
                _exit(21);
            for (size_t i = 0; i < still_pages; i++)
                page_check(still + i * PAGE, i % 2 ? (1u << 22) + i : i, i % 2 ? 3 + round : 50 + round, "the grandchild");
            MUST(write(tell[1], "fine", 4) == 4);
            _exit(0);
        }
        close(tell[1]);
        for (size_t i = 0; i < still_pages; i++)
            page_fill(still + i * PAGE, (1u << 22) + i, 4 + round);
        int status;
        MUST(waitpid(pid, &status, 0) == pid);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 21)
            fail("MISMATCH fork_threads: the child ended with status %x", status);
        char word[5] = "";
        if (read(tell[0], word, 4) != 4 || strcmp(word, "fine") != 0)
            fail("MISMATCH fork_threads: the grandchild did not report");
        close(tell[0]);
        range_check(wiped, special, 100, 4, "WIPEONFORK in the parent");
        range_check(absent, special, 200, 5, "DONTFORK in the parent");
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_join(threads[i], NULL) == 0);
    printf("ok fork_threads %zu rounds\n", rounds);
    return 0;
}
