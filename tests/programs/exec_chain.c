/*
 * A child becomes another program again and again at odd moments, each with a few MiB, and the last one with much, while its parent holds
 * as much: whoever wants to look after the child often finds that it has become the next program meanwhile.
 */
#include "check.h"

static char self[4096];

static void become(size_t mib, size_t left)
{
    char mib_text[32], left_text[32];
    snprintf(mib_text, sizeof mib_text, "%zu", mib);
    snprintf(left_text, sizeof left_text, "%zu", left);
    execl(self, self, mib_text, "1", left_text, (char *)NULL);
    _exit(99);
}

static void follow(size_t mib, size_t left)
{
    size_t pages = (left > 0 ? 2 : mib) * MIB / PAGE;
    char *base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, left);
    if (left > 0) {
        usleep((useconds_t)(left * 37 % 11 * 100));
        become(mib, left - 1);
    }
    for (int pass = 0; pass < 4; pass++)
        range_check(base, pages, 0, left, "the last of the chain");
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 64), rounds = arg_of(argc, argv, 2, 3);
    MUST(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    if (argc > 3) {
        follow(mib, arg_of(argc, argv, 3, 0));
        return 0;
    }
    size_t pages = mib * MIB / PAGE;
    char *base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, 1);
    for (size_t round = 0; round < rounds; round++) {
        pid_t pid = fork();
        if (pid == 0)
            become(mib, 60);
        int status;
        MUST(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        range_check(base, pages, 0, 1, "after a child");
    }
    printf("ok exec_chain\n");
    return 0;
}
