# events.sh ROUNDS: what hypercalls, events and timers cost, by a microkernel of 2 vCPUs: our backends with each event channel
# ABI, and QEMU's Xen emulation, in turn, all in this L1. Then VM exits of each, and of them those that reach userspace, by KVM's tracepoints:
# what a run that does a thing many times has more than one that does nothing. At the end boots of Debian's 6.12 on both backends in turn.
rounds=$1
cd /tmp || exit
mkdir -p values
mkfifo stdin console
programs='kernel-2level kernel-fifo portable-2level portable-fifo qemu'
tracing=/sys/kernel/debug/tracing

# micro PROGRAM WORDS: a run of the microkernel.
micro() {
    case $1 in
    qemu)
        timeout 60 qemu-system-x86_64 -accel kvm,xen-version=0x40011,kernel-irqchip=split -cpu host,+xen-vapic -m 64 -smp 2 \
            -nodefaults -no-user-config -display none -no-reboot -kernel /guest/micro/bench -append "ap=1 $2" \
            -chardev null,id=n -device xen-console,chardev=n \
            -chardev stdio,id=c,signal=off -device isa-debugcon,chardev=c,iobase=0xe9 <>stdin
        ;;
    *)
        cat >micro.cfg <<EOF
name = "micro"
type = "pvh"
kernel = "/guest/micro/bench"
memory = 64
vcpus = 2
accel = "${1%-*}"
event_channels = "${1#*-}"
extra = "ap=2 $2"
EOF
        xlr create -q -c micro.cfg <>stdin
        ;;
    esac 2>>errors
}
# note NAME VALUE
note() { echo "$2" >>"values/$1"; }
costs() {
    micro "$1" '' | tr -d '\r' >log
    sed -n 's/^BENCH \([^ ]*\) \([0-9]*\)$/\1 \2/p' log | while read -r name value; do
        [ "$name" = tsc_khz ] || note "$name $1" "$value"
    done
    grep -q SUCCESS log || { echo "$1 does not come to its end:"; tail -n 3 log; }
}
hits() { awk '/hitcount:/ { sub(/.*hitcount: */, ""); n += $1 } END { print n + 0 }' "$tracing/events/kvm/$1/hist"; }
# counted PROGRAM WORDS: prints VM exits, and exits to userspace, of one run.
counted() {
    for event in kvm_exit:exit_reason kvm_userspace_exit:reason; do
        echo "hist:keys=${event#*:}" >"$tracing/events/kvm/${event%%:*}/trigger"
    done
    micro "$1" "$2" >log
    echo "$(hits kvm_exit) $(hits kvm_userspace_exit)"
    for event in kvm_exit kvm_userspace_exit; do
        { echo "== $1 $2 $event"; grep hitcount "$tracing/events/kvm/$event/hist"; } >>/out/histograms
    done
    for event in kvm_exit:exit_reason kvm_userspace_exit:reason; do
        echo "!hist:keys=${event#*:}" >"$tracing/events/kvm/${event%%:*}/trigger"
    done
}
exits() {
    nothing=$(counted "$1" 'only=nothing count=0')
    for name in hypercall_xen_version evtchn_status evtchn_send_to_upcall timer_set timer_past_to_upcall timer_1ms_late_ns \
        notify_backend ipi_there_and_back; do
        echo "$name $1 $nothing $(counted "$1" "only=$name count=2000")"
    done | awk '{ printf "%-24s %-16s %8.2f VM exits %8.2f to userspace\n", $1, $2, ($5 - $3) / 2000, ($6 - $4) / 2000 }'
}
# Hundredths of a second since L1's start.
now() { read -r up _ </proc/uptime; echo "${up%.*}${up#*.}"; }
boot() {
    cat >boot.cfg <<EOF
name = "boot"
type = "pvh"
kernel = "/guest/vmlinuz-6.12-cloud"
ramdisk = "/guest/initrd-6.12-cloud"
memory = 512
vcpus = 2
accel = "$1"
extra = "console=hvc0 mitigations=off quiet panic=-1 lab=poweroff"
EOF
    begin=$(now)
    xlr create -q -c boot.cfg <>stdin >console 2>>errors &
    exec 5<console
    grep -m 1 'guest: init' <&5 >/dev/null && note "boot, create to init, centiseconds $1" $(($(now) - begin))
    cat <&5 >rest
    exec 5<&-
    wait $!
}

for round in $(seq "$rounds"); do
    for program in $programs; do costs "$program"; done
done
for round in $(seq "$rounds"); do
    boot kernel
    boot portable
done
for file in values/*; do
    sort -n "$file" | awk -v name="${file#values/}" '{ v[NR] = $1; all = all " " $1 }
        END { printf "%-50s median %8d  of%s\n", name, v[int((NR + 1) / 2)], all }'
done
for program in $programs; do exits "$program"; done
[ -s errors ] && sort errors | uniq -c | sort -rn | head -n 10 >&2
exit 0
