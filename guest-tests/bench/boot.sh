# boot.sh ROUNDS PROGRAM...: one guest under each program in turn, all in this L1. 2 vCPUs, 512 MiB, Debian's 6.12 cloud kernel.
# Each round: an untraced boot for the time and a fork loop, single calls by a microkernel, a boot whose exits the kernel's tracepoints
# count, and a look at the time before the guest's first instruction. At the end 30,000 lines on the console.
rounds=$1
shift
cd /tmp || exit
mkdir -p values
mkfifo stdin console
within=
tracing=/sys/kernel/debug/tracing
common='console=hvc0 mitigations=off quiet panic=-1'

cat >bench.cfg <<EOF
name = "bench"
type = "pvh"
kernel = "/guest/vmlinuz-6.12-cloud"
ramdisk = "/guest/initrd-6.12-cloud"
memory = 512
vcpus = 2
EOF
qemu() {
    $within qemu-system-x86_64 -accel kvm,xen-version=0x40011,kernel-irqchip=split -cpu host,+xen-vapic -m 512 -smp 2 \
        -nodefaults -no-user-config -display none -no-reboot -kernel "$1" -initrd /guest/initrd-6.12-cloud -append "$2" \
        -chardev stdio,id=c,signal=off -device xen-console,chardev=c
}
launch() {
    case $1 in
    xlr) $within xlr create -q -c bench.cfg "extra=\"$common lab=$2\"" ;;
    qemu-pvh) qemu /guest/vmlinux-6.12-cloud "$common lab=$2" ;;
    qemu-hvm) qemu /guest/vmlinuz-6.12-cloud "$common lab=$2" ;;
    esac
}
# Hundredths of a second since L1's start.
now() { read -r up _ </proc/uptime; echo "${up%.*}${up#*.}"; }
# note PROGRAM METRIC VALUE
note() { echo "$3" >>"values/$2 $1"; }
process() { case $1 in xlr) pidof xen-emu ;; *) pidof qemu-system-x86_64 || pidof ld-linux-x86-64.so.2 ;; esac; }
# KiB resident in all mappings but guest RAM, which is the one of at least 500 MiB.
overhead() {
    awk '/^[0-9a-f]+-[0-9a-f]+ / { ram = 0 } /^Size:/ { ram = $2 >= 512000 } /^Rss:/ && !ram { sum += $2 } END { print sum + 0 }' \
        "/proc/${1%% *}/smaps"
}
# hits EVENT [PATTERN]: sum of the histogram's counts whose key looks like that.
hits() { awk -v key="$2" '/hitcount:/ && $0 ~ key { sub(/.*hitcount: */, ""); n += $1 } END { print n + 0 }' "$tracing/events/kvm/$1/hist"; }
# trace PREFIX SUFFIX: sets ('' ''), freezes ('' :pause) or removes (! '') the histograms.
trace() {
    for event in kvm_exit:exit_reason kvm_userspace_exit:reason kvm_xen_hypercall:nr,a0; do
        echo "$1hist:keys=${event#*:}$2" >>"$tracing/events/kvm/${event%%:*}/trigger"
    done
}

# run PROGRAM ACTION HOOK: one boot; HOOK runs at the guest's init.
run() {
    begin=$(now)
    launch "$1" "$2" <>stdin >console 2>>errors &
    exec 5<console
    grep -m 1 'guest: init' <&5 >/dev/null && end=$(now) && "$3" "$1"
    cat <&5 >rest
    exec 5<&-
    wait $!
}
timed() { note "$1" 'create to init, in centiseconds' $((end - begin)); }
counted() {
    trace '' :pause
    note "$1" 'KiB resident beyond guest RAM' "$(overhead "$(process "$1")")"
    note "$1" 'VM exits until init' "$(hits kvm_exit)"
    note "$1" 'nested page faults until init' "$(hits kvm_exit 'exit_reason: *1024 ')"
    note "$1" 'hypercalls until init' "$(hits kvm_xen_hypercall)"
    note "$1" 'event channel sends among them (console, store, IPIs)' "$(hits kvm_xen_hypercall 'nr: *32, *a0: *4 ')"
    note "$1" 'hypercalls reaching userspace until init' "$(hits kvm_userspace_exit 'reason: *34 ')"
    # KVM_EXIT_XEN is 34; KVM_EXIT_INTR, 10, is a signal and not the guest's doing.
    note "$1" 'other exits to userspace until init' $(($(hits kvm_userspace_exit) - $(hits kvm_userspace_exit 'reason: *(34|10) ')))
    for event in kvm_exit kvm_userspace_exit kvm_xen_hypercall; do
        { echo "== $1 $event"; grep hitcount "$tracing/events/kvm/$event/hist"; } >>/out/histograms
    done
}
# forks PROGRAM: a boot, timed, and 300 processes in it, by the guest's own clock.
forks() {
    run "$1" forks timed
    set_forks=$(sed -n 's/.*guest: forks \([0-9]*\)\.\([0-9]*\) \([0-9]*\)\.\([0-9]*\).*/\3\4 \1\2/p' rest)
    [ -n "$set_forks" ] && note "$1" '300 forks in the guest, in centiseconds' $((${set_forks% *} - ${set_forks#* }))
}
# flood PROGRAM: from the first of 30,000 lines to the last, and how many arrived whole; given up after 100 s.
flood() {
    within='timeout -s KILL 100'
    launch "$1" flood <>stdin 2>>errors | tr -d '\r' | awk '
        function now(line) { getline line <"/proc/uptime"; close("/proc/uptime"); split(line, word, " "); return word[1] * 100 }
        /guest: flood begins/ { begin = now() }
        /guest: flood ends/ { end = now() }
        /^[0-9][0-9][0-9][0-9][0-9][0-9] 0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ$/ && $1 "" == sprintf("%06d", whole + 1) { whole++ }
        END { printf "%d %d\n", whole, end - begin }' >flooded
    within=
    xlr destroy bench 2>/dev/null
    read -r whole time <flooded
    [ "$time" -gt 0 ] || time=10000
    note "$1" '30,000 lines of console, in centiseconds' "$time"
    note "$1" 'lines arrived whole and in order, of 30000' "$whole"
}
# What single calls and events cost, by a microkernel that prints `BENCH NAME CYCLES`.
micro() {
    case $1 in
    xlr) printf 'name = "micro"\ntype = "pvh"\nkernel = "/guest/micro/bench"\nmemory = 64\n' >micro.cfg
        xlr create -q -c micro.cfg <>stdin ;;
    qemu-pvh) timeout 30 qemu-system-x86_64 -accel kvm,xen-version=0x40011,kernel-irqchip=split -cpu host,+xen-vapic -m 64 \
        -nodefaults -no-user-config -display none -no-reboot -kernel /guest/micro/bench -chardev stdio,id=c,signal=off \
        -device isa-debugcon,chardev=c,iobase=0xe9 <>stdin ;;
    esac
}
calls() {
    micro "$1" 2>>errors | sed -n 's/.*BENCH \([^ ]*\) \([0-9]*\).*/\1 \2/p' | while read -r name value; do
        case $name in hypercall_* | evtchn_*) note "$1" "$name, in TSC cycles" "$value" ;; esac
    done
}
# Microseconds between the first exec of a program in the trace and the first entry into the guest.
before_entry() {
    awk -v program="$1" '
        { for (i = 1; i < NF && $i !~ /^[0-9]+\.[0-9]+:$/; i++); time = $i + 0 }
        /sched_process_exec:/ && $0 ~ "filename=[^ ]*" program " " && !from { from = time }
        /kvm_entry:/ && from { printf "%d\n", (time - from) * 1000000; exit }' $tracing/trace
}
# between A B: microseconds between two lines of xen-emu's log.
between() {
    awk -v a="$1" -v b="$2" '
        function stamp(t) { split(t, x, /[T:Z]/); return (x[2] * 60 + x[3]) * 60 + x[4] }
        index($0, a) && !from { from = stamp($1) } index($0, b) && from { printf "%d\n", (stamp($1) - from) * 1000000; exit }' before.log
}
# prelude: our own time before the first KVM_RUN, and what of it is reading and unpacking the kernel and the ramdisk.
prelude() {
    echo >$tracing/trace
    for event in sched/sched_process_exec kvm/kvm_entry; do echo 1 >$tracing/events/$event/enable; done
    echo traceoff:1 >$tracing/events/kvm/kvm_entry/trigger
    XLR_LOG=debug xlr create -q bench.cfg "extra=\"$common lab=wait\"" 2>>errors
    cat /run/xlr/[0-9]*/xen-emu.log >before.log
    cp before.log /out/
    for event in sched/sched_process_exec kvm/kvm_entry; do echo 0 >$tracing/events/$event/enable; done
    echo '!traceoff:1' >$tracing/events/kvm/kvm_entry/trigger
    cp $tracing/trace /out/before.trace
    echo 1 >$tracing/tracing_on
    xlr destroy bench
    note xlr 'xlr create to first KVM_RUN, in microseconds' "$(before_entry xlr)"
    all=$(before_entry xen-emu) load=$(between ' started' 'guest memory written')
    note xlr 'xen-emu to first KVM_RUN, in microseconds' "$all"
    note xlr 'of it reading and unpacking kernel and ramdisk' "$load"
    note xlr 'of it everything else' $((all - load))
}

for round in $(seq "$rounds"); do
    for program; do
        forks "$program"
        calls "$program"
        trace '' ''
        run "$program" poweroff counted
        trace '!' ''
    done
    case " $* " in *' xlr '*) prelude ;; esac
done
# table: what has been noted since the last one.
table() {
    for file in values/*; do
        sort -n "$file" | awk -v name="${file#values/}" '{ v[NR] = $1; all = all " " $1 }
            END { printf "%-66s median %8d  of%s\n", name, v[int((NR + 1) / 2)], all }'
        rm "$file"
    done
}
[ -n "$(ls values)" ] || exit
table
for program; do flood "$program"; done
table
[ -s errors ] && sort errors | uniq -c | sort -rn | head -n 10 >&2
exit 0
