/* MADV_DONTNEED reads zeros afterwards; MADV_FREE reads old or zero until it is written, then what was written; the rest harms nothing. */
#include "check.h"

#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* After MADV_FREE a page is either as it was or zero, not a mixture of both. */
static void old_or_zero(const char *page, uint64_t number, uint64_t version)
{
    const volatile uint64_t *words = (const volatile uint64_t *)page;
    size_t zeros = 0, olds = 0;
    for (size_t at = 0; at < WORDS; at++) {
        uint64_t is = words[at];
        zeros += is == 0;
        olds += is == word_of(number, version, at);
    }
    if (zeros != WORDS && olds != WORDS)
        fail("MISMATCH after MADV_FREE: page %llu is neither old (%zu) nor zero (%zu)", (unsigned long long)number, olds, zeros);
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 6);
    struct ballast b = ballast_new(mib / 2);
    size_t pages = mib * MIB / PAGE / 2;
    char *base = map_anon(pages * PAGE);
    uint32_t *version = versions_filled(base, pages);
    uint64_t state = 11;
    for (size_t round = 0; round < rounds; round++) {
        ballast_push(&b, 90);
        for (size_t n = 0; n < 60; n++) {
            uint64_t r = rng_next(&state);
            size_t length = 1 + (n % 3 == 0 ? (r >> 4) % 1200 : (r >> 4) % 30), first = (r >> 20) % (pages - length);
            char *at = base + first * PAGE;
            switch (r % 7) {
            case 0:
            case 1:
                MUST(madvise(at, length * PAGE, MADV_DONTNEED) == 0);
                for (size_t i = first; i < first + length; i++) {
                    version[i] = 0;
                    if (r & 4096)
                        page_check(base + i * PAGE, i, 0, "right after DONTNEED");
                }
                break;
            case 2:
            case 3:
                MUST(madvise(at, length * PAGE, MADV_FREE) == 0);
                if (r & 4096)
                    ballast_push(&b, 2);
                for (size_t i = first; i < first + length; i++) {
                    old_or_zero(base + i * PAGE, i, version[i]);
                    page_fill(base + i * PAGE, i, ++version[i]);
                }
                break;
            case 4:
                if (madvise(at, length * PAGE, r & 4096 ? MADV_COLD : MADV_PAGEOUT) != 0)
                    MUST(errno == EINVAL);
                break;
            case 5:
                if (madvise(at, length * PAGE, r & 4096 ? MADV_POPULATE_READ : MADV_POPULATE_WRITE) != 0)
                    MUST(errno == EINVAL);
                break;
            default:
                MUST(madvise(at, length * PAGE, r & 4096 ? MADV_WILLNEED : MADV_SEQUENTIAL) == 0);
            }
        }
        for (size_t i = 0; i < pages; i++) {
            page_check(base + i * PAGE, i, version[i], "the whole");
            if ((i + round) % 5 == 0)
                page_fill(base + i * PAGE, i, ++version[i]);
        }
    }
    printf("ok advice %zu rounds\n", rounds);
    return 0;
}
