# media.sh IMAGE: CDs come and go in a drive that the guest reads; a block device as image, 4096-byte sectors, a disk that is read-only, discard that
# shrinks raw and qcow2 images, and disks that grow.
. /lab/tests/lib-devices.sh
take_disk "$1"
folder=${disk%/*}
m=/media${folder#/disk}
for n in 1 2; do
    { echo "disc $n"; head -c 2097152 /dev/urandom; } >"$folder/cd$n.iso"
    truncate -s 3M "$folder/cd$n.iso"
done
tools qemu-img convert -f raw -O qcow2 "$m/cd2.iso" "$m/cd2.qcow2" || fail 'qemu-img makes no disc'
box g "disk = [\"$(echo /disk/0/*.img),raw,xvda,r\", \"$folder/cd1.iso,,xvdc:cdrom,r\", \",empty,xvdd:cdrom,r\"]"
id=$(xlr domid g)

# same GUEST-DEVICE FILE: the guest reads what the file has.
same() {
    must 120 "blockdev --flushbufs $1; sha256sum <$1"
    sha256sum <"$2" >seen
    said_as seen || fail "$1 in the guest is not $2"
}
# Linux takes no CD drives in HVM and PVH guests, on Xen neither. As plain disks it takes them: what is tested is the drives' life.
for devid in 51744 51760; do
    xenstore write "/local/domain/$id/device/vbd/$devid/device-type" disk
    must 90 "echo vbd-$devid >/sys/bus/xen/drivers/vbd/bind"
done
must 90 'until [ -b /dev/xvdc ]; do sleep 0.2; done; cat /sys/block/xvdc/ro /sys/block/xvdc/removable'
[ "$(tr -d '\n' <said)" = 11 ] || { cat said; fail 'the CD drive is not read-only and removable'; }
same /dev/xvdc "$folder/cd1.iso"
xlr cd-eject g xvdc || fail "cd-eject ended with status $?"
must 90 'until [ "$(blockdev --getsize64 /dev/xvdc)" = 0 ]; do sleep 0.2; done'
in_guest 90 'dd if=/dev/xvdc bs=4k count=1 iflag=direct of=/dev/null' && [ "$(grep -c '^1+0 records in' said)" = 1 ] && fail 'an empty drive can be read'
# The first bytes of a disc say nothing: who inserts it says what it is.
xlr cd-insert g xvdc "$folder/cd2.qcow2" 2>err || fail "cd-insert of a qcow2 image as raw ended with status $?"
want err 'looks like a qcow2 image but is used as raw'
must 90 "until [ \"\$(blockdev --getsize64 /dev/xvdc)\" = $(stat -c %s "$folder/cd2.qcow2") ]; do sleep 0.2; done"
same /dev/xvdc "$folder/cd2.qcow2"
for disc in cd2.iso cd2.qcow2 cd1.iso; do
    xlr cd-insert g xvdc "$folder/$disc" "$(echo "${disc#*.}" | sed 's/iso/raw/')" || fail "cd-insert $disc ended with status $?"
    must 90 'until [ "$(blockdev --getsize64 /dev/xvdc)" = 3145728 ]; do sleep 0.2; done'
    same /dev/xvdc "$folder/$(echo $disc | sed 's/qcow2/iso/')"
done
# A change of discs while the guest reads.
must 90 'while :; do dd if=/dev/xvdc of=/dev/null bs=64k iflag=direct 2>/dev/null; done & echo $! >/tmp/reader'
for n in 2 1 2 1 2; do xlr cd-insert g xvdc "$folder/cd$n.iso" || fail "cd-insert under load ended with status $?"; done
must 90 'kill $(cat /tmp/reader)'
same /dev/xvdc "$folder/cd2.iso"
xlr cd-insert g xvdc "$folder/nowhere.iso" 2>err && fail 'a disc that is not there goes in'
want err 'nowhere.iso'
same /dev/xvdc "$folder/cd2.iso"
# Into a drive that was empty from the beginning.
xlr cd-insert g xvdd "$folder/cd1.iso" || fail "cd-insert into an empty drive ended with status $?"
must 90 'until [ -b /dev/xvdd ] && [ "$(blockdev --getsize64 /dev/xvdd)" = 3145728 ]; do sleep 0.2; done'
same /dev/xvdd "$folder/cd1.iso"

come() { # SPEC: as xvdb
    xlr block-attach g "$1" || fail "block-attach $1 ended with status $?"
    must 90 'until [ -b /dev/xvdb ]; do sleep 0.2; done'
}
go() {
    detached block-detach g xvdb
    must 90 'while [ -b /dev/xvdb ]; do sleep 0.2; done'
}
# sectors LOGICAL PHYSICAL
sectors() {
    must 90 'blockdev --getss --getpbsz /dev/xvdb'
    [ "$(tr '\n' ' ' <said)" = "$1 $2 " ] || { cat said; fail "not sectors of $1 and $2"; }
}

# A block device, of 512 and of 4096-byte sectors, and a raw file told to have such.
truncate -s 64M "$folder/loop.img"
for size in 512 4096; do
    losetup_b="tools losetup -b $size /dev/loop5 $m/loop.img"
    $losetup_b || fail 'no loop device'
    come '/dev/loop5,raw,xvdb,rw'
    sectors $size $size
    must 120 'fio --name=v --filename=/dev/xvdb --direct=1 --ioengine=libaio --iodepth=8 --bs=4k --rw=randwrite --size=4M --verify=crc32c --minimal >/dev/null'
    must 90 'head -c 4M /dev/xvdb | sha256sum'
    head -c 4194304 /dev/loop5 | sha256sum >seen
    said_as seen || fail 'the block device has not what the guest reads'
    go
    losetup -d /dev/loop5
done
come "format=raw,vdev=xvdb,sector-size=4096,target=$folder/loop.img"
sectors 4096 4096
must 120 'mke2fs -q -t ext4 /dev/xvdb && mkdir -p /tmp/b && mount /dev/xvdb /tmp/b && echo hello >/tmp/b/x && umount /tmp/b'
go

# A hotplug script makes the block device.
cat >block-lab <<'END'
#!/bin/sh
case $1 in
add)
    losetup /dev/loop5 "$(xenstore-read "$XENBUS_PATH/params")" && xenstore-write "$XENBUS_PATH/physical-device" 7:5
    ;;
remove) losetup -d /dev/loop5 ;;
esac
END
chmod 755 block-lab
come "vdev=xvdb,script=$PWD/block-lab,target=$folder/loop.img"
head -c 1048576 "$folder/loop.img" | sha256sum >seen
must 90 'head -c 1M /dev/xvdb | sha256sum'
said_as seen || fail 'the disk of a script has not what its image has'
go
losetup /dev/loop5 2>/dev/null && fail 'the script was not run to remove the disk'

# Read-only.
come "$folder/loop.img,raw,xvdb,r"
must 90 'cat /sys/block/xvdb/ro'
want said '^1$'
sha256sum <"$folder/loop.img" >was
in_guest 90 'dd if=/dev/zero of=/dev/xvdb bs=4k count=1 conv=fsync' && fail 'a read-only disk is written to'
sha256sum <"$folder/loop.img" >seen
cmp was seen || fail 'a read-only disk has changed'
go

# Discard shrinks the image; a disk grows under a file system in use.
tools qemu-img create -q -f qcow2 "$m/thin.qcow2" 64M
truncate -s 64M "$folder/thin.raw"
used() { du -k "$1" | cut -f1; }
for format in raw qcow2; do
    image=$folder/thin.$format
    come "$image,$format,xvdb,rw"
    must 90 'mke2fs -q -t ext4 /dev/xvdb && mkdir -p /tmp/b && mount /dev/xvdb /tmp/b && head -c 32M /dev/urandom >/tmp/b/x && sync'
    full=$(used "$image")
    [ "$full" -gt 32000 ] || fail "$format: 32 MiB were written and the image has $full KiB"
    must 120 'rm /tmp/b/x && sync && fstrim -v /tmp/b'
    cat said
    less=$(used "$image")
    echo "$format: $full KiB, after fstrim $less KiB"
    [ "$less" -lt $((full - 24000)) ] || fail "$format: fstrim left $less of $full KiB"
    if [ "$format" = raw ]; then
        xlr block-resize g xvdb 96M || fail "block-resize ended with status $?"
        must 90 'until [ "$(blockdev --getsize64 /dev/xvdb)" = 100663296 ]; do sleep 0.2; done; resize2fs /dev/xvdb && df -m /tmp/b'
    fi
    must 120 'umount /tmp/b && blkdiscard -f /dev/xvdb'
    [ "$(used "$image")" -lt 2000 ] || fail "$format: after blkdiscard the image has $(used "$image") KiB"
    go
done
in_guest 90 'dmesg | grep -E "BUG:|Oops|Call Trace|WARNING: CPU"' && { cat said; fail 'the guest complains'; }
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
