#!/bin/sh
# The source launcher of a default JVM: compiles Heap.java in memory and runs it.
# usage: java.sh [MIB [JVM_OPTION...]]     MIB is roughly how much stays alive; the JVM takes a good deal more.
set -eu
mib=${1:-100}
test $# -eq 0 || shift
exec java "$@" "$(dirname "$0")/Heap.java" "$mib"
