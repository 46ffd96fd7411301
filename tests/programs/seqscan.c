/* Reads everything in order again and again, the worst case of every LRU; rewrites a stripe in each round. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t pages = arg_of(argc, argv, 1, 96) * MIB / PAGE, rounds = arg_of(argc, argv, 2, 6);
    char *base = map_anon(pages * PAGE);
    uint32_t *version = versions_filled(base, pages);
    uint64_t sum = 0;
    for (size_t round = 0; round < rounds; round++)
        for (size_t n = 0; n < pages; n++) {
            size_t i = round % 3 == 2 ? pages - 1 - n : n;
            page_check(base + i * PAGE, i, version[i], "scan");
            sum = sum * 31 + ((uint64_t *)(base + i * PAGE))[9];
            if (i % 8 == round % 8)
                page_fill(base + i * PAGE, i, ++version[i]);
        }
    printf("ok seqscan %zu pages checksum %016llx\n", pages, (unsigned long long)sum);
    return 0;
}
