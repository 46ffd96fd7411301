#!/bin/sh
# Four threads that allocate and free under jemalloc, which purges with MADV_DONTNEED and MADV_FREE all the time.
# usage: jemalloc.sh [MIB]     MIB is roughly the native peak
set -eu
here=$(dirname "$0")
for lib in /usr/lib/*/libjemalloc.so.2 /usr/lib64/libjemalloc.so.2; do test -e "$lib" && break; done
test -e "$lib" || { echo "libjemalloc.so.2 is not installed"; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cc -O1 -pthread -o "$dir/churn" "$here/../programs/malloc_churn.c"
LD_PRELOAD=$lib MALLOC_CONF="dirty_decay_ms:20,muzzy_decay_ms:40,background_thread:true" "$dir/churn" "${1:-150}" 40
