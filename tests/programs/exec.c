/*
 * vfork, posix_spawn and exec with big memory before and after: this program executes itself, also from a thread that is not the first one,
 * and every generation fills and checks memory of its own.
 */
#include "check.h"
#include <spawn.h>

extern char **environ;
static char self[4096], mib_text[32], rounds_text[32];

static void *exec_from_thread(void *arg)
{
    (void)arg;
    char *const args[] = {self, mib_text, "1", "last", NULL};
    execv(self, args);
    fail("FAIL exec from a thread: %s", strerror(errno));
}

static void run_child(int how, const char *what)
{
    char *const args[] = {self, mib_text, "1", (char *)what, NULL};
    pid_t pid;
    if (how == 0) {
        MUST(posix_spawn(&pid, self, NULL, NULL, args, environ) == 0);
    } else {
        pid = how == 1 ? vfork() : fork();
        if (pid == 0) {
            execv(self, args);
            _exit(99);
        }
    }
    MUST(pid > 0);
    int status;
    MUST(waitpid(pid, &status, 0) == pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail("MISMATCH exec: child %d (%s) ended with status %x", how, what, status);
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 64), rounds = arg_of(argc, argv, 2, 3);
    const char *what = argc > 3 ? argv[3] : "first";
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    MUST(length > 0);
    snprintf(mib_text, sizeof mib_text, "%zu", mib);
    snprintf(rounds_text, sizeof rounds_text, "%zu", rounds);
    size_t pages = mib * MIB / PAGE;
    char *base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, (uint64_t)what[0]);
    range_check(base, pages, 0, (uint64_t)what[0], what);
    if (strcmp(what, "leaf") == 0)
        return 0;
    if (strcmp(what, "last") == 0) {
        printf("ok exec\n");
        return 0;
    }
    if (strcmp(what, "thread") == 0) {
        pthread_t thread;
        MUST(pthread_create(&thread, NULL, exec_from_thread, NULL) == 0);
        pthread_join(thread, NULL);
        fail("FAIL exec: the thread came back");
    }
    for (size_t round = 0; round < rounds; round++)
        for (int how = 0; how < 3; how++) {
            run_child(how, "leaf");
            range_check(base, pages, 0, (uint64_t)what[0], "after a child");
        }
    char *const args[] = {self, mib_text, "1", "thread", NULL};
    execv(self, args);
    fail("FAIL exec: %s", strerror(errno));
}
