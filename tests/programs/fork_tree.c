/* A tree of forks, three deep, two children each: all write to their own copy at the same time and find what they wrote. */
#include "check.h"

static size_t pages;
static char *base;
static struct ballast b;

/* Every generation rewrites a third of the pages; versions name the path from the root. */
static uint64_t version_of(size_t page, const uint64_t *path, int depth)
{
    for (int d = depth; d > 0; d--)
        if (page % 3 == (size_t)d % 3)
            return path[d];
    return 1;
}

static void check_all(const uint64_t *path, int depth, const char *when)
{
    for (size_t i = 0; i < pages; i++)
        page_check(base + i * PAGE, i, version_of(i, path, depth), when);
}

static void grow(uint64_t *path, int depth, int depth_max)
{
    check_all(path, depth, "after the fork");
    pid_t children[2] = {0, 0};
    if (depth < depth_max)
        for (int c = 0; c < 2; c++) {
            pid_t pid = fork();
            MUST(pid >= 0);
            if (pid == 0) {
                uint64_t mine[8];
                memcpy(mine, path, sizeof mine);
                mine[depth + 1] = path[depth] * 2 + (uint64_t)c + 1;
                for (size_t i = 0; i < pages; i++)
                    if (i % 3 == (size_t)(depth + 1) % 3) {
                        if (i % 2)
                            page_check(base + i * PAGE, i, version_of(i, path, depth), "inherited");
                        page_fill(base + i * PAGE, i, mine[depth + 1]);
                    }
                grow(mine, depth + 1, depth_max);
                _exit(40 + depth);
            }
            children[c] = pid;
        }
    /* The parent writes as well, while the children do, and puts back what was there. */
    for (size_t i = 0; i < pages; i += 5)
        page_fill(base + i * PAGE, i, 900 + (uint64_t)depth);
    ballast_push(&b, 40);
    for (size_t i = 0; i < pages; i += 5) {
        page_check(base + i * PAGE, i, 900 + (uint64_t)depth, "the parent's own");
        page_fill(base + i * PAGE, i, version_of(i, path, depth));
    }
    check_all(path, depth, "beside the children");
    for (int c = 0; c < 2; c++)
        if (children[c] != 0) {
            int status;
            MUST(waitpid(children[c], &status, 0) == children[c]);
            if (!WIFEXITED(status) || WEXITSTATUS(status) != 40 + depth)
                fail("MISMATCH fork_tree: a child at depth %d ended with status %x", depth, status);
        }
    check_all(path, depth, "after the children");
}

int main(int argc, char **argv)
{
    size_t mib = arg_of(argc, argv, 1, 48), rounds = arg_of(argc, argv, 2, 1);
    b = ballast_new(mib / 2);
    pages = mib * MIB / PAGE / 2;
    base = map_anon(pages * PAGE);
    range_fill(base, pages, 0, 1);
    ballast_push(&b, 100);
    for (size_t round = 0; round < rounds; round++) {
        uint64_t path[8] = {1};
        grow(path, 0, 3);
    }
    printf("ok fork_tree depth 3\n");
    return 0;
}
