#!/bin/sh
# g++ -O2 on a file full of templates; prints the checksum of the assembly it makes.
# usage: gxx.sh [DEPTH]     how many stages are instantiated
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cp "$(dirname "$0")/templates.cpp" "$dir/templates.cpp"
cd "$dir"
g++ -std=c++17 -O2 -pipe -DDEPTH="${1:-14}" -S -o templates.s templates.cpp
cksum <templates.s
