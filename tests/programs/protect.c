/* mprotect to NONE, READ and READ|WRITE over memory that is partly gone, with the SIGSEGV that a forbidden access must raise. */
#include "check.h"
#include <setjmp.h>

static sigjmp_buf back;
static volatile uintptr_t where;
static volatile int code;

static void on_segv(int sig, siginfo_t *info, void *context)
{
    (void)sig;
    (void)context;
    where = (uintptr_t)info->si_addr;
    code = info->si_code;
    siglongjmp(back, 1);
}

static void expect_segv(volatile char *at, int writing)
{
    where = 0;
    if (sigsetjmp(back, 1) == 0) {
        if (writing)
            *at = 1;
        else
            (void)*at;
        fail("MISMATCH protect: %s at %p was allowed", writing ? "a write" : "a read", (void *)(uintptr_t)at);
    }
    if (where != (uintptr_t)at || code != SEGV_ACCERR)
        fail("MISMATCH protect: SIGSEGV at %p with code %d, expected %p", (void *)where, code, (void *)(uintptr_t)at);
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 6);
    struct ballast b = ballast_new(mib / 2);
    size_t pages = mib * MIB / PAGE / 2;
    char *base = map_anon(pages * PAGE);
    uint32_t *version = calloc(pages, sizeof *version);
    uint64_t state = 17;
    struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};
    MUST(version != NULL && sigaction(SIGSEGV, &action, NULL) == 0);
    for (size_t i = 0; i < pages; i++)
        page_fill(base + i * PAGE, i, version[i] = 1);
    for (size_t round = 0; round < rounds; round++) {
        ballast_push(&b, 60);
        for (size_t n = 0; n < 30; n++) {
            uint64_t r = rng_next(&state);
            size_t length = 1 + (n % 3 == 0 ? (r >> 4) % 1200 : (r >> 4) % 30), first = (r >> 20) % (pages - length);
            char *at = base + first * PAGE;
            size_t probe = (r >> 40) % length;
            MUST(mprotect(at, length * PAGE, PROT_READ) == 0);
            if (r & 1)
                ballast_push(&b, 3);
            page_check(at + probe * PAGE, first + probe, version[first + probe], "read-only");
            expect_segv(at + probe * PAGE + 5, 1);
            MUST(mprotect(at, length * PAGE, PROT_NONE) == 0);
            if (r & 2)
                ballast_push(&b, 3);
            expect_segv(at + (length - 1 - probe) * PAGE + 9, (int)(r >> 2 & 1));
            MUST(mprotect(at, length * PAGE, r & 4 ? PROT_READ | PROT_WRITE : PROT_READ) == 0);
            page_check(at + probe * PAGE, first + probe, version[first + probe], "after NONE");
            MUST(mprotect(at, length * PAGE, PROT_READ | PROT_WRITE) == 0);
            page_fill(at + probe * PAGE, first + probe, ++version[first + probe]);
        }
        for (size_t i = 0; i < pages; i++)
            page_check(base + i * PAGE, i, version[i], "the whole");
    }
    printf("ok protect %zu rounds\n", rounds);
    return 0;
}
