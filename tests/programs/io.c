/*
 * System calls into and out of memory that is gone: read, write, pread, readv, writev, O_DIRECT, sendfile, a pipe, vmsplice, sockets with passed
 * messages, getrandom, and structures (stat, poll, timespec) that live there.
 */
#include "check.h"
#include <poll.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define SPAN 64
static size_t pages;
static char *base;
static uint32_t *version;
static struct ballast b;

static void refill(size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++)
        page_fill(base + i * PAGE, i, ++version[i]);
}

static void check_span(size_t first, size_t count, const char *when)
{
    for (size_t i = first; i < first + count; i++)
        page_check(base + i * PAGE, i, version[i], when);
}

/* Overwrites a span by a system call with what `from` holds, as if it had been filled here. */
static void through_file(int file, size_t from, size_t to, uint64_t r)
{
    MUST(pwrite(file, base + from * PAGE, SPAN * PAGE, 0) == (ssize_t)(SPAN * PAGE));
    if (r & 1) {
        MUST(lseek(file, 0, SEEK_SET) == 0 && read(file, base + to * PAGE, SPAN * PAGE) == (ssize_t)(SPAN * PAGE));
    } else {
        struct iovec parts[4];
        for (size_t p = 0; p < 4; p++)
            parts[p] = (struct iovec){base + to * PAGE + p * (SPAN / 4) * PAGE, SPAN / 4 * PAGE};
        MUST(preadv(file, parts, 4, 0) == (ssize_t)(SPAN * PAGE));
    }
    for (size_t i = 0; i < SPAN; i++)
        page_check(base + (to + i) * PAGE, from + i, version[from + i], "read from a file");
    refill(to, SPAN);
}

struct pump {
    int in;
    size_t bytes;
};

/* Drains a pipe or socket into memory of its own and checks it there. */
static void *drain(void *arg)
{
    struct pump *p = arg;
    char *room = map_anon(p->bytes);
    size_t got = 0;
    while (got < p->bytes) {
        ssize_t n = read(p->in, room + got, p->bytes - got > 30000 ? 30000 : p->bytes - got);
        MUST(n > 0);
        got += (size_t)n;
    }
    return room;
}

static void through_pipe(size_t from, int how, int file)
{
    int ends[2];
    if (how == 3)
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    else
        MUST(pipe(ends) == 0);
    struct pump p = {ends[0], SPAN * PAGE};
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, drain, &p) == 0);
    size_t sent = 0;
    off_t at = 0;
    if (how == 2)
        MUST(pwrite(file, base + from * PAGE, SPAN * PAGE, 0) == (ssize_t)(SPAN * PAGE));
    while (sent < SPAN * PAGE) {
        struct iovec part = {base + from * PAGE + sent, SPAN * PAGE - sent};
        ssize_t n;
        if (how == 0)
            n = write(ends[1], part.iov_base, part.iov_len);
        else if (how == 1)
            n = vmsplice(ends[1], &part, 1, 0);
        else if (how == 2)
            n = sendfile(ends[1], file, &at, SPAN * PAGE - sent);
        else
            n = sendmsg(ends[1], &(struct msghdr){.msg_iov = &part, .msg_iovlen = 1}, 0);
        MUST(n > 0);
        sent += (size_t)n;
    }
    void *room;
    MUST(pthread_join(thread, &room) == 0);
    for (size_t i = 0; i < SPAN; i++)
        page_check((char *)room + i * PAGE, from + i, version[from + i], how == 1 ? "vmsplice" : how == 2 ? "sendfile" : "a pipe");
    munmap(room, SPAN * PAGE);
    close(ends[0]);
    close(ends[1]);
}

/* Small structures in evicted pages: the kernel writes them in the middle of a system call. */
static void structures(size_t page, int file)
{
    char *at = base + page * PAGE;
    struct stat *info = (struct stat *)(at + 100 * 8);
    MUST(fstat(file, info) == 0 && info->st_size == (off_t)(SPAN * PAGE));
    ballast_push(&b, 3);
    struct timespec *now = (struct timespec *)(at + 200 * 8);
    MUST(clock_gettime(CLOCK_MONOTONIC, now) == 0 && now->tv_nsec < 1000000000);
    struct pollfd *poll_set = (struct pollfd *)(at + 300 * 8);
    *poll_set = (struct pollfd){.fd = file, .events = POLLIN};
    MUST(poll(poll_set, 1, 100) == 1 && poll_set->revents & POLLIN);
    memset(at + 400 * 8, 0, 64);
    MUST(getrandom(at + 400 * 8, 64, 0) == 64);
    strcpy(at + 500 * 8, "/proc/self/status");
    ballast_push(&b, 3);
    int status = open(at + 500 * 8, O_RDONLY);
    MUST(status >= 0 && read(status, at, 600) == 600 && memcmp(at, "Name:", 5) == 0);
    close(status);
    refill(page, 1);
}

static int open_direct(const char *directory)
{
    char path[300];
    snprintf(path, sizeof path, "%s/io-XXXXXX", directory);
    int file = mkostemp(path, O_DIRECT);
    if (file >= 0)
        unlink(path);
    return file;
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96), rounds = arg_of(argc, argv, 2, 4);
    const char *directory = argc > 3 ? argv[3] : getenv("TMPDIR") ? getenv("TMPDIR") : "/var/tmp";
    b = ballast_new(mib / 2);
    pages = mib * MIB / PAGE / 2;
    base = map_anon(pages * PAGE);
    version = calloc(pages, sizeof *version);
    int file = memfd_create("io", MFD_CLOEXEC), direct = open_direct(directory);
    uint64_t state = 23;
    MUST(version != NULL && file >= 0 && ftruncate(file, SPAN * PAGE) == 0);
    if (direct < 0)
        skipped("no O_DIRECT in this directory");
    refill(0, pages);
    for (size_t round = 0; round < rounds; round++) {
        ballast_push(&b, 90);
        for (size_t n = 0; n < 12; n++) {
            uint64_t r = rng_next(&state);
            size_t half = pages / 2 - SPAN, from = (r >> 8) % half, to = pages / 2 + (r >> 30) % half;
            through_file(file, from, to, r);
            through_pipe((from + 777) % half, (int)(n % 4), file);
            structures(to, file);
            if (direct >= 0)
                through_file(direct, (from + 333) % half, to, r >> 1);
            ballast_push(&b, 10);
        }
        check_span(0, pages, "the whole");
    }
    printf("ok io %zu rounds\n", rounds);
    return 0;
}
