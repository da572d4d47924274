# boot.sh KERNEL VCPUS MEMORY-MIB ACTION [ABI [UPCALL [LINE...]]]: event channels of that ABI and delivery; up to init, all CPUs and memory seen, xen clock and console, ended by the guest itself.
. /lab/tests/lib.sh
kernel=$1 vcpus=$2 memory=$3 action=$4 abi=${5:-2level} upcall=${6:-auto}
shift $(($# < 6 ? $# : 6))
available=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))
[ "$available" -gt $((memory + 512)) ] || skip "L1 has $available MiB free, the guest wants $memory"
guest g "$kernel" "$action" "memory = $memory" "vcpus = $vcpus" "event_channels = \"$abi\"" "upcall = \"$upcall\"" "$@"
boot g
want g.log 'Hypervisor detected: Xen HVM'
# 5.10: "Booting paravirtualized kernel on Xen PVH".
want g.log 'Booting .*kernel on Xen PVH'
case $abi in
fifo) want g.log 'Using FIFO-based ABI' ;;
*) want g.log 'Using 2-level ABI' ;;
esac
want g.log "guest: cpus $vcpus\b"
want g.log 'guest: clocksource xen'
want g.log 'guest: console hvc0'
want g.log 'guest: hypervisor xen PVH'
want g.log 'reboot: Power down'
# The kernel keeps its own image, page structs and, below 4 GiB, little else: at least 70 % minus 64 MiB must be there, and never more than given.
seen=$(sed -n 's/^guest: memory \([0-9]*\) kB.*/\1/p' g.log)
[ "${seen:-0}" -le $((memory * 1024)) ] || fail "the guest sees $seen kB, more than $memory MiB"
[ "${seen:-0}" -ge $((memory * 1024 * 7 / 10 - 65536)) ] || fail "the guest sees $seen kB of $memory MiB"
grep -E 'BUG:|Oops|WARNING: CPU|Call Trace|self-detected stall|soft lockup' g.log && fail "the guest's kernel complains"
grep -E 'clocksource.*unstable|Marking TSC unstable' g.log && fail "the guest distrusts its clock"
gone g 5
nothing_left 1
