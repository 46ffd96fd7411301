/*
 * Threads that start and end all the time (a join must return), robust mutexes whose owner died, and mutexes and condition variables that
 * live in memory that comes and goes.
 */
#include "check.h"

static struct ballast b;

struct cell {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t turn;
    char rest[PAGE - sizeof(pthread_mutex_t) - sizeof(pthread_cond_t) - sizeof(uint64_t)];
};
static struct cell *cells;
static size_t cell_count;

static void *short_life(void *arg)
{
    uint64_t page[WORDS * 4];
    for (int i = 0; i < 4; i++)
        page_fill(page + i * WORDS, (uintptr_t)arg + (uint64_t)i, 3);
    sched_yield();
    for (int i = 0; i < 4; i++)
        page_check(page + i * WORDS, (uintptr_t)arg + (uint64_t)i, 3, "the stack of a short life");
    return (void *)((uintptr_t)arg * 3);
}

static void *die_with_lock(void *arg)
{
    pthread_mutex_t *lock = arg;
    int got = pthread_mutex_lock(lock);
    MUST(got == 0);
    return NULL;
}

/* Two of these pass the turn to each other through every cell. */
static void *ping_pong(void *arg)
{
    uint64_t me = (uintptr_t)arg;
    for (size_t i = 0; i < cell_count; i++) {
        struct cell *c = &cells[i];
        pthread_mutex_lock(&c->lock);
        for (int n = 0; n < 4; n++) {
            while (c->turn % 2 != me)
                pthread_cond_wait(&c->changed, &c->lock);
            c->turn++;
            pthread_cond_signal(&c->changed);
        }
        pthread_mutex_unlock(&c->lock);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 64), rounds = arg_of(argc, argv, 2, 4);
    b = ballast_new(mib * 3 / 4);
    cell_count = mib * MIB / 4 / sizeof *cells;
    cells = (struct cell *)map_anon(cell_count * sizeof *cells);
    for (size_t i = 0; i < cell_count; i++) {
        pthread_mutex_init(&cells[i].lock, NULL);
        pthread_cond_init(&cells[i].changed, NULL);
    }
    pthread_mutexattr_t robust;
    MUST(pthread_mutexattr_init(&robust) == 0 && pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST) == 0);
    size_t mutexes = 200;
    char *room = map_anon(mutexes * PAGE);
    for (size_t round = 0; round < rounds; round++) {
        for (uintptr_t batch = 0; batch < 40; batch++) {
            pthread_t threads[8];
            for (uintptr_t i = 0; i < 8; i++)
                MUST(pthread_create(&threads[i], NULL, short_life, (void *)(batch * 8 + i)) == 0);
            ballast_push(&b, 2);
            for (uintptr_t i = 0; i < 8; i++) {
                void *result;
                MUST(pthread_join(threads[i], &result) == 0);
                if ((uintptr_t)result != (batch * 8 + i) * 3)
                    fail("MISMATCH thread_churn: a thread returned %p", result);
            }
        }
        for (size_t m = 0; m < mutexes; m++) {
            pthread_mutex_t *lock = (pthread_mutex_t *)(room + m * PAGE + 512);
            MUST(pthread_mutex_init(lock, &robust) == 0);
        }
        ballast_push(&b, 100);
        for (size_t m = 0; m < mutexes; m++) {
            pthread_mutex_t *lock = (pthread_mutex_t *)(room + m * PAGE + 512);
            pthread_t thread;
            MUST(pthread_create(&thread, NULL, die_with_lock, lock) == 0);
            if (m % 50 == 0)
                ballast_push(&b, 60);
            MUST(pthread_join(thread, NULL) == 0);
            int got = pthread_mutex_lock(lock);
            if (got != EOWNERDEAD)
                fail("MISMATCH thread_churn: robust mutex %zu says %d, must be EOWNERDEAD", m, got);
            MUST(pthread_mutex_consistent(lock) == 0 && pthread_mutex_unlock(lock) == 0);
        }
        pthread_t pair[2];
        for (uintptr_t i = 0; i < 2; i++)
            MUST(pthread_create(&pair[i], NULL, ping_pong, (void *)i) == 0);
        ballast_push(&b, 100);
        for (int i = 0; i < 2; i++)
            MUST(pthread_join(pair[i], NULL) == 0);
        for (size_t i = 0; i < cell_count; i++)
            if (cells[i].turn != 8 * (round + 1))
                fail("MISMATCH thread_churn: cell %zu had %llu turns", i, (unsigned long long)cells[i].turn);
    }
    printf("ok thread_churn %zu rounds\n", rounds);
    return 0;
}
