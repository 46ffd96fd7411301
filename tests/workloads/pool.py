"""multiprocessing (fork and Pool) and subprocess over memory the parent holds; prints checksums.

usage: pool.py [MIB]     MIB is roughly the native peak of the whole tree

The children inherit the parent's data, read all of it, write to part of it, and answer with a checksum; the parent
then checks that its own copy did not change.
"""
import hashlib
import multiprocessing
import subprocess
import sys

MIB = int(sys.argv[1]) if len(sys.argv) > 1 else 160
BLOCK = 64 * 1024
BLOCKS = MIB * 1024 * 1024 * 4 // BLOCK // 9


def block_of(number, version=0):
    """A block that is half text and half hash output, different for every number and version."""
    seed = f"{number}/{version}".encode()
    text = (seed + b" the quick brown fox ") * (BLOCK // 64)
    noise = hashlib.shake_128(seed).digest(BLOCK // 4)
    return bytearray((text + noise)[:BLOCK].ljust(BLOCK, b"\0"))


blocks = [block_of(number) for number in range(BLOCKS)]


def digest_of(rows):
    state = hashlib.sha256()
    for row in rows:
        state.update(row)
    return state.hexdigest()[:16]


def work(part):
    """Reads one quarter of what was inherited and rewrites it in the child only."""
    mine = range(part, BLOCKS, 4)
    before = digest_of(blocks[number] for number in mine)
    for number in mine:
        blocks[number][:] = block_of(number, version=part + 1)
    after = digest_of(blocks[number] for number in mine)
    for number in mine:
        assert blocks[number] == block_of(number, version=part + 1), number
        blocks[number][:] = block_of(number)
    return part, before, after


def main():
    whole = digest_of(blocks)
    print("parent", BLOCKS, whole)
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        for part, before, after in pool.map(work, range(4), chunksize=1):
            print("pool", part, before, after)
    child = context.Process(target=work, args=(3,))
    child.start()
    child.join()
    print("fork", child.exitcode)
    assert digest_of(blocks) == whole
    code = "import sys; d = sys.stdin.buffer.read(); print(len(d), sum(d[::97]))"
    done = subprocess.run([sys.executable, "-c", code], input=b"".join(blocks[: BLOCKS // 2]), capture_output=True, check=True)
    print("subprocess", done.returncode, done.stdout.decode().strip())
    assert digest_of(blocks) == whole
    for number, block in enumerate(blocks):
        assert block == block_of(number), number
    print("parent again", digest_of(blocks))


if __name__ == "__main__":
    main()
