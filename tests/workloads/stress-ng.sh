#!/bin/sh
# Two memory testers of stress-ng with verification, all their methods; the exit status says whether a bit was wrong.
# usage: stress-ng.sh [MIB] [SECONDS]     MIB is what both use together
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
stress-ng --quiet --temp-path "$dir" --vm 2 --vm-bytes "${1:-512}M" --vm-method all --verify --timeout "${2:-10}s" --no-rand-seed
echo "stress-ng ended with status $?"
