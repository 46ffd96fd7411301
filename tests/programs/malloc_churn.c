/* Four threads allocate, check, resize and free blocks of all sizes; meant to run with any allocator preloaded. */
#include "check.h"

#define THREADS 4
static size_t bytes_each, rounds;

struct block {
    uint64_t *words;
    size_t count;
    uint64_t seed;
};

static void block_fill(struct block *b)
{
    for (size_t i = 0; i < b->count; i++)
        b->words[i] = i % 16 ? b->seed : mix(b->seed + i);
}

static void block_check(const struct block *b, size_t count, const char *when)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t want = i % 16 ? b->seed : mix(b->seed + i);
        if (b->words[i] != want)
            fail("MISMATCH %s: block of %zu words at %p, word %zu: is %016llx, must be %016llx", when, b->count,
                 (void *)b->words, i, (unsigned long long)b->words[i], (unsigned long long)want);
    }
}

/* Most blocks are small; some are large enough to be mapped on their own. */
static size_t size_of(uint64_t r)
{
    if (r % 50 == 0)
        return 16384 + (r >> 8) % 65536;
    return r % 5 == 0 ? 256 + (r >> 8) % 2048 : 4 + (r >> 8) % 64;
}

static void *churn(void *arg)
{
    uint64_t state = (uintptr_t)arg, sum = 0;
    size_t slots = bytes_each / 12000, held = 0;
    struct block *blocks = calloc(slots, sizeof *blocks);
    MUST(blocks != NULL);
    for (size_t step = 0; step < slots * rounds; step++) {
        uint64_t r = rng_next(&state);
        struct block *b = &blocks[(r >> 20) % slots];
        if (b->words != NULL && r % 4 == 0) {
            size_t was = b->count, now = size_of(r >> 3);
            block_check(b, was, "before realloc");
            b->words = realloc(b->words, now * sizeof(uint64_t));
            MUST(b->words != NULL);
            block_check(b, was < now ? was : now, "after realloc");
            b->count = now;
            b->seed = r;
        } else {
            if (b->words != NULL)
                block_check(b, b->count, "before free");
            free(b->words);
            b->count = size_of(r >> 3);
            b->words = malloc(b->count * sizeof(uint64_t));
            MUST(b->words != NULL);
            b->seed = r;
        }
        block_fill(b);
        sum += b->seed % 1000;
        /* Now and then let go of nearly everything, so that the allocator gives memory back. */
        if (step % (slots * 2) == slots * 2 - 1)
            for (size_t i = 0; i < slots; i++)
                if (i % 8) {
                    if (blocks[i].words != NULL)
                        block_check(&blocks[i], blocks[i].count, "before the purge");
                    free(blocks[i].words);
                    blocks[i].words = NULL;
                }
    }
    for (size_t i = 0; i < slots; i++) {
        if (blocks[i].words != NULL) {
            held++;
            block_check(&blocks[i], blocks[i].count, "at the end");
        }
        free(blocks[i].words);
    }
    free(blocks);
    return (void *)(uintptr_t)(sum * 1000003 + held);
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    uint64_t sum = 0;
    bytes_each = arg_of(argc, argv, 1, 96) * MIB / THREADS;
    rounds = arg_of(argc, argv, 2, 4);
    for (uintptr_t i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], NULL, churn, (void *)(i + 1)) == 0);
    for (int i = 0; i < THREADS; i++) {
        void *result;
        MUST(pthread_join(threads[i], &result) == 0);
        sum = sum * 31 + (uintptr_t)result;
    }
    printf("ok malloc_churn checksum %016llx\n", (unsigned long long)sum);
    return 0;
}
