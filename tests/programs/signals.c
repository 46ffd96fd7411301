/* Signal handlers on stacks that are gone by the time the signal comes: timers, sigaltstack, threads asleep for long. */
#include "check.h"
#include <sys/time.h>

#define SLEEPERS 4
static atomic_ulong ticks, alt_ticks, bad;
static struct ballast b;
static atomic_int stop;
static __thread uint64_t stack_top;

static void on_alarm(int sig)
{
    /* Enough of the stack to reach pages below what the interrupted code used. */
    uint64_t pages[WORDS * 6];
    for (uint64_t i = 0; i < 6; i++)
        page_fill(pages + i * WORDS, i + (uint64_t)sig, 2);
    for (uint64_t i = 0; i < 6; i++)
        for (size_t at = 0; at < WORDS; at += 37)
            if (pages[i * WORDS + at] != word_of(i + (uint64_t)sig, 2, at))
                atomic_fetch_add(&bad, 1);
    atomic_fetch_add(&ticks, 1);
}

static void on_usr(int sig)
{
    uint64_t here = (uint64_t)(uintptr_t)&sig;
    /* On the alternate stack, which is far from the thread's own. */
    if (stack_top != 0 && here < stack_top && stack_top - here < MIB)
        atomic_fetch_add(&bad, 1);
    on_alarm(sig);
    atomic_fetch_add(&alt_ticks, 1);
}

static void *sleeper(void *arg)
{
    uint64_t frame[WORDS * 3], number = (uintptr_t)arg;
    stack_top = (uint64_t)(uintptr_t)&number;
    stack_t alt = {.ss_sp = map_anon(64 * PAGE), .ss_size = 64 * PAGE};
    MUST(sigaltstack(&alt, NULL) == 0);
    sigset_t timer;
    sigemptyset(&timer);
    sigaddset(&timer, SIGALRM);
    MUST(pthread_sigmask(SIG_BLOCK, &timer, NULL) == 0);
    for (uint64_t round = 1; !atomic_load(&stop); round++) {
        for (uint64_t i = 0; i < 3; i++)
            page_fill(frame + i * WORDS, number * 10 + i, round);
        sleep_ms(150);
        for (uint64_t i = 0; i < 3; i++)
            page_check(frame + i * WORDS, number * 10 + i, round, "the stack of a sleeper");
    }
    return NULL;
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 64), rounds = arg_of(argc, argv, 2, 20);
    b = ballast_new(mib);
    struct sigaction alarm_action = {.sa_handler = on_alarm}, usr_action = {.sa_handler = on_usr, .sa_flags = SA_ONSTACK | SA_RESTART};
    MUST(sigaction(SIGALRM, &alarm_action, NULL) == 0 && sigaction(SIGUSR1, &usr_action, NULL) == 0);
    pthread_t threads[SLEEPERS];
    for (uintptr_t i = 0; i < SLEEPERS; i++)
        MUST(pthread_create(&threads[i], NULL, sleeper, (void *)(i + 1)) == 0);
    struct itimerval every = {.it_interval = {0, 5000}, .it_value = {0, 5000}};
    MUST(setitimer(ITIMER_REAL, &every, NULL) == 0);
    for (size_t round = 0; round < rounds; round++) {
        ballast_push(&b, 100);
        sleep_ms(30);
        for (int i = 0; i < SLEEPERS; i++)
            MUST(pthread_kill(threads[i], SIGUSR1) == 0);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < SLEEPERS; i++)
        MUST(pthread_join(threads[i], NULL) == 0);
    every.it_value.tv_usec = every.it_interval.tv_usec = 0;
    MUST(setitimer(ITIMER_REAL, &every, NULL) == 0);
    if (atomic_load(&bad) != 0 || atomic_load(&alt_ticks) < SLEEPERS || atomic_load(&ticks) < 5)
        fail("MISMATCH signals: %lu bad, %lu on the other stack, %lu ticks", bad, alt_ticks, ticks);
    printf("ok signals %zu rounds\n", rounds);
    return 0;
}
