# boot.sh ROUNDS PROGRAM...: boots of one guest under each program in turn, all in this L1. 2 vCPUs, 512 MiB, Debian's 6.12 cloud kernel.
# Timed rounds run untraced; one more round each counts exits by the kernel's own tracepoints, and one runs a fork loop in the guest.
rounds=$1
shift
cd /tmp || exit
mkdir -p values
mkfifo stdin console
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
    qemu-system-x86_64 -accel kvm,xen-version=0x40011,kernel-irqchip=split -cpu host,+xen-vapic -m 512 -smp 2 \
        -nodefaults -no-user-config -display none -no-reboot -kernel "$1" -initrd /guest/initrd-6.12-cloud -append "$2" \
        -chardev stdio,id=c,signal=off -device xen-console,chardev=c
}
launch() {
    case $1 in
    xlr) xlr create -q -c bench.cfg "extra=\"$common lab=$2\"" ;;
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
# The hits of one key of an event's histogram, or of all.
hits() { sed -n 's/^{ *[a-z_]*: *\([0-9a-fx]*\) *} hitcount: *\([0-9]*\).*/\1 \2/p' "$tracing/events/kvm/$1/hist" | awk -v key="$2" '!key || $1 == key { n += $2 } END { print n + 0 }'; }
trace() {
    echo "$1hist:keys=exit_reason" >"$tracing/events/kvm/kvm_exit/trigger"
    echo "$1hist:keys=reason" >"$tracing/events/kvm/kvm_userspace_exit/trigger"
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
    note "$1" 'VM exits until init' "$(hits kvm_exit)"
    note "$1" 'nested page faults until init' "$(hits kvm_exit 1024)"
    note "$1" 'hypercalls reaching userspace until init' "$(hits kvm_userspace_exit 34)"
    note "$1" 'other exits to userspace until init' $(($(hits kvm_userspace_exit) - $(hits kvm_userspace_exit 34) - $(hits kvm_userspace_exit 10)))
    note "$1" 'KiB resident beyond guest RAM' "$(overhead "$(process "$1")")"
}

for round in $(seq "$rounds"); do
    for program; do run "$program" poweroff timed; done
done
for program; do
    trace ''
    run "$program" poweroff counted
    trace '!'
    run "$program" forks true
    set_forks=$(sed -n 's/.*guest: forks \([0-9]*\)\.\([0-9]*\) \([0-9]*\)\.\([0-9]*\).*/\3\4 \1\2/p' rest)
    [ -n "$set_forks" ] && note "$program" '300 forks in the guest, in centiseconds' $((${set_forks% *} - ${set_forks#* }))
done
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
if [ -x /guest/micro/bench ]; then
    for program; do
        micro "$program" 2>>errors | sed -n 's/.*BENCH \([^ ]*\) \([0-9]*\).*/\1 \2/p' | while read -r name value; do [ "$name" = tsc_khz ] || note "$program" "$name, TSC cycles" "$value"; done
    done
fi
[ -s errors ] && sort errors | uniq -c | sort -rn | head -n 10 >&2
for file in values/*; do
    sort -n "$file" | awk -v name="${file#values/}" '{ v[NR] = $1; all = all " " $1 }
        END { printf "%-60s median %8d  of%s\n", name, v[int((NR + 1) / 2)], all }'
done
[ -n "$(ls values)" ]
