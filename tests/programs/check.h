/*
 * What all these programs share: pages whose contents follow from (page number, version), so that every byte can be
 * checked at any time without a second copy. Kinds alternate by page number: same-filled, text, half noise, noise.
 */
#ifndef CHECK_H
#define CHECK_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MIB (1024UL * 1024UL)
#define WORDS (PAGE / sizeof(uint64_t))

/* Prints the first mismatch or failed call and ends the whole process with status 1. */
__attribute__((format(printf, 1, 2), noreturn, unused)) static void fail(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (n > (int)sizeof line - 2)
        n = (int)sizeof line - 2;
    line[n] = '\n';
    if (write(1, line, (size_t)n + 1) < 0)
        _exit(2);
    _exit(1);
}

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        if (!(call))                                                                                                   \
            fail("FAIL %s:%d: %s (%s)", __FILE__, __LINE__, #call, strerror(errno));                                   \
    } while (0)

static inline uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

/* Pages with this bit in their number are text of 128 words, in another order on each page: zstd -1 makes 2.4:1 of it. */
#define TEXT (1ULL << 63)

/* The word at `at` of page `number` in `version`. Version 0 is the untouched page: zeros. */
static inline uint64_t word_of(uint64_t number, uint64_t version, size_t at)
{
    if (version == 0)
        return 0;
    uint64_t seed = mix(number * 0x10001 + version);
    if (number & TEXT) /* eight letters out of sixteen */
        return 0x6161616161616161ULL + (mix(mix(seed + at) % 128) & 0x0f0f0f0f0f0f0f0fULL);
    switch (number & 3) {
    case 0: /* same-filled, but for the two words that name the page */
        return at == 7 ? number : at == WORDS - 1 ? version : (version & 1 ? 0 : 0x2020202020202020ULL);
    case 1: /* text-like: eight words that repeat with a few changes */
        return at % 64 == 13 ? seed + at : 0x6568742064656361ULL + (at % 8) * 0x0101 + (number & 0xff);
    case 2: /* half noise */
        return at < WORDS / 2 ? mix(seed + at) : number ^ version;
    default: /* noise */
        return mix(seed ^ (at * 0x9e37));
    }
}

__attribute__((unused)) static void page_fill(void *page, uint64_t number, uint64_t version)
{
    volatile uint64_t *words = page;
    for (size_t at = 0; at < WORDS; at++)
        words[at] = word_of(number, version, at);
}

__attribute__((unused)) static void page_check(const void *page, uint64_t number, uint64_t version, const char *when)
{
    const volatile uint64_t *words = page;
    for (size_t at = 0; at < WORDS; at++) {
        uint64_t is = words[at], want = word_of(number, version, at);
        if (is != want)
            fail("MISMATCH %s: page %llu version %llu at %p word %zu: is %016llx, must be %016llx", when,
                 (unsigned long long)number, (unsigned long long)version, page, at, (unsigned long long)is,
                 (unsigned long long)want);
    }
}

__attribute__((unused)) static void range_fill(char *base, size_t pages, uint64_t first, uint64_t version)
{
    for (size_t i = 0; i < pages; i++)
        page_fill(base + i * PAGE, first + i, version);
}

__attribute__((unused)) static void range_check(const char *base, size_t pages, uint64_t first, uint64_t version,
                                                const char *when)
{
    for (size_t i = 0; i < pages; i++)
        page_check(base + i * PAGE, first + i, version, when);
}

__attribute__((unused)) static char *map_anon(size_t bytes)
{
    char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(base != MAP_FAILED);
    return base;
}

/* Fills the pages with version 1 and gives the versions, one per page, for the program to count on. */
__attribute__((unused)) static uint32_t *versions_filled(char *base, size_t pages)
{
    uint32_t *version = calloc(pages, sizeof *version);
    MUST(version != NULL);
    for (size_t i = 0; i < pages; i++)
        page_fill(base + i * PAGE, i, version[i] = 1);
    return version;
}

/* A big region that is written once and then read again and again, so that the memory under test is pushed out. */
struct ballast {
    char *base;
    size_t pages;
    size_t at;
};

__attribute__((unused)) static struct ballast ballast_new(size_t mib)
{
    struct ballast b = {map_anon(mib * MIB), mib * MIB / PAGE, 0};
    range_fill(b.base, b.pages, 1u << 30, 1);
    return b;
}

/* Touches and checks `part` percent of the ballast, going round. */
__attribute__((unused)) static void ballast_push(struct ballast *b, unsigned part)
{
    size_t pages = b->pages * part / 100;
    for (size_t i = 0; i < pages; i++) {
        page_check(b->base + b->at * PAGE, (1u << 30) + b->at, 1, "ballast");
        b->at = (b->at + 1) % b->pages;
    }
}

static inline uint64_t rng_next(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15ULL;
    return mix(*state);
}

/* The page that a random number stands for: nine in ten lie in the first tenth. */
__attribute__((unused)) static size_t hot_page(uint64_t random, size_t pages)
{
    return random % 10 ? (random >> 8) % (pages / 10) : (random >> 8) % pages;
}

__attribute__((unused)) static size_t arg_of(int argc, char **argv, int at, size_t otherwise)
{
    return argc > at ? (size_t)strtoul(argv[at], NULL, 10) : otherwise;
}

__attribute__((unused)) static void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&t, &t) != 0 && errno == EINTR)
        ;
}

/* A line that says why a part cannot be tested here; status 77 when nothing of the program can. */
__attribute__((format(printf, 1, 2), unused)) static void skipped(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("SKIPPED: ");
    vprintf(format, args);
    printf("\n");
    fflush(stdout);
    va_end(args);
}
#endif
