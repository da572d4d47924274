# block.sh IMAGE ORDER [LINE...]: a disk comes, is written and verified, grows, goes while it is in use, and comes again; nothing is left over.
# Its ring has 2^ORDER pages.
. /lab/tests/lib-devices.sh
take_disk "$1"
order=$2
shift 2
scratch=${disk%/*}/scratch.img
truncate -s 64M "$scratch"
box g "extra = \"console=hvc0 panic=-1 lab=devices xen_blkfront.max_ring_page_order=$order\"" "$@"
id=$(xlr domid g)
descriptors() { ls /proc/"$(pidof xen-emu)"/fd | wc -l; }
before=$(descriptors)
fio='fio --name=v --filename=/dev/xvdb --direct=1 --ioengine=libaio --iodepth=8 --bs=4k --randrepeat=0 --minimal --allow_file_create=0'
# A load that runs: what has not opened the disk yet does not use it.
load() {
    must 120 "$fio --rw=randwrite --time_based --runtime=$1 --size=32M >/tmp/load 2>&1 & until awk '\$3 == \"xvdb\" && \$8 > 20 { found = 1 } END { exit !found }' /proc/diskstats; do sleep 0.2; done"
}
attach() {
    xlr block-attach g "$scratch,raw,xvdb,rw" || fail "block-attach ended with status $?"
    must 120 'until [ -b /dev/xvdb ]; do sleep 0.2; done'
}
detach() {
    detached block-detach g xvdb
    released
}
released() {
    must 120 'while [ -b /dev/xvdb ]; do sleep 0.2; done'
}

attach
# Linux writes no order of rings of one page.
[ "$order" = 0 ] || [ "$(xenstore read "/local/domain/$id/device/vbd/51728/ring-page-order")" = "$order" ] || fail "the ring is not of order $order"
must 200 "$fio --rw=randwrite --size=8M --fsync=64 --verify=crc32c"
# What the guest flushed is in the file.
must 90 'head -c 8M /dev/xvdb | sha256sum'
head -c 8388608 "$scratch" | sha256sum >seen
said_as seen || fail 'the image has not what the guest reads'
xlr block-resize g xvdb 96M || fail "block-resize ended with status $?"
must 120 'until [ "$(blockdev --getsize64 /dev/xvdb)" = 100663296 ]; do sleep 0.2; done'
detach
# Taken away while it is written to: Linux 6.12 ends the load with an error and lets the disk go.
attach
load 60
detach
in_guest 200 'wait $!; cat /tmp/load'
for round in $(seq 10); do
    attach
    detach
done
until_true 20 eval '[ "$(descriptors)" = "$before" ]' || { ls -l /proc/"$(pidof xen-emu)"/fd; fail "$before descriptors were open, now $(descriptors)"; }
xlr block-list g >listed
[ "$(wc -l <listed)" = 2 ] || { cat listed; fail 'disks are left in block-list'; }
# By force while it is written to: the guest may see errors, but here nothing of it is left.
attach
load 30
xlr block-detach --force g xvdb || fail "block-detach --force ended with status $?"
xlr block-list g >listed
[ "$(wc -l <listed)" = 2 ] || { cat listed; fail 'a disk taken by force is left in block-list'; }
ls -l /proc/"$(pidof xen-emu)"/fd | grep "$scratch" && fail 'a disk taken by force is still open'
in_guest 120 'dmesg | grep -E "BUG:|Oops|Call Trace|WARNING: CPU"' && { cat said; fail 'the guest complains'; }
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
