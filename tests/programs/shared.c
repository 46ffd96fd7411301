/* MAP_SHARED anonymous memory and a memfd, written by parent and child, side by side with private memory in one run of mappings. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 64), rounds = arg_of(argc, argv, 2, 4), part = mib * MIB / PAGE / 8;
    char *place = mmap(NULL, part * 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int file = memfd_create("shared", MFD_CLOEXEC), fixed = MAP_FIXED;
    MUST(place != MAP_FAILED && file >= 0 && ftruncate(file, (off_t)(part * PAGE)) == 0);
    int rw = PROT_READ | PROT_WRITE;
    char *first = mmap(place, part * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
    char *anon = mmap(place + part * PAGE, part * PAGE, rw, MAP_SHARED | MAP_ANONYMOUS | fixed, -1, 0);
    char *second = mmap(place + 2 * part * PAGE, part * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
    char *mem = mmap(place + 3 * part * PAGE, part * PAGE, rw, MAP_SHARED | fixed, file, 0);
    MUST(first != MAP_FAILED && anon != MAP_FAILED && second != MAP_FAILED && mem != MAP_FAILED);
    struct ballast b = ballast_new(mib / 2);
    range_fill(first, part, 1000000, 1);
    range_fill(second, part, 2000000, 1);
    for (uint64_t round = 1; round <= rounds; round++) {
        range_fill(anon, part, 3000000, round);
        range_fill(mem, part, 4000000, round);
        ballast_push(&b, 100);
        pid_t pid = fork();
        MUST(pid >= 0);
        if (pid == 0) {
            range_check(anon, part, 3000000, round, "shared memory in the child");
            range_check(first, part, 1000000, round, "private memory in the child");
            range_fill(first, part, 5, 5);
            range_fill(anon, part / 2, 3000000, round + 100);
            range_fill(mem, part / 2, 4000000, round + 100);
            ballast_push(&b, 50);
            range_check(first, part, 5, 5, "rewritten in the child");
            _exit(0);
        }
        int status;
        MUST(waitpid(pid, &status, 0) == pid);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            fail("MISMATCH shared: the child ended with status %x", status);
        range_check(anon, part / 2, 3000000, round + 100, "shared memory the child wrote");
        range_check(mem, part / 2, 4000000, round + 100, "the memfd the child wrote");
        range_check(anon + part / 2 * PAGE, part - part / 2, 3000000 + part / 2, round, "shared memory the parent wrote");
        char *again = mmap(NULL, part * PAGE, PROT_READ, MAP_PRIVATE, file, 0);
        MUST(again != MAP_FAILED);
        range_check(again, part / 2, 4000000, round + 100, "the memfd seen through another mapping");
        MUST(munmap(again, part * PAGE) == 0);
        range_check(first, part, 1000000, round, "private memory");
        range_check(second, part, 2000000, round, "private memory between shared");
        range_fill(first, part, 1000000, round + 1);
        range_fill(second, part, 2000000, round + 1);
    }
    printf("ok shared %zu rounds\n", rounds);
    return 0;
}
