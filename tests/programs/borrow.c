/* A child of vfork stays in its parent's memory for a while before it executes another program. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t pages = arg_of(argc, argv, 1, 64) * MIB / PAGE, rounds = arg_of(argc, argv, 2, 1);
    char *base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, 1);
    for (size_t round = 0; round < rounds; round++) {
        pid_t pid = vfork();
        if (pid == 0) {
            sleep_ms(300);
            execl("/bin/true", "true", (char *)NULL);
            _exit(99);
        }
        int status;
        MUST(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    range_check(base, pages, 0, 1, "after a child");
    printf("ok borrow\n");
    return 0;
}
