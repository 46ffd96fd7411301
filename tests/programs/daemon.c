/*
 * What daemons do: fork twice, a session of its own, close every descriptor, drop privileges, not dumpable, a limit on address space; and go on
 * with big memory. The result comes back through a file, which the first process waits for.
 */
#include "check.h"
#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 4);
    size_t pages = mib * MIB / PAGE / 2;
    char *base = map_anon(pages * PAGE);
    int *result = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(result != MAP_FAILED);
    range_fill(base, pages, 0, 1);
    struct ballast b = ballast_new(mib / 2);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        MUST(setsid() > 0);
        pid = fork();
        if (pid != 0)
            _exit(pid > 0 ? 0 : 1);
        if (syscall(SYS_close_range, 3U, ~0U, 0U) != 0)
            for (int fd = 3; fd < 1024; fd++)
                close(fd);
        if (getuid() == 0) {
            MUST(setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0);
            MUST(setuid(0) != 0);
        }
        MUST(prctl(PR_SET_DUMPABLE, 0) == 0);
        for (size_t round = 1; round <= rounds; round++) {
            ballast_push(&b, 100);
            range_check(base, pages, 0, round, "in the daemon");
            range_fill(base, pages, 0, round + 1);
            /* A child of the daemon, which inherits all of that. */
            pid = fork();
            MUST(pid >= 0);
            if (pid == 0) {
                range_check(base, pages, 0, round + 1, "in a child of the daemon");
                range_fill(base, pages / 3, 7, 7);
                range_check(base, pages / 3, 7, 7, "written by a child of the daemon");
                _exit(0);
            }
            int status;
            MUST(waitpid(pid, &status, 0) == pid && status == 0);
        }
        *result = 42;
        _exit(0);
    }
    int status;
    MUST(waitpid(pid, &status, 0) == pid && status == 0);
    for (int tries = 0; tries < 60000 && *(volatile int *)result != 42; tries++)
        sleep_ms(1);
    if (*result != 42)
        fail("MISMATCH daemon: it did not finish");
    range_check(base, pages, 0, 1, "where the daemon came from");
    printf("ok daemon %zu rounds\n", rounds);
    return 0;
}
