# modules.sh IMAGE: the frontends' modules are unloaded and loaded again, a device is told to close as libxl does it, and one is taken away by force
# from processes that use it: they get errors and nothing hangs.
. /lab/tests/lib-devices.sh
take_disk "$1"
folder=${disk%/*}
truncate -s 32M "$folder/a.img" "$folder/b.img"
lan
guest g 6.12-cloud shell "disk = [\"$folder/a.img,raw,xvda,rw\"]" 'vif = ["bridge=xenbr0,mac=00:16:3e:00:77:01"]'
power_on g
expect 200 'powers it off'
sleep 1
# One that waits at a prompt takes the end of a process in the background for the end of its input, now and then.
say 'exec sh /proc/self/fd/0'
say 'stty -echo'
must 120 'dmesg -n 1'
id=$(xlr domid g)
back=/local/domain/0/backend
state() { [ "$(xenstore read "$back/$1/state")" = "$2" ]; }
is() { until_true 60 state "$1" "$2" || fail "the backend of $1 is in state $(xenstore read "$back/$1/state"), not $2"; }
card_works() {
    must 90 "until [ -d /sys/class/net/eth0 ]; do sleep 0.2; done; ip addr add $lan.50/24 dev eth0; ip link set eth0 up"
    must 120 "ping -c 3 -w 100 $lan.1"
}
ports() { xlr describe g evtchn | head -n 1; xlr describe g gnttab | grep -c gref; }

must 90 'until [ -b /dev/xvda ]; do sleep 0.2; done; dd if=/dev/urandom of=/dev/xvda bs=64k count=64 conv=fsync 2>/dev/null; sha256sum </dev/xvda'
sha256sum <"$folder/a.img" >seen
said_as seen || fail 'the image has not what the guest has written'
card_works
for round in 1 2 3; do
    # A bound driver holds its module.
    must 120 'echo vbd-51712 >/sys/bus/xen/drivers/vbd/unbind; echo vif-0 >/sys/bus/xen/drivers/vif/unbind; rmmod xen_blkfront; rmmod xen_netfront; ls -d /sys/block/xvda /sys/class/net/eth0 2>/dev/null; true'
    [ ! -s said ] || { cat said; fail 'devices are left without their modules'; }
    ports >idle
    [ "$round" = 1 ] && cp idle idle-first
    cmp -s idle idle-first || { cat idle-first idle; fail 'each round leaves ports or pins'; }
    is "vbd/$id/51712" 6
    # Linux's network card begins anew by itself. Its disk does not, on Xen neither: a device that comes anew is taken.
    must 120 'insmod /modules/xen_blkfront.ko; insmod /modules/xen_netfront.ko'
    xlr block-detach g xvda || fail "block-detach ended with status $?"
    xlr block-attach g "$folder/a.img,raw,xvda,rw" || fail "block-attach ended with status $?"
    must 120 'until [ -b /dev/xvda ]; do sleep 0.2; done; sha256sum </dev/xvda'
    said_as seen || fail 'after the module came again the disk has other contents'
    is "vbd/$id/51712" 4
    card_works
done

# As libxl does it: online=0 and Closing.
xlr block-attach g "$folder/b.img,raw,xvdb,rw" || fail "block-attach ended with status $?"
must 90 'until [ -b /dev/xvdb ]; do sleep 0.2; done'
xenstore write "$back/vbd/$id/51728/online" 0 "$back/vbd/$id/51728/state" 5
must 90 'while [ -b /dev/xvdb ]; do sleep 0.2; done'
gone_node() { ! xenstore read "$back/vbd/$id/51728/online" >/dev/null 2>&1; }
until_true 60 gone_node || fail 'nodes are left after online=0'
ls -l /proc/"$(pidof xen-emu)"/fd | grep b.img && fail 'the image is still open after online=0'

# By force, from a reader, a writer and a file system.
for round in 1 2 3; do
    xlr block-attach g "$folder/b.img,raw,xvdb,rw" || fail "block-attach ended with status $?"
    must 90 'until [ -b /dev/xvdb ]; do sleep 0.2; done'
    must 90 'while dd if=/dev/xvdb of=/dev/null bs=64k 2>/dev/null; do :; done & echo $! >/tmp/pids; while dd if=/dev/zero of=/dev/xvdb bs=64k oflag=direct conv=nocreat 2>/tmp/why || grep -q space /tmp/why; do :; done & echo $! >>/tmp/pids; sleep 1'
    xlr block-detach --force g xvdb || fail "block-detach --force ended with status $?"
    xlr block-list g | grep -q 51728 && fail 'the disk is still listed'
    ls -l /proc/"$(pidof xen-emu)"/fd | grep b.img && fail 'the image is still open'
    must 120 'wait $(cat /tmp/pids); while [ -b /dev/xvdb ]; do sleep 0.2; done'
    # Who takes a disk down sleeps like that for a moment.
    must 90 'n=0; while ps -o stat,comm | grep "^D" >/tmp/d && [ $n -lt 40 ]; do sleep 0.5; n=$((n + 1)); done; cat /tmp/d'
    [ ! -s said ] || { cat said; fail 'processes hang in the guest'; }
    until_true 60 gone_node || fail 'nodes are left after a detach by force'
done
in_guest 90 'dmesg | grep -E "BUG:|Oops|Call Trace|WARNING: CPU|blocked for more"' && { cat said; fail 'the guest complains'; }
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
