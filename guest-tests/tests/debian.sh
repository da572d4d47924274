# debian.sh IMAGE HOW FORMAT END [LINE...]: a whole Debian from its disk image. HOW kernel: its kernel handed over; pygrub: read from its disk;
# grub-pvh: GRUB as the kernel reads it from its disk. FORMAT raw, qcow2, whose backing file is the image, or script: a hotplug script makes
# a block device of the image. It logs in, gets an
# address, installs a package and writes a file; END ends it: poweroff (from inside), shutdown (by XenStore), button (shutdown -F of a guest that does
# not say that it listens to XenStore: the power button, which systemd-logind hears), force (shutdown -F of one that does). Then nothing of what was written may be missing.
. /lab/tests/lib-devices.sh
image=$1 how=$2 format=$3 end=$4
shift 4
take_disk "$image"
lan
given=$disk
overlay=${disk%/*}/overlay.qcow2
if [ "$format" = qcow2 ]; then
    tools qemu-img create -q -f qcow2 -b "$image.img" -F raw "/media${overlay#/disk}" || fail 'qemu-img makes no overlay'
    given=$overlay
fi
spec="$given,$format,xvda,rw"
if [ "$format" = script ]; then
    cat >block-lab <<'END'
#!/bin/sh
echo "$1 $XENBUS_PATH" >>"${0%/*}/scripted"
case $1 in
add) losetup /dev/loop5 "$(xenstore-read "$XENBUS_PATH/params")" && xenstore-write "$XENBUS_PATH/physical-device" 7:5 ;;
remove) losetup -d /dev/loop5 ;;
esac
END
    chmod 755 block-lab
    spec="vdev=xvda,script=$PWD/block-lab,target=$disk"
fi
{
    echo 'name = "g"'
    echo 'type = "pvh"'
    echo 'memory = 512'
    echo 'vcpus = 2'
    echo "disk = [\"$spec\"]"
    echo 'vif = ["bridge=xenbr0"]'
} >g.cfg
case $how in
kernel)
    on_partition cp -L root/vmlinuz root/initrd.img .
    printf 'kernel = "%s/vmlinuz"\nramdisk = "%s/initrd.img"\nextra = "root=LABEL=root ro console=hvc0"\n' "$PWD" "$PWD" >>g.cfg
    ;;
pygrub) echo 'bootloader = "pygrub"' >>g.cfg ;;
grub-pvh) echo 'kernel = "/guest/grub-pvh"' >>g.cfg ;;
esac
for line; do echo "$line" >>g.cfg; done
power_on g
id=$(xlr domid g)
login
# Answers are statuses: systemd too speaks on the console.
must 60 '[ "$(findmnt -no SOURCE /)" = /dev/xvda1 ]'
must 60 'systemctl --no-pager --failed --no-legend | if grep .; then false; fi'
must 200 "until ip -4 -o addr show scope global | grep $lan; do sleep 1; done"
must 120 "ping -c 3 -w 100 $lan.1"
must 400 'apt-get update && apt-get install -y hello && hello | grep "Hello, world!"'
must 90 'dd if=/dev/urandom of=/root/blob bs=1M count=16 2>/dev/null; sha256sum </root/blob >/root/blob.sum'
unharmed
# From here on it says on the console what is amiss.
say 'dmesg -n 5'
case $end in
poweroff) say poweroff ;;
shutdown) xlr shutdown g || fail "xlr shutdown ended with status $?" ;;
button)
    xenstore-rm "/local/domain/$id/control/feature-poweroff"
    xlr shutdown -F g 2>err || { cat err; fail "xlr shutdown -F ended with status $?"; }
    want err 'sending ACPI power button event'
    ;;
force) xlr shutdown -F g || fail "xlr shutdown -F ended with status $?" ;;
esac
gone g 180
# A PV guest has no ACPI to power off by.
case "$*" in
*pvshim*) want g.log 'reboot: (Power off not available: )?System halted' ;;
*) want g.log 'reboot: Power down' ;;
esac
grep -E 'BUG:|Oops|Call Trace|EXT4-fs error|I/O error' g.log && fail "the guest's kernel complains"
if [ "$format" = qcow2 ]; then
    tools qemu-img check "/media${overlay#/disk}" || fail 'qemu-img finds the overlay broken'
    tools qemu-img commit -q "/media${overlay#/disk}" || fail 'qemu-img does not merge the overlay'
fi
if [ "$format" = script ]; then
    # For who reads its menu, and for the guest.
    for action in add remove add remove; do echo "$action backend/vbd/$id/51712"; done >seen
    cmp seen scripted || { cat scripted; fail 'the script was not run for the boot loader and for the guest'; }
    losetup /dev/loop5 2>/dev/null && fail 'the block device of the script is left'
fi
check_disk
whole() { [ -s root/root/blob.sum ] && sha256sum <root/root/blob | cmp - root/root/blob.sum; }
on_partition whole || fail 'the files written last are not what was written'
nothing_left "$id"
