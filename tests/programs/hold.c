// Holds memory of known kinds and waits: MIB of zeros that were written, of noise, of one page repeated, and of text; besides as much
// that was never touched and as much that was only read, both of which take no memory.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned char *map(size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) exit(3);
    madvise(at, bytes, MADV_NOHUGEPAGE);
    return at;
}

int main(int argc, char **argv) {
    size_t bytes = (size_t)(argc > 1 ? atoi(argv[1]) : 8) << 20;
    unsigned char *zeros = map(bytes), *noise = map(bytes), *same = map(bytes), *text = map(bytes), *seen = map(bytes);
    map(bytes);
    uint64_t state = 1;
    unsigned sum = 0;
    for (size_t at = 0; at < bytes; at += 4096) {
        ((volatile unsigned char *)zeros)[at] = 0;
        sum += ((volatile unsigned char *)seen)[at];
        memset(same + at, 'x', 4096);
        memcpy(same + at, "not one word", 12);
        for (size_t word = 0; word < 4096; word += 8) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            uint64_t mixed = (state ^ state >> 29) * 0x9e3779b97f4a7c15u;
            memcpy(noise + at + word, &mixed, 8);
        }
        for (size_t line = 0; line < 4096; line += 64) {
            snprintf((char *)text + at + line, 64, "record %zu of page %zu: the quick brown fox %llx", line / 64, at / 4096, (unsigned long long)(state >> 40));
        }
    }
    printf("ready %u\n", sum);
    fflush(stdout);
    pause();
    return 0;
}
