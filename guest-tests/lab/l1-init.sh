#!/bin/busybox sh
# Init of L1. Mounts, modules and channels, then the one program of this run, then power-off.
# Channels are virtio-serial ports: lab.ctl (a line per event), lab.out and lab.err (the program's), lab.files (a tar of /out).
# /lab/settings sets: limit (seconds), interactive (empty or 1), rows, columns.
if [ "${1:-}" != moved ]; then
    # Nobody can pivot away from the root that an initramfs is, as passt does. A mount of it is a root like any other.
    /bin/busybox mkdir /root.d
    /bin/busybox mount --bind / /root.d
    cd /root.d || exit
    /bin/busybox mount --move . /
    exec /bin/busybox chroot . /init moved
fi
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/root TERM=linux USER=root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run /tmp /root /out /var/log
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t debugfs debug /sys/kernel/debug
ln -s /run /var/run
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
hostname lab
ifconfig lo up
for module in $(cat /lab/modules/order); do
    insmod "/lab/modules/$module.ko" || echo "lab: module $module does not load"
done
. /lab/settings

# Drives have Debian images, each in a file system with room beside it: /disk/N/NAME.img. The system on the first is L1's own, to be read
# only, at /tools: `tools PROGRAM` runs what L1 has no build of. The tests take the others, /disk/debian.img is the first of them.
number=0
for drive in /dev/vd?; do
    [ -b "$drive" ] || break
    mkdir -p "/disk/$number"
    mount -t ext4 "$drive" "/disk/$number"
    number=$((number + 1))
done
if [ "$number" -gt 0 ]; then
    mkdir /tools
    losetup -r -o 1048576 /dev/loop7 /disk/0/*.img
    mount -t ext4 -o ro /dev/loop7 /tools
    for folder in dev proc sys tmp run; do mount --bind "/$folder" "/tools/$folder"; done
    mount --rbind /disk /tools/media
    ln -s "$(ls /disk/1/*.img | head -n 1)" /disk/debian.img
    printf '#!/bin/sh\nexec chroot /tools /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"\n' >/usr/bin/tools
    chmod 755 /usr/bin/tools
fi

port() {
    for p in /sys/class/virtio-ports/*; do
        [ "$(cat "$p/name")" = "$1" ] && echo "/dev/${p##*/}"
    done
}
exec 9<>"$(port lab.ctl)"
echo up >&9
(while :; do echo beat; sleep 1; done >&9) &
# The host's end closes when the lab is killed; nobody is left to work for then.
(cat <&9 >/dev/null; poweroff -f) &

# Two fifos between the program and its ports: a port takes one opener only, and programs do open /dev/stderr.
mkfifo /lab/out /lab/err
cat /lab/out >"$(port lab.out)" 9>&- &
cat /lab/err >"$(port lab.err)" 9>&- &
exec 7>/lab/out 8>/lab/err
cd /root || exit

if [ -n "$interactive" ]; then
    stty -F /dev/hvc0 rows "$rows" cols "$columns"
    setsid -c sh /lab/start </dev/hvc0 >/dev/hvc0 2>&1 9>&- 7>&- 8>&-
    status=$?
else
    # Descriptor 9 stays open for a runner that reports test by test.
    sh /lab/start </dev/null >&7 2>&8 7>&- 8>&- &
    program=$!
    (sleep "$limit"; echo timeout >&9; kill -9 "$program") &
    wait "$program"
    status=$?
fi

# What the program left running may still write; only what came before this mark counts.
printf '\036end\036' >&7
printf '\036end\036' >&8
[ -z "$(ls -A /out)" ] || tar -C /out -cf "$(port lab.files)" .
echo "exit $status" >&9
sleep 0.2
poweroff -f
