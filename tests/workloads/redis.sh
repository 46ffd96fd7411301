#!/bin/sh
# A redis-server of its own (unix socket, nothing on disk but a snapshot in a temporary directory): fills it, checks what
# it holds, runs redis-benchmark beside it, forks a snapshot, reloads it, checks again.
# usage: redis.sh [MIB]     MIB is roughly the native peak
set -eu
mib=${1:-150}
keys=$((mib * 700))
dir=$(mktemp -d)
sock=$dir/redis.sock
server=
trap 'test -z "$server" || kill "$server" 2>/dev/null || :; wait; rm -rf "$dir"' EXIT
redis-server --port 0 --unixsocket "$sock" --dir "$dir" --save '' --appendonly no --daemonize no \
    --enable-debug-command yes --logfile "$dir/log" &
server=$!
cli() { redis-cli -s "$sock" "$@"; }
tries=0
until cli ping >/dev/null 2>&1; do
    tries=$((tries + 1))
    test $tries -lt 200 || { echo "redis-server does not answer"; cat "$dir/log"; exit 1; }
    sleep 0.05
done

# Text values of 200 to 1400 bytes, and small hashes.
awk -v keys="$keys" 'BEGIN {
    for (i = 0; i < 90; i++) text = text sprintf("field%d=value-%d;", i * 7919 % 1000, i * 104729);
    for (i = 0; i < keys; i++) {
        if (i % 5 == 4) printf "HSET hash:%d name user-%d score %d note %s\r\n", i, i, i * 31 % 1009, substr(text, 1 + i % 89, 300);
        else printf "SET key:%d %d-%s\r\n", i, i * 7919 % 1000003, substr(text, 1 + i % 97, 200 + (i * 37) % 1200);
    }
}' | cli --pipe | tail -1

filled=$(cli debug digest)
echo "keys $(cli dbsize) digest $filled"
# Somebody else's load, in another data base, removed again.
redis-benchmark -s "$sock" --dbnum 1 -q -n $((keys / 2)) -r "$keys" -d 200 -c 8 -t set,get,lpush,hset >/dev/null
cli -n 1 flushdb >/dev/null
test "$(cli debug digest)" = "$filled" || { echo "contents changed under redis-benchmark"; exit 1; }

# A snapshot by a forked child while the parent goes on writing.
cli bgsave >/dev/null
awk -v keys="$keys" 'BEGIN { for (i = 0; i < keys; i += 7) if (i % 5 != 4) printf "APPEND key:%d -appended-%d\r\n", i, i }' | cli --pipe | tail -1
while cli info persistence | grep -q '^rdb_bgsave_in_progress:1'; do sleep 0.05; done
cli info persistence | tr -d '\r' | grep '^rdb_last_bgsave_status'
changed=$(cli debug digest)
cli debug reload >/dev/null
test "$(cli debug digest)" = "$changed" || { echo "contents changed over a reload"; exit 1; }
echo "keys $(cli dbsize) digest $changed"
awk -v keys="$keys" 'BEGIN { for (i = 0; i < keys; i += 3) printf i % 5 == 4 ? "HMGET hash:%d name score note\n" : "GET key:%d\n", i }' | cli | cksum
cli shutdown nosave >/dev/null 2>&1 || :
wait "$server"
server=
echo "redis-server ended with status $?"
