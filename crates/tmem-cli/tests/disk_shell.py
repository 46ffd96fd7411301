"""For nbdsh -n -c: what libnbd offers to scripts, on a disk of 64 MiB that is empty. $DISK is its address."""

import errno
import os
import random

import nbd

SIZE = 64 << 20
uri = os.environ["DISK"]


def connect(structured=True, handshake=nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE | nbd.HANDSHAKE_FLAG_NO_ZEROES):
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    handle.set_handshake_flags(handshake)
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    # What makes no sense is sent all the same.
    handle.set_strict_mode(0)
    handle.connect_uri(uri)
    return handle


def refused(wanted, command):
    try:
        command()
    except nbd.Error as error:
        assert error.errnum == wanted, (error.errnum, wanted)
    else:
        raise AssertionError(f"not refused with {wanted}")


def wait_for(handle, cookies):
    for cookie in cookies:
        while not handle.aio_command_completed(cookie):
            handle.poll(-1)


many, simple, old = connect(), connect(structured=False), connect(handshake=0)
for handle in (many, simple, old):
    assert handle.get_size() == SIZE and handle.can_multi_conn() and not handle.is_read_only()
assert many.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
assert not simple.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)

# 300 commands in flight, answered in any order; what one connection wrote, the others read.
random.seed(1)
places = random.sample(range(SIZE // 8192), 300)
contents = {place: bytearray(random.choices(b"memory", k=8000 + place % 192)) for place in places}
writes = [many.aio_pwrite(nbd.Buffer.from_bytearray(data), place * 8192) for place, data in contents.items()]
wait_for(many, writes)
reads = {place: nbd.Buffer(len(data)) for place, data in contents.items()}
wait_for(simple, [simple.aio_pread(buffer, place * 8192) for place, buffer in reads.items()])
for place, data in contents.items():
    assert reads[place].to_bytearray() == data
    assert old.pread(len(data), place * 8192) == data

# What is stored, before and after trims, zeroes and writes of zeroes that keep their room.
def extents(offset, count):
    found = []
    many.block_status(count, offset, lambda context, at, entries, error: found.extend(entries))
    return [(found[i], found[i + 1]) for i in range(0, len(found), 2)]


many.trim(SIZE, 0)
assert extents(0, SIZE) == [(SIZE, 3)]
many.pwrite(b"x" * 8192, 8192)
many.zero(4096, 32768, nbd.CMD_FLAG_NO_HOLE)
assert extents(0, 65536) == [(8192, 3), (8192, 0), (16384, 3), (4096, 0), (28672, 3)]
many.zero(SIZE, 0, nbd.CMD_FLAG_FAST_ZERO)
assert extents(0, 65536) == [(65536, 3)]
many.flush()
many.cache(1 << 20, 0)

# Chunks: a hole is told as one.
chunks = []
many.pwrite(b"y" * 4096, 65536)
many.pread_structured(131072, 0, lambda data, at, status, error: chunks.append((len(data), at, status)))
assert (65536, 0, nbd.READ_HOLE) in chunks and sum(length for length, _, _ in chunks) == 131072, chunks
assert len(many.pread(4096, 0, nbd.CMD_FLAG_DF)) == 4096

# What makes no sense is refused, and the connection goes on.
refused(errno.EINVAL, lambda: many.pread(4096, SIZE))
refused(errno.ENOSPC, lambda: many.pwrite(b"z" * 4096, SIZE - 100))
refused(errno.EOVERFLOW, lambda: many.pread(65537, 0, nbd.CMD_FLAG_DF))
refused(errno.EINVAL, lambda: simple.pread(4096, 0, nbd.CMD_FLAG_DF))
assert many.pread(1, SIZE - 1) == b"\0"
for handle in (many, simple, old):
    handle.shutdown()
print("all is well")
