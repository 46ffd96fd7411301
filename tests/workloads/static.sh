#!/bin/sh
# A statically linked C program: random reads and writes with a hot and a cold part, every page checked.
# usage: static.sh [MIB]     MIB is roughly the native peak
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cc -O1 -static -pthread -o "$dir/hotcold" "$(dirname "$0")/../programs/hotcold.c"
"$dir/hotcold" "${1:-150}" 40
