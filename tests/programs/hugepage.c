/* Memory under MADV_HUGEPAGE (and under NOHUGEPAGE, and collapsed on demand), in part unmapped, dropped and moved. */
#include "check.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define HUGE (2 * MIB)

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 4);
    struct ballast b = ballast_new(mib / 2);
    size_t pages = mib * MIB / PAGE / 2;
    char *raw = map_anon(pages * PAGE + HUGE);
    char *base = (char *)(((uintptr_t)raw + HUGE - 1) / HUGE * HUGE);
    uint32_t *version = calloc(pages, sizeof *version);
    uint64_t state = 31;
    MUST(version != NULL);
    if (madvise(base, pages * PAGE, MADV_HUGEPAGE) != 0)
        skipped("MADV_HUGEPAGE: %s", strerror(errno));
    for (size_t i = 0; i < pages; i++)
        page_fill(base + i * PAGE, i, version[i] = 1);
    for (size_t round = 0; round < rounds; round++) {
        ballast_push(&b, 100);
        for (size_t n = 0; n < 16; n++) {
            uint64_t r = rng_next(&state);
            size_t first = (r >> 8) % (pages - 1024), length = r & 1 ? 512 : 1 + (r >> 30) % 700;
            if (r & 1)
                first = first / 512 * 512;
            char *at = base + first * PAGE;
            switch (r >> 1 & 3) {
            case 0:
                MUST(madvise(at, length * PAGE, MADV_DONTNEED) == 0);
                for (size_t i = first; i < first + length; i++)
                    version[i] = 0;
                break;
            case 1:
                /* The kernel may refuse for many good reasons. */
                (void)!madvise(at, length * PAGE, MADV_COLLAPSE);
                break;
            case 2:
                (void)!madvise(at, length * PAGE, MADV_NOHUGEPAGE);
                (void)!madvise(at, length * PAGE, MADV_HUGEPAGE);
                break;
            default:
                for (size_t i = first; i < first + length; i++)
                    page_fill(base + i * PAGE, i, ++version[i]);
            }
        }
        for (size_t i = 0; i < pages; i++)
            page_check(base + i * PAGE, i, version[i], "the whole");
    }
    printf("ok hugepage %zu rounds\n", rounds);
    return 0;
}
