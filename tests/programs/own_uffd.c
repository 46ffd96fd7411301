/* A program with a userfaultfd of its own, beside memory that somebody else may manage. */
#include "check.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>

static int own;
static char *room;
static size_t room_pages;
static atomic_ulong served;

static void *serve(void *arg)
{
    char page[PAGE] __attribute__((aligned(4096)));
    struct uffd_msg message;
    while (read(own, &message, sizeof message) == sizeof message) {
        if (message.event != UFFD_EVENT_PAGEFAULT)
            continue;
        uint64_t at = message.arg.pagefault.address & ~(PAGE - 1);
        page_fill(page, (at - (uint64_t)(uintptr_t)room) / PAGE, 8);
        struct uffdio_copy copy = {.dst = at, .src = (uintptr_t)page, .len = PAGE};
        if (ioctl(own, UFFDIO_COPY, &copy) != 0 && errno != EEXIST)
            fail("FAIL own_uffd: UFFDIO_COPY: %s", strerror(errno));
        atomic_fetch_add(&served, 1);
    }
    return arg;
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 64), rounds = arg_of(argc, argv, 2, 4);
    own = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (own < 0) {
        skipped("userfaultfd: %s", strerror(errno));
        return 77;
    }
    struct uffdio_api api = {.api = UFFD_API};
    MUST(ioctl(own, UFFDIO_API, &api) == 0);
    struct ballast b = ballast_new(mib * 3 / 4);
    room_pages = mib * MIB / PAGE / 4;
    room = map_anon(room_pages * PAGE);
    struct uffdio_register range = {.range = {(uintptr_t)room, room_pages * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    MUST(ioctl(own, UFFDIO_REGISTER, &range) == 0);
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, serve, NULL) == 0);
    for (size_t round = 0; round < rounds; round++) {
        for (size_t i = 0; i < room_pages; i++)
            page_check(room + i * PAGE, i, round == 0 || i % 3 ? 8 : 7 + 2 * round, "served by the program itself");
        ballast_push(&b, 100);
        for (size_t i = 0; i < room_pages; i += 3)
            page_fill(room + i * PAGE, i, 9 + 2 * round);
        ballast_push(&b, 100);
    }
    if (atomic_load(&served) != room_pages)
        fail("MISMATCH own_uffd: %lu faults of its own, must be %zu", served, room_pages);
    printf("ok own_uffd %zu pages\n", room_pages);
    return 0;
}
