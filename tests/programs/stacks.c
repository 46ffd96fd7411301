/* Deep recursion on many threads and on the first one, with every frame checked on the way back. */
#include "check.h"
#include <sys/resource.h>

#define THREADS 8
static size_t depth_of_thread, rounds;
static struct ballast b;
static pthread_mutex_t push_lock = PTHREAD_MUTEX_INITIALIZER;

/* A frame of a little over a page whose contents are its depth. */
__attribute__((noinline)) static uint64_t descend(uint64_t who, size_t depth)
{
    uint64_t page[WORDS];
    page_fill(page, who * 100000 + depth, 1);
    uint64_t below = 0;
    if (depth > 0) {
        below = descend(who, depth - 1);
    } else {
        pthread_mutex_lock(&push_lock);
        ballast_push(&b, 40);
        pthread_mutex_unlock(&push_lock);
    }
    page_check(page, who * 100000 + depth, 1, "a stack frame");
    return below + page[11];
}

static void *run(void *arg)
{
    uint64_t sum = 0;
    for (size_t round = 0; round < rounds; round++)
        sum += descend((uintptr_t)arg, depth_of_thread);
    return (void *)(uintptr_t)sum;
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96);
    rounds = arg_of(argc, argv, 2, 4);
    b = ballast_new(mib / 2);
    size_t share = mib * MIB / 2 / (THREADS + 2);
    depth_of_thread = share / (PAGE + 256);
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_STACK, &limit) == 0);
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < 2 * share + MIB) {
        limit.rlim_cur = 2 * share + MIB;
        MUST(setrlimit(RLIMIT_STACK, &limit) == 0);
    }
    pthread_attr_t attr;
    MUST(pthread_attr_init(&attr) == 0 && pthread_attr_setstacksize(&attr, share + MIB) == 0);
    pthread_t threads[THREADS];
    uint64_t sum = 0;
    for (uintptr_t i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], &attr, run, (void *)(i + 1)) == 0);
    for (size_t round = 0; round < rounds; round++)
        sum += descend(77, 2 * depth_of_thread);
    for (int i = 0; i < THREADS; i++) {
        void *result;
        MUST(pthread_join(threads[i], &result) == 0);
        sum += (uintptr_t)result;
    }
    printf("ok stacks checksum %016llx\n", (unsigned long long)sum);
    return 0;
}
