/* io_uring by raw system calls: reads and writes of evicted buffers, in flight while the program goes on, and registered (pinned) buffers. */
#include "check.h"
#include <linux/io_uring.h>
#include <sys/uio.h>

#define DEPTH 16
#define SPAN 32

static int ring;
static unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;

static int ring_open(void)
{
    struct io_uring_params p = {0};
    ring = (int)syscall(SYS_io_uring_setup, DEPTH, &p);
    if (ring < 0)
        return -1;
    size_t sq_bytes = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    size_t cq_bytes = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *sq = mmap(NULL, sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
    sqes = mmap(NULL, p.sq_entries * sizeof *sqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    MUST(sq != MAP_FAILED && cq != MAP_FAILED && (void *)sqes != MAP_FAILED);
    sq_tail = (unsigned *)(sq + p.sq_off.tail);
    sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
    sq_array = (unsigned *)(sq + p.sq_off.array);
    cq_head = (unsigned *)(cq + p.cq_off.head);
    cq_tail = (unsigned *)(cq + p.cq_off.tail);
    cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
    cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
    return 0;
}

static void submit(int op, int file, void *buffer, size_t bytes, off_t offset, int fixed)
{
    unsigned tail = *sq_tail, slot = tail & *sq_mask;
    sqes[slot] = (struct io_uring_sqe){.opcode = (uint8_t)op, .fd = file, .addr = (uintptr_t)buffer, .len = (uint32_t)bytes,
                                       .off = (uint64_t)offset, .user_data = bytes, .buf_index = (uint16_t)fixed};
    sq_array[slot] = slot;
    __atomic_store_n(sq_tail, tail + 1, __ATOMIC_RELEASE);
    MUST(syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0) == 1);
}

static void wait_for(unsigned count)
{
    while (count > 0) {
        if (__atomic_load_n(cq_tail, __ATOMIC_ACQUIRE) == *cq_head)
            MUST(syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) >= 0 || errno == EINTR);
        while (count > 0 && __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE) != *cq_head) {
            struct io_uring_cqe *done = &cqes[*cq_head & *cq_mask];
            if (done->res != (int)done->user_data)
                fail("MISMATCH uring: an operation of %llu bytes says %d", (unsigned long long)done->user_data, done->res);
            __atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
            count--;
        }
    }
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 4);
    const char *directory = argc > 3 ? argv[3] : getenv("TMPDIR") ? getenv("TMPDIR") : "/var/tmp";
    if (ring_open() != 0) {
        skipped("io_uring_setup: %s", strerror(errno));
        return 77;
    }
    char path[300];
    snprintf(path, sizeof path, "%s/uring-XXXXXX", directory);
    int file = mkostemp(path, O_DIRECT);
    if (file < 0)
        file = mkostemp(strcpy(path, "/tmp/uring-XXXXXX"), 0);
    MUST(file >= 0 && unlink(path) == 0);
    struct ballast b = ballast_new(mib / 2);
    size_t pages = mib * MIB / PAGE / 2, spans = pages / SPAN;
    char *base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, 1);
    char *pinned = map_anon(SPAN * PAGE);
    struct iovec registered = {pinned, SPAN * PAGE};
    int have_fixed = syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &registered, 1) == 0;
    uint64_t state = 29;
    for (size_t round = 1; round <= rounds; round++) {
        ballast_push(&b, 90);
        for (size_t n = 0; n < 12; n++) {
            /* Eight writes from evicted spans in flight at once, then eight reads into other evicted ones. */
            size_t from[8];
            for (size_t i = 0; i < 8; i++) {
                from[i] = rng_next(&state) % (spans / 2);
                submit(IORING_OP_WRITE, file, base + from[i] * SPAN * PAGE, SPAN * PAGE, (off_t)(i * SPAN * PAGE), 0);
            }
            ballast_push(&b, 5);
            wait_for(8);
            size_t to = spans / 2 + rng_next(&state) % (spans / 2 - 8);
            for (size_t i = 0; i < 8; i++)
                submit(IORING_OP_READ, file, base + (to + i) * SPAN * PAGE, SPAN * PAGE, (off_t)(i * SPAN * PAGE), 0);
            ballast_push(&b, 5);
            wait_for(8);
            for (size_t i = 0; i < 8; i++) {
                range_check(base + (to + i) * SPAN * PAGE, SPAN, from[i] * SPAN, round, "read by io_uring");
                range_fill(base + (to + i) * SPAN * PAGE, SPAN, (to + i) * SPAN, round);
            }
            if (have_fixed) {
                range_fill(pinned, SPAN, 5, n + 1);
                ballast_push(&b, 10);
                submit(IORING_OP_WRITE_FIXED, file, pinned, SPAN * PAGE, 0, 0);
                wait_for(1);
                range_fill(pinned, SPAN, 0, 0);
                ballast_push(&b, 10);
                submit(IORING_OP_READ_FIXED, file, pinned, SPAN * PAGE, 0, 0);
                wait_for(1);
                range_check(pinned, SPAN, 5, n + 1, "a registered buffer");
            }
        }
        range_check(base, pages, 0, round, "the whole");
        range_fill(base, pages, 0, round + 1);
    }
    printf("ok uring %zu rounds\n", rounds);
    return 0;
}
