#!/bin/sh
# The source launcher of a default JVM: compiles Heap.java in memory and runs it.
# usage: java.sh [MIB]     MIB is roughly how much stays alive; the JVM takes a good deal more
set -eu
exec java "$(dirname "$0")/Heap.java" "${1:-100}"
