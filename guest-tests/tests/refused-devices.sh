# refused-devices.sh IMAGE: devices that cannot be had, for a guest that runs. Each gives one clear line and status 1 (create: 3), and leaves the store,
# the process's descriptors and the guest as they were.
. /lab/tests/lib-devices.sh
take_disk "$1"
folder=${disk%/*}
truncate -s 16M "$folder/good.img"
lan
box g
id=$(xlr domid g)
pid=$(pidof xen-emu)
nodes() { /debian/bin/xenstore-ls -f / | grep -v '^/tool/xenstored' | sort; }
count() { ls /proc/"$pid"/fd | wc -l; ls /proc/"$pid"/task | wc -l; xlr describe g evtchn | head -n 1; ls /sys/class/net; }
nodes >nodes-before
count >count-before

same() {
    count >count-now
    cmp -s count-before count-now
}
# refused STATUS PATTERN COMMAND...
refused() {
    want_status=$1 pattern=$2
    shift 2
    "$@" </dev/null >stdout 2>err
    status=$?
    grep -v '^Parsing config' err >complaint
    echo "== $* -> $status: $(cat complaint)"
    [ "$status" = "$want_status" ] || fail "$*: status $status, not $want_status"
    [ "$(wc -l <complaint)" = 1 ] || fail "$*: not one line of complaint"
    want complaint "$pattern" "$*: the complaint has not \"$pattern\""
    nodes >nodes-now
    cmp -s nodes-before nodes-now || { diff nodes-before nodes-now; fail "$*: the store has changed"; }
    until_true 30 same || { diff count-before count-now; ls -l /proc/"$pid"/fd; fail "$*: the process has changed"; }
    [ "$(pidof xen-emu)" = "$pid" ] || fail "$*: a process is left"
}
attach() { refused 1 "$1" xlr block-attach g "$2"; }

attach "$folder/nowhere.img: No such file" "$folder/nowhere.img,raw,xvdb,rw"
attach "$folder is a directory" "$folder,raw,xvdb,rw"
attach '/dev/null is neither' '/dev/null,raw,xvdb,rw'
attach 'vhd images are not supported' "$folder/good.img,vhd,xvdb,rw"
attach 'unknown format `qcow9' "format=qcow9,vdev=xvdb,target=$folder/good.img"
attach 'xvdzzzzz' "$folder/good.img,raw,xvdzzzzz,rw"
attach 'no vdev' "$folder/good.img"
attach 'vdev xvda is taken' "$folder/good.img,raw,xvda,rw"
attach 'is no qcow2 image' "$folder/good.img,qcow2,xvdb,rw"

# A block device that a file system is mounted from, which has no lock.
tools mke2fs -q -t ext4 -F "/media${folder#/disk}/good.img" || fail 'mke2fs fails'
losetup /dev/loop5 "$folder/good.img" && mkdir -p mounted && mount -o ro /dev/loop5 mounted || fail 'no file system mounted'
attach '/dev/loop5 is in use by this host: .*mounted' '/dev/loop5,raw,xvdb,rw'
umount mounted
losetup -d /dev/loop5

# qcow2: a header and nothing behind it, a table out of the file, a backing file that is not there, one that is the image itself.
qemu_img() { tools qemu-img "$@" || fail "qemu-img $1 fails"; }
m=/media${folder#/disk}
qemu_img create -q -f qcow2 "$m/short.qcow2" 16M
truncate -s 100 "$folder/short.qcow2"
attach 'short.qcow2' "$folder/short.qcow2,qcow2,xvdb,rw"
qemu_img create -q -f qcow2 "$m/table.qcow2" 16M
printf '\377\377\377\377' | dd of="$folder/table.qcow2" bs=1 seek=40 conv=notrunc 2>/dev/null
attach 'table.qcow2' "$folder/table.qcow2,qcow2,xvdb,rw"
qemu_img create -q -f qcow2 -b nowhere.img -F raw -u "$m/orphan.qcow2" 16M
attach 'nowhere.img' "$folder/orphan.qcow2,qcow2,xvdb,rw"
qemu_img create -q -f qcow2 -b two.qcow2 -F qcow2 -u "$m/one.qcow2" 16M
qemu_img create -q -f qcow2 -b one.qcow2 -F qcow2 -u "$m/two.qcow2" 16M
attach '(one|two).qcow2.*(loop|itself|chain|in use)' "$folder/one.qcow2,qcow2,xvdb,rw"

# In use by another domain, which is named; unless that is wanted.
guest other 6.12-cloud wait "disk = [\"$folder/good.img,raw,xvdb,rw\"]"
# Paused, so that it changes nothing in the store by itself.
xlr create -p other.cfg || fail "create ended with status $?"
nodes >nodes-before
pid_of_g=$pid
refused_in_use() {
    "$@" </dev/null >stdout 2>err
    status=$?
    grep -v '^Parsing config' err >complaint
    echo "== $* -> $status: $(cat complaint)"
    [ "$(wc -l <complaint)" = 1 ] && grep -q 'in use by domain "other"' complaint || fail "$*: $(cat complaint)"
    nodes >nodes-now
    cmp -s nodes-before nodes-now || { diff nodes-before nodes-now; fail "$*: the store has changed"; }
}
refused_in_use xlr block-attach g "$folder/good.img,raw,xvdb,rw"
[ "$status" = 1 ] || fail "status $status, not 1"
refused_in_use xlr block-attach g "$folder/good.img,raw,xvdb,r"
guest third 6.12-cloud wait "disk = [\"$folder/good.img,raw,xvdb,rw\"]"
refused_in_use xlr create third.cfg
[ "$status" = 3 ] || fail "status $status, not 3"
xlr block-attach g "$folder/good.img,raw,xvdb,r!" || fail "with r! it is refused too"
must 120 'until [ -b /dev/xvdb ]; do sleep 0.2; done'
detached block-detach g xvdb
must 120 'while [ -b /dev/xvdb ]; do sleep 0.2; done'
xlr destroy other
until_true 20 dead other
until_true 20 eval '[ "$(pidof xen-emu)" = "$pid_of_g" ]' || fail 'the other domain is left'
nodes >nodes-before
count >count-before

refused 1 'nobridge' xlr network-attach g bridge=nobridge
refused 1 'mac' xlr network-attach g bridge=xenbr0 mac=00:16:3e:zz
refused 1 '/nowhere/agent' xlr channel-attach g connection=socket name=a path=/nowhere/agent
refused 1 'not connected' xlr block-detach g xvdq
refused 1 'Unknown device 7' xlr network-detach g 7
refused 1 'invalid domain identifier' xlr block-attach nosuch "$folder/good.img,raw,xvdb,rw"
in_guest 120 'dmesg | grep -E "BUG:|Oops|Call Trace|WARNING: CPU"' && { cat said; fail 'the guest complains'; }
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
