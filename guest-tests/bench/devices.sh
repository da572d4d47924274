# devices.sh PARTS ROUNDS SECONDS PROGRAM...: disk, network (or "disk,network") of one guest under each program in turn, all in this L1: 2 vCPUs, 512 MiB, Debian's
# 6.12 cloud kernel, a raw file on ext4 opened without L1's page cache, a tap on a bridge. Loads run in the Debian system on xvda, by the
# same fio, iperf3 and ping for all. Each load runs twice: for its speed, and then traced, for VM exits and system calls per request.
parts=,$1, rounds=$2 seconds=$3
shift 3
mkdir -p /tmp/bench && cd /tmp/bench || exit
. /lab/tests/lib-devices.sh
mkdir -p values
tracing=/sys/kernel/debug/tracing
common='console=hvc0 mitigations=off quiet panic=-1 lab=devices'
root=$(echo /disk/0/*.img) scratch=/disk/1/scratch.img size=256
lan
dd if=/dev/zero of=$scratch bs=1M count=$size 2>/dev/null
sync
tools iperf3 -s -D
cp /lab/tests/load.py /run/lan/www/
tools python3 /run/lan/www/load.py serve $lan.1 7777 >serve.log 2>&1 &

# start PROGRAM: the guest's shell on the console.
start() {
    log=$1.log
    : >"$log"
    case $1 in
    xlr | xlr-transient)
        persistent=1
        [ "$1" = xlr ] || persistent=0
        guest g 6.12-cloud devices "disk = [\"$root,raw,xvda,r\", \"vdev=xvdb,persistent-grants=$persistent,target=$scratch\"]" 'vif = ["bridge=xenbr0"]' \
            "extra = \"$common\""
        xlr create -q -c g.cfg <>stdin >"$log" 2>&1 &
        ;;
    qemu-pvh)
        qemu-system-x86_64 -accel kvm,xen-version=0x40011,kernel-irqchip=split -cpu host,+xen-vapic -m 512 -smp 2 \
            -nodefaults -no-user-config -display none -no-reboot -kernel /guest/vmlinux-6.12-cloud -initrd /guest/initrd-6.12-cloud \
            -append "$common" -chardev stdio,id=c,signal=off -device xen-console,chardev=c \
            -drive "file=$root,if=none,id=a,format=raw,readonly=on" -device xen-disk,drive=a,vdev=xvda \
            -drive "file=$scratch,if=none,id=b,format=raw,cache=none,aio=io_uring" -device xen-disk,drive=b,vdev=xvdb \
            -netdev tap,id=n,ifname=tapq,script=no,downscript=no -device xen-net-device,netdev=n <>stdin >"$log" 2>&1 &
        until_true 30 test -d /sys/class/net/tapq && brctl addif xenbr0 tapq && ip link set tapq up
        ;;
    *) fail "no program $1: xlr, xlr-transient (without persistent grants), qemu-pvh" ;;
    esac
    expect 120 'guest: shell'
    sleep 1
    quiet_shell
    must 30 "ip addr add $lan.50/24 dev eth0 && ip link set eth0 up && ping -c 1 -w 10 $lan.1"
}
process() { case $1 in xlr*) pidof xen-emu ;; *) pidof qemu-system-x86_64 || pidof ld-linux-x86-64.so.2 ;; esac; }
# note PROGRAM METRIC VALUE
note() { [ -n "$3" ] && echo "$3" >>"values/$2|$1"; }
# traced PROGRAM COMMAND: runs it in the guest; exits and calls are what it cost, whole.
traced() {
    echo 'hist:keys=exit_reason' >$tracing/events/kvm/kvm_exit/trigger
    echo 'hist:keys=common_pid:size=65536' >$tracing/events/raw_syscalls/sys_enter/trigger
    must $((seconds + 120)) "$2"
    exits=$(awk '/hitcount:/ { sub(/.*hitcount: */, ""); n += $1 } END { print n + 0 }' $tracing/events/kvm/kvm_exit/hist)
    ls "/proc/$(process "$1" | cut -d' ' -f1)/task" >threads
    calls=$(awk 'NR == FNR { mine[$1]; next } /common_pid:/ { gsub(/[{},]/, " "); if ($2 in mine) { sub(/.*hitcount: */, ""); n += $1 } }
        END { print n + 0 }' threads $tracing/events/raw_syscalls/sys_enter/hist)
    echo '!hist:keys=exit_reason' >$tracing/events/kvm/kvm_exit/trigger
    echo '!hist:keys=common_pid:size=65536' >$tracing/events/raw_syscalls/sys_enter/trigger
}
per() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f\n", a / b }'; }

# disk PROGRAM NAME RW BLOCK-KIB DEPTH. fio's terse form 3: total KiB, bandwidth and IOPS are fields 6 to 8 for reads, 47 to 49 for writes.
disk() {
    load="fio --name=b --filename=/dev/xvdb --direct=1 --ioengine=libaio --rw=$3 --bs=$4k --iodepth=$5 --size=${size}M --time_based \
--runtime=$seconds --minimal --terse-version=3"
    must $((seconds + 120)) "$load"
    first=6
    case $3 in *write) first=47 ;; esac
    note "$1" "$2, KiB per s" "$(tail -n 1 said | cut -d';' -f$((first + 1)))"
    note "$1" "$2, IOPS" "$(tail -n 1 said | cut -d';' -f$((first + 2)))"
    traced "$1" "$load"
    requests=$(($(tail -n 1 said | cut -d';' -f$first) / $4))
    note "$1" "$2, VM exits per request" "$(per "$exits" $requests)"
    note "$1" "$2, system calls per request" "$(per "$calls" $requests)"
}
# tcp PROGRAM NAME OPTION
tcp() {
    load="iperf3 -c $lan.1 -t $seconds -i 0 -f k $3"
    must $((seconds + 60)) "$load"
    note "$1" "$2, Mbit per s" "$(awk '/receiver/ { for (i = 2; i <= NF; i++) if ($i == "Kbits/sec") printf "%.1f\n", $(i - 1) / 1000 }' said)"
    traced "$1" "$load"
    megabytes=$(awk '/receiver/ { for (i = 2; i <= NF; i++) { f = ($i == "KBytes") ? 1 / 1024 : ($i == "MBytes") ? 1 : ($i == "GBytes") ? 1024 : 0
        if (f) print $(i - 1) * f } }' said)
    note "$1" "$2, VM exits per MiB" "$(per "$exits" "$megabytes")"
    note "$1" "$2, system calls per MiB" "$(per "$calls" "$megabytes")"
}
latency() {
    must 120 "ping -q -c 200 -i 0.02 $lan.1"
    note "$1" 'ping, average round trip, ms' "$(sed -n 's|^rtt [^=]*= [^/]*/\([^/]*\)/.*|\1|p' said)"
    must 60 "/usr/lib/apt/apt-helper -o APT::Sandbox::User=root download-file http://$lan.1/load.py /tmp/load.py"
    # QEMU may take a tenth of a second for one.
    count=$((seconds * 30))
    trips="python3 /tmp/load.py rounds $lan.1 7777 $count"
    must 240 "$trips"
    note "$1" 'network, a byte by TCP there and back, us' "$(sed -n 's/ us$//p' said)"
    traced "$1" "$trips"
    note "$1" 'network, a byte there and back, VM exits' "$(per "$exits" $count)"
    note "$1" 'network, a byte there and back, system calls' "$(per "$calls" $count)"
}

disks() {
    disk "$1" 'disk, sequential read of 256 KiB' read 256 8
    disk "$1" 'disk, sequential write of 256 KiB' write 256 8
    disk "$1" 'disk, random read of 4 KiB' randread 4 32
    disk "$1" 'disk, random write of 4 KiB' randwrite 4 32
}
network() {
    tcp "$1" 'network, TCP from the guest' ''
    tcp "$1" 'network, TCP to the guest' -R
    latency "$1"
}

mkfifo stdin
for round in $(seq "$rounds"); do
    for program; do
        start "$program"
        case $parts in *,disk,*) disks "$program" ;; esac
        case $parts in *,network,*) network "$program" ;; esac
        say 'exit'
        until_true 60 eval '! process "$program" >/dev/null' || fail "$program does not end"
    done
done

# One line per metric, a column per program with the median of its rounds, and how the first compares with each other one.
for file in values/*; do
    sort -n "$file" | awk -v name="${file#values/}" '{ v[NR] = $1 } END { print name "|" v[int((NR + 1) / 2)] }'
done | awk -F'|' -v programs="$*" '
    { if (!($1 in seen)) { seen[$1]; order[++n] = $1 } value[$1, $2] = $3 }
    END {
        count = split(programs, program, " ")
        printf "%-58s", "median of the rounds"
        for (p = 1; p <= count; p++) printf " %12s", program[p]
        for (p = 2; p <= count; p++) printf " %9s", "ratio"
        print ""
        for (i = 1; i <= n; i++) {
            printf "%-58s", order[i]
            for (p = 1; p <= count; p++) printf " %12s", value[order[i], program[p]]
            for (p = 2; p <= count; p++)
                printf " %9s", value[order[i], program[p]] + 0 ? sprintf("%.2f", value[order[i], program[1]] / value[order[i], program[p]]) : "-"
            print ""
        }
    }' | tee /out/devices.txt
