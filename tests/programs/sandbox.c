/*
 * A program that locks itself in, with a seccomp filter on all of its threads (SECCOMP_FILTER_FLAG_TSYNC), as browsers and emulators do; what is
 * not on the list fails with EPERM. Its memory must go on coming back.
 */
#include "check.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

#define ALLOW(name)                                                                                                    \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static size_t pages;
static char *base;
static atomic_int started;

static void *reader(void *arg)
{
    atomic_store(&started, 1);
    for (size_t round = 0; round < 3; round++)
        range_check(base, pages, 0, 1, "in a sandboxed thread");
    return arg;
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 4);
    pages = mib * MIB / PAGE / 2;
    base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, 1);
    struct ballast b = ballast_new(mib / 2);
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, reader, NULL) == 0);
    /* The C library makes system calls of its own while a thread starts. */
    while (!atomic_load(&started))
        sleep_ms(1);
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(read), ALLOW(write), ALLOW(exit), ALLOW(exit_group), ALLOW(futex), ALLOW(rt_sigreturn), ALLOW(munmap),
        ALLOW(mmap), ALLOW(madvise), ALLOW(brk), ALLOW(rt_sigprocmask), ALLOW(fstat), ALLOW(newfstatat), ALLOW(ioctl),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    };
    struct sock_fprog program = {sizeof rules / sizeof rules[0], rules};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    long got = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
    if (got != 0)
        fail("FAIL sandbox: seccomp says %ld (%s)", got, strerror(errno));
    for (size_t round = 0; round < rounds; round++) {
        ballast_push(&b, 100);
        range_check(base, pages, 0, 1, "in the sandbox");
        char *more = map_anon(pages / 4 * PAGE);
        range_fill(more, pages / 4, 9, round + 1);
        ballast_push(&b, 60);
        range_check(more, pages / 4, 9, round + 1, "mapped in the sandbox");
        MUST(munmap(more, pages / 4 * PAGE) == 0);
    }
    MUST(pthread_join(thread, NULL) == 0);
    printf("ok sandbox %zu rounds\n", rounds);
    return 0;
}
