#!/bin/sh
# seq | shuf | sort, all of it in memory; prints the checksum of the sorted lines.
# usage: sort.sh [MIB]     MIB is roughly the native peak of the whole pipeline
set -eu
mib=${1:-200}
export LC_ALL=C
# A line of shuf costs about 9 + 8 bytes, one of sort 9 + 32; both are in memory at once for a while.
lines=$((mib * 14500))
seq 10000000 $((10000000 + lines - 1)) | shuf | sort -S "$((mib * 4))M" | cksum
