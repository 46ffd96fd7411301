#!/bin/sh
# The source launcher of a default JVM: compiles Heap.java in memory and runs it.
# usage: java.sh [MIB [HEAP_MIB]]     MIB is roughly how much stays alive; the JVM takes a good deal more.
# With HEAP_MIB the heap has that limit, instead of a part of the memory that the JVM thinks it has.
set -eu
exec java ${2:+"-Xmx${2}m"} "$(dirname "$0")/Heap.java" "${1:-100}"
