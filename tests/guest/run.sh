#!/bin/sh
# A virtual machine with 256 MiB and Debian's own kernel works in 400 MiB and swaps to a tmem disk: once to a disk of QEMU's that
# lies behind NBD, once by the kernel's own NBD client over the network, to a server with --for-swap if we may.
# usage: run.sh [TMEM]     TMEM is the program, target/release/tmem if not given
# Needs qemu-system-x86_64, cc, apt-get (for kernel and busybox, into a temporary directory), nbd-client. ACCELERATION=kvm is faster where it works.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tmem=$(realpath "${1:-$here/../../target/release/tmem}")
dir=$(mktemp -d)
chmod 755 "$dir"
server=
clean() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$dir"
}
trap clean EXIT
trap 'exit 130' INT TERM
cd "$dir"

image=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
apt-get -o APT::Sandbox::User=root download -qq "$image" busybox-static
for package in *.deb; do dpkg -x "$package" unpacked; done
version=$(ls unpacked/lib/modules)
drivers=unpacked/lib/modules/$version/kernel

mkdir -p root/bin root/dev root/proc root/sys root/modules root/lib64 root/lib
cp unpacked/bin/busybox root/bin/
cc -O1 -static -pthread -o root/bin/hotcold "$here/../programs/hotcold.c"
# The same on this machine, by which the guest is judged.
expected=$(root/bin/hotcold 400 2)
modules="virtio/virtio virtio/virtio_ring virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev virtio/virtio_pci block/virtio_blk
    net/core/failover net/net_failover net/virtio_net block/nbd"
for module in $modules; do
    find "$drivers" -path "*/$module.ko*" -exec cp {} root/modules/ \;
done
nbd_client=$(command -v nbd-client || echo /usr/sbin/nbd-client)
cp "$nbd_client" root/bin/nbd-client
ldd "$nbd_client" | grep -o '/[^ )]*' | while read -r library; do
    mkdir -p "root$(dirname "$library")"
    cp "$library" "root$library"
done
cat >root/init <<'INIT'
#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc none /proc; busybox --install -s /bin
mount -t sysfs none /sys; mount -t devtmpfs none /dev
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net nbd; do
    insmod /modules/$module.ko || echo "no $module"
done
if grep -q swap=nbd /proc/cmdline; then
    ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
    port=$(sed 's/.*port=\([0-9]*\).*/\1/' /proc/cmdline)
    nbd-client -swap 10.0.2.2 "$port" /dev/nbd0 && device=/dev/nbd0
else
    device=/dev/vda
fi
mkswap "$device" && swapon "$device" && hotcold 400 2
echo "status $?"
grep -E 'pswp(in|out)|oom_kill ' /proc/vmstat
cat /proc/swaps
echo "guest done"
poweroff -f
INIT
chmod 755 root/init
(cd root && find . | ../unpacked/bin/busybox cpio -o -H newc | gzip -1) >initrd

# KVM is faster, if it works: in a virtual machine it may be there and hang.
acceleration=${ACCELERATION:-tcg}

# boot WORDS QEMU-FLAGS
boot() {
    words=$1
    shift
    timeout 300 qemu-system-x86_64 -machine "accel=$acceleration" -m 256M -smp 1 -nographic -no-reboot -nodefaults -serial stdio \
        -kernel "unpacked/boot/vmlinuz-$version" -initrd initrd -append "console=ttyS0 panic=-1 quiet $words" "$@" \
        </dev/null >console 2>&1 || true
    tr -d '\r' <console
    tr -d '\r' <console | grep -qxF "$expected" && grep -q '^status 0' console && grep -q '^oom_kill 0' console &&
        [ "$(sed -n 's/^pswpout \([0-9]*\).*/\1/p' console)" -gt 10000 ]
}

# serve LISTEN FLAGS: the server is there when this returns
serve() {
    listen=$1
    shift
    "$tmem" disk --size 1G --ram 256M --listen "$listen" "$@" >uri 2>refused &
    server=$!
    for _ in $(seq 50); do
        [ ! -s uri ] || return 0
        kill -0 "$server" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

failed=0
echo "== a disk of QEMU's"
serve "unix:$dir/socket"
boot swap=disk -drive "file=nbd+unix:///?socket=$dir/socket,format=raw,if=virtio,discard=unmap" || failed=1
"$tmem" disk stats "unix:$dir/socket"
kill "$server" && wait "$server" || true
server=

echo "== the kernel's NBD client, over the network"
: >uri
if ! serve 127.0.0.1:0 --for-swap; then
    echo "without --for-swap: $(cat refused)"
    serve 127.0.0.1:0
fi
port=$(sed -n 's#^nbd://[^:]*:\([0-9]*\)/.*#\1#p' uri)
boot "swap=nbd port=$port" -nic user,model=virtio-net-pci || failed=1
"$tmem" disk stats "127.0.0.1:$port"
[ "$failed" = 0 ] && echo "ok guest" || echo "FAILED"
exit "$failed"
