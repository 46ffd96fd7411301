#!/bin/sh
# memtester over MIB; prints how many of its tests say ok and its exit status. It locks its memory if it may, and locked memory is not
# evicted; "unlocked" takes that permission away first, so that the tester runs on memory that comes and goes.
# usage: memtester.sh [MIB] [locked|unlocked]
set -eu
if [ "${2:-unlocked}" = unlocked ]; then
    ulimit -l 0
    if [ "$(id -u)" = 0 ]; then
        set -- "${1:-128}" setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock
    else
        set -- "${1:-128}" env
    fi
else
    set -- "${1:-128}" env
fi
mib=$1
shift
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
status=0
"$@" memtester "${mib}M" 1 >"$dir/out" || status=$?
tr '\b' '\n' <"$dir/out" | grep -E 'FAILURE|unlocked' || :
echo "$(grep -c 'ok$' "$dir/out") tests ok, status $status"
exit "$status"
