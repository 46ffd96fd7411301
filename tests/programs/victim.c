/* Keeps memory busy in a parent and two children until somebody kills it; says "ready PID" when it is up. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 64), children = arg_of(argc, argv, 2, 2);
    struct ballast b = ballast_new(mib);
    for (size_t c = 0; c < children; c++) {
        pid_t pid = fork();
        MUST(pid >= 0);
        if (pid == 0)
            for (;;)
                ballast_push(&b, 100);
    }
    ballast_push(&b, 100);
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    for (;;)
        ballast_push(&b, 100);
}
