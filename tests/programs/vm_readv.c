/* process_vm_readv and process_vm_writev between parent and child, both with memory that is gone. */
#include "check.h"
#include <sys/uio.h>

#define SPAN 128

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 4);
    size_t pages = mib * MIB / PAGE / 3;
    char *base = map_anon(pages * PAGE);
    int down[2], up[2];
    char word;
    MUST(pipe(down) == 0 && pipe(up) == 0);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        close(down[1]);
        range_fill(base, pages, 1000000, 1);
        struct ballast own = ballast_new(mib / 3);
        MUST(write(up[1], "r", 1) == 1);
        while (read(down[0], &word, 1) == 1) {
            /* The parent wrote the first span; everything else is ours. */
            range_check(base, SPAN, 0, (uint64_t)word, "written by the parent");
            range_check(base + SPAN * PAGE, pages - SPAN, 1000000 + SPAN, 1, "the child's own");
            ballast_push(&own, 100);
            MUST(write(up[1], "r", 1) == 1);
        }
        _exit(0);
    }
    close(down[0]);
    range_fill(base, pages, 0, 1);
    struct ballast b = ballast_new(mib / 3);
    char *room = map_anon(SPAN * PAGE);
    for (size_t round = 1; round <= rounds; round++) {
        MUST(read(up[0], &word, 1) == 1);
        ballast_push(&b, 100);
        struct iovec mine = {room, SPAN * PAGE}, theirs;
        for (size_t first = SPAN; first + SPAN <= pages; first += SPAN * 3) {
            theirs = (struct iovec){base + first * PAGE, SPAN * PAGE};
            MUST(process_vm_readv(pid, &mine, 1, &theirs, 1, 0) == (ssize_t)(SPAN * PAGE));
            range_check(room, SPAN, 1000000 + first, 1, "read from the child");
        }
        range_fill(room, SPAN, 0, round);
        theirs = (struct iovec){base, SPAN * PAGE};
        MUST(process_vm_writev(pid, &mine, 1, &theirs, 1, 0) == (ssize_t)(SPAN * PAGE));
        range_check(base, pages, 0, 1, "the parent's own");
        word = (char)round;
        MUST(write(down[1], &word, 1) == 1);
    }
    MUST(read(up[0], &word, 1) == 1);
    close(down[1]);
    int status;
    MUST(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    printf("ok vm_readv %zu rounds\n", rounds);
    return 0;
}
