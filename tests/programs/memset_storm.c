/* Fresh memory filled as fast as memset goes, with data that compresses; then one look at every page. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 4096), threads_wanted = arg_of(argc, argv, 2, 1);
    size_t bytes = mib * MIB;
    char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(base != MAP_FAILED && threads_wanted > 0);
    for (size_t at = 0; at < bytes; at += MIB) {
        memset(base + at, (int)(at / MIB % 251) + 1, MIB);
        /* Not the same byte all over: every page has its number in it. */
        for (size_t p = 0; p < MIB; p += PAGE)
            *(uint64_t *)(base + at + p + 128) = (at + p) / PAGE;
    }
    for (size_t p = 0; p < bytes; p += PAGE) {
        unsigned char want = (unsigned char)(p / MIB % 251 + 1);
        const unsigned char *page = (const unsigned char *)base + p;
        if (page[0] != want || page[PAGE - 1] != want || page[2000] != want || *(const uint64_t *)(page + 128) != p / PAGE)
            fail("MISMATCH memset_storm: page %zu holds %02x %02x and number %llu", p / PAGE, page[0], page[PAGE - 1],
                 (unsigned long long)*(const uint64_t *)(page + 128));
    }
    printf("ok memset_storm %zu MiB\n", mib);
    return 0;
}
