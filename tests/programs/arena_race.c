/*
 * Threads that map, fill, check and give back memory at the same addresses, as the arenas of an allocator do: whoever takes a slot must
 * read zeros there, whoever holds one must find what it wrote. Some slots are unmapped, some only dropped, and some come
 * back by the kernel's own choice of address.
 */
#include "check.h"

#define THREADS 6
#define SLOT_PAGES 96
static char *arena;
static size_t slots, rounds;
static atomic_int *taken;
static struct ballast shared_ballast;

static void *run(void *arg)
{
    uint64_t me = (uintptr_t)arg, state = me * 77, checked = 0;
    enum { HELD = 24 };
    size_t held[HELD];
    uint64_t versions[HELD];
    for (int i = 0; i < HELD; i++)
        held[i] = SIZE_MAX;
    for (size_t step = 0; step < rounds * 400; step++) {
        uint64_t r = rng_next(&state);
        size_t mine = r % HELD;
        if (held[mine] != SIZE_MAX) {
            char *at = arena + held[mine] * SLOT_PAGES * PAGE;
            size_t part = 1 + (r >> 10) % SLOT_PAGES;
            range_check(at, part, held[mine] * SLOT_PAGES, versions[mine], "a held slot");
            checked += part;
            if (r & 256)
                continue;
            /* The rest of the slot is dropped unread. */
            if (r & 512)
                MUST(madvise(at, SLOT_PAGES * PAGE, MADV_DONTNEED) == 0);
            else
                MUST(mmap(at, SLOT_PAGES * PAGE, r & 1024 ? PROT_READ | PROT_WRITE : PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == at);
            atomic_store(&taken[held[mine]], 0);
            held[mine] = SIZE_MAX;
        } else {
            size_t slot = (r >> 12) % slots;
            int zero = 0;
            if (!atomic_compare_exchange_strong(&taken[slot], &zero, 1))
                continue;
            char *at = arena + slot * SLOT_PAGES * PAGE;
            MUST(mprotect(at, SLOT_PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
            size_t look = (r >> 32) % SLOT_PAGES;
            page_check(at + look * PAGE, 0, 0, "a fresh slot");
            if (r & 512)
                range_check(at, SLOT_PAGES, 0, 0, "a whole fresh slot");
            held[mine] = slot;
            versions[mine] = step + 1 + me * 1000000;
            range_fill(at, SLOT_PAGES, slot * SLOT_PAGES, versions[mine]);
        }
        if (step % 8 == 0) {
            size_t pages = SLOT_PAGES / 2;
            char *own = map_anon(pages * PAGE);
            range_check(own, pages, 0, 0, "a mapping of the kernel's choice");
            range_fill(own, pages, me, step + 1);
            size_t at = (r >> 24) % shared_ballast.pages;
            for (size_t i = 0; i < 64; i++, at = (at + 1) % shared_ballast.pages)
                page_check(shared_ballast.base + at * PAGE, (1u << 30) + at, 1, "ballast");
            range_check(own, pages, me, step + 1, "a mapping of the kernel's choice, later");
            MUST(munmap(own, pages * PAGE) == 0);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 96);
    rounds = arg_of(argc, argv, 2, 4);
    slots = mib * MIB / 2 / PAGE / SLOT_PAGES;
    shared_ballast = ballast_new(mib / 2);
    arena = map_anon(slots * SLOT_PAGES * PAGE);
    taken = calloc(slots, sizeof *taken);
    MUST(taken != NULL);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], NULL, run, (void *)(i + 1)) == 0);
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_join(threads[i], NULL) == 0);
    printf("ok arena_race %d threads\n", THREADS);
    return 0;
}
