# kexec.sh IMAGE ABI: a guest's kernel starts another by kexec, and when that one panics on its second CPU its crash kernel begins. Domain, process
# and memory stay; each new kernel gets its disks, card, console and CPUs as in a new domain. With ABI fifo the crash kernel is told to do
# without FIFO event channels, and lives on the 2-level ones of a new domain.
. /lab/tests/lib-devices.sh
abi=$2
take_disk "$1"
scratch=${disk%/*}/scratch.img
truncate -s 16M "$scratch"
lan
box g 'memory = 768' "event_channels = \"$abi\"" "vif = [\"bridge=xenbr0,mac=00:16:3e:00:77:01\"]"
id=$(xlr domid g)
pid=$(pidof xen-emu)
xlr block-attach g "$scratch,raw,xvdb,rw" || fail "block-attach ended with status $?"
must 90 'until [ -b /dev/xvdb ]; do sleep 0.2; done; echo "from the first" | dd of=/dev/xvdb bs=512 conv=nocreat,sync,fsync 2>/dev/null; uname -r'
fds() { ls "/proc/$pid/fd" | wc -l; }
nodes() { /debian/bin/xenstore-ls -f / | grep -v '^/tool/xenstored' | sed 's/ = .*//' | grep -vE '/(data|control|attr)/' | sort; }

# next NAME HOW CPUS [PARAMETER...]: the kernel of the system on xvda, which ends in a shell. HOW loads it as kexec's (0) or crash kernel (2).
next() {
    name=$1 how=$2 cpus=$3
    shift 3
    must 90 'PS2='
    must 120 'mkdir -p /tmp; mount -t tmpfs tmpfs /tmp; cat >/tmp/load <<"END"
use Fcntl;
my ($how, $line) = @ARGV;
sysopen(my $kernel, "/vmlinuz", O_RDONLY) or die "vmlinuz: $!";
sysopen(my $initrd, "/initrd.img", O_RDONLY) or die "initrd.img: $!";
$line .= "\0";
syscall(320, fileno $kernel, fileno $initrd, length $line, $line, $how + 0) == 0 or die "kexec_file_load: $!";
END
perl /tmp/load '"$how 'root=/dev/xvda1 ro rootflags=noload fastboot console=hvc0 init=/bin/sh panic=-1 earlyprintk=xen lab.kernel=$name $*'"' && cat /sys/kernel/kexec_loaded /sys/kernel/kexec_crash_loaded'
    want said '^1$' 'no kernel is loaded'
    lines=$(wc -l <"$log")
    case $how in
    0) say "perl -e 'syscall(169, 0xfee1dead, 0x28121969, 0x45584543, 0); die \$!'" ;;
    2) say 'echo 1 >/proc/sys/kernel/sysrq; taskset -c 1 sh -c "echo c >/proc/sysrq-trigger"' ;;
    esac
    until_true 240 begun || { tail -n 150 "/run/xlr/$id/xen-emu.log"; xlr describe g | head -n 80; tail -n 60 "$log" | tr -d '\r'; fail "no shell of the $name kernel"; }
    sleep 1
    quiet_shell
    must 90 'uname -r; cat /proc/cmdline; nproc; ls /proc/vmcore; head -c 4 /proc/vmcore | tail -c 3; echo'
    cat said
    want said "lab.kernel=$name" 'this is not the new kernel'
    want said "^$cpus\$" "not $cpus CPUs"
    [ "$how" = 0 ] || want said '^ELF$' 'the crash kernel has no core'
}
# uses ABI...: the kernel of the moment says so.
uses() {
    must 90 'dmesg | grep -o "Using .* ABI" | tail -n 1'
    want said "^Using $1 ABI\$" "not the event channels $1"
}
begun() { tail -n +"$((lines + 1))" "$log" | grep -q 'job control turned off'; }
# serves NAME BEFORE: the disks, the card and the store are there for it, and the disk has what the kernel before has written.
serves() {
    [ "$(xlr domid g)" = "$id" ] || fail 'the domain has another number'
    [ "$(pidof xen-emu)" = "$pid" ] || fail 'the domain has another process'
    for device in vbd/$id/51712 vbd/$id/51728; do
        [ "$(xenstore read "/local/domain/0/backend/$device/state")" = 4 ] || fail "$device is not connected"
    done
    must 90 'head -n 1 /dev/xvdb | tr -d "\0"'
    want said "^from the $2$" 'the disk has lost what was written before'
    must 90 "echo 'from the $1' | dd of=/dev/xvdb bs=512 conv=nocreat,sync,fsync 2>/dev/null"
    head -c 100 "$scratch" | grep -q "from the $1" || fail "the disk has not what the $1 kernel has written"
    must 90 "modprobe xen-netfront; until card=\$(ls /sys/class/net | grep -v lo); do sleep 0.2; done; ip addr add $lan.50/24 dev \$card; ip link set \$card up; ping -c 3 -w 100 $lan.1"
    in_guest 90 'dmesg | grep -E "BUG:|Oops|Call Trace|WARNING: CPU"' && { cat said; fail 'the guest complains'; }
}

case $abi in
fifo) full=FIFO-based without='xen.fifo_events=0' ;;
*) full=2-level without='' ;;
esac
uses $full
before=$(fds)
nodes >nodes-before
next second 0 2 crashkernel=256M
uses $full
serves second first
next third 2 1 nr_cpus=1 reset_devices $without
uses 2-level
serves third second
# Devices come and go as ever.
xlr block-detach g xvdb || fail "block-detach ended with status $?"
must 90 'while [ -b /dev/xvdb ]; do sleep 0.2; done'
xlr block-attach g "$scratch,raw,xvdb,rw" || fail "block-attach ended with status $?"
must 90 'until [ -b /dev/xvdb ]; do sleep 0.2; done'
echo "descriptors: $before before, $(fds) now"
[ "$(fds)" -le $((before + 8)) ] || { ls -l "/proc/$pid/fd"; fail 'descriptors are left of each kernel'; }
nodes >nodes-now
diff nodes-before nodes-now || echo 'the nodes above differ'
[ "$(grep -c 'goes on after a soft reset' "/run/xlr/$id/xen-emu.log")" = 2 ] || fail 'there were not two soft resets'

say 'echo o >/proc/sysrq-trigger'
gone g 60
nothing_left "$id"
