# cycles.sh IMAGE ROUNDS: a disk, a card and a channel come and go so many times while the guest uses each of them. Afterwards the domain's
# process, the store and the guest have what they had before.
. /lab/tests/lib-devices.sh
rounds=$2
take_disk "$1"
scratch=${disk%/*}/scratch.img
truncate -s 64M "$scratch"
lan
# Linux's network card keeps the buffers of its receive queues when it goes, 256 pages of each (docs/xl-compatibility.md).
box g 'memory = 1024'
queues=2 kept=$((256 * 4))
id=$(xlr domid g)
pid=$(pidof xen-emu)
back=/local/domain/0/backend

# What the guest does with whatever comes: nothing of it waits for anything else. The line is opened once in each of its lives: who opens it
# while it goes has Linux use memory that it has freed (docs/xl-compatibility.md).
must 90 'cat >/tmp/load <<"END"
disk() { while :; do [ -b /dev/xvdb ] && dd if=/dev/zero of=/dev/xvdb bs=64k oflag=direct conv=nocreat 2>/dev/null; sleep 0.1; done; }
card() { while :; do ip link set eth0 up && ip addr add 192.168.77.60/24 dev eth0 && ping -q -c 50 -i 0.02 -s 1400 192.168.77.1; sleep 0.1; done; }
console=/sys/bus/xen/devices/console-1
which() { stat -L -c %i $console; }
line() {
    while sleep 0.1; do
        now=$(which)
        [ "$now" != "$last" ] && grep -qx Connected $console/state && [ "$(which)" = "$now" ] || continue
        last=$now
        (exec 3<>/dev/hvc1; cat <&3 & while echo "this is a line for the other end" >&3; do sleep 0.02; done; kill $!; wait)
    done 2>/dev/null
}
disk & card & line & wait
END
sh /tmp/load >/tmp/load.log 2>&1 & echo started'

# all STATE: the three backends read so.
state() { [ "$(xenstore read $back/"$1"/state 2>/dev/null)" = "$2" ]; }
all() { state "vbd/$id/51728" "$1" && state "vif/$id/0" "$1" && state "console/$id/1" "$1"; }
speaks() { xlr describe g devices | grep -q 'console 1:.* bytes-from-guest [1-9]'; }
none() { for node in vbd/$id/51728 vif/$id/0 console/$id/1; do ! xenstore read $back/$node/state >/dev/null 2>&1 || return 1; done; }
come() {
    xlr block-attach g "$scratch,raw,xvdb,rw" || fail "round $1: block-attach ended with status $?"
    xlr network-attach g bridge=xenbr0 mac=00:16:3e:00:77:02 || fail "round $1: network-attach ended with status $?"
    xlr channel-attach g connection=socket name=agent path=/tmp/test/agent || fail "round $1: channel-attach ended with status $?"
    until_true 120 all 4 || { xenstore ls -f | grep -E "/(vbd|vif|console)/"; fail "round $1: not all three are connected after 120 s"; }
    until_true 120 speaks || fail "round $1: nothing comes from the guest by the channel in 120 s"
}
go() {
    # Every fifth time by force, which waits for nobody.
    force=
    [ $(($1 % 5)) = 0 ] && force=--force
    xlr block-detach $force g xvdb >off-disk 2>&1 & disk_off=$!
    xlr network-detach $force g 0 >off-card 2>&1 & card_off=$!
    xlr channel-detach $force g agent >off-line 2>&1 & line_off=$!
    off $disk_off disk "$1"
    off $card_off card "$1"
    off $line_off line "$1"
    until_true 120 none || { xenstore ls -f | grep -E "/(vbd|vif|console)/"; fail "round $1: not all three are gone after 120 s"; }
}
# off PROCESS WHAT ROUND: a detach has ended well, or the guest takes longer than xlr waits for it.
off() {
    wait "$1" && return
    status=$?
    grep -q 'has not let go' "off-$2" || fail "round $3: detaching the $2 $force: status $status: $(cat "off-$2")"
}
round() {
    come "$1"
    sleep 0.2
    go "$1"
}

# What there is: descriptors and threads of the process, its memory beside the guest's (KiB), event channels and pins, the store.
count() {
    ls /proc/"$pid"/fd | wc -l
    ls /proc/"$pid"/task | wc -l
    xlr describe g evtchn | head -n 1
    ls /proc/"$(pidof xenstored)"/fd | wc -l
    ls /sys/class/net | wc -l
}
# maps: the same by what it is: a heap of a thread is part of 64 MiB, a stack of 2.
maps() { awk '/^[0-9a-f]+-/ { at = $1; name = $6 } /^Size:/ { size = $2 } /^Anonymous:/ && $2 && size <= 400000 { print at, size, name, $2 }' /proc/"$pid"/smaps; }
nodes() { /debian/bin/xenstore-ls -f / | grep -v '^/tool/xenstored' | sed 's/ = .*//' | sort; }
# Without the log of its own that it keeps for `xlr dmesg`, up to 256 KiB: what happens is written there.
memory() {
    # Not by `xlr dmesg`, the answer of which takes four times that for a moment, and the heap keeps it.
    kept=$(cat /run/xlr/[0-9]*/xen-emu.log* | wc -c)
    [ "$kept" -le 262144 ] || kept=262144
    awk -v kept="$kept" '/^[0-9a-f]+-/ { guest = 0 } /^Size:/ { guest = $2 > 400000 } /^Anonymous:/ && !guest { sum += $2 } END { print int(sum - kept / 1024) }' /proc/"$pid"/smaps
}
settled() { count >now; cmp -s now before; }
# look: sets free to the KiB that the guest has.
look() {
    must 120 'sync; echo 3 >/proc/sys/vm/drop_caches; sed -n "s/^MemFree: *\([0-9]*\) kB/\1/p" /proc/meminfo'
    free=$(grep -x '[0-9][0-9]*' said)
}
# The system's own disk keeps some, more as the guest reads more of it at a time.
pins() { xlr describe g gnttab | grep -c gref; }

for n in $(seq 10); do round "$n"; done
sleep 2
count >before
nodes >nodes-before
look
maps >maps-before
used=$(memory) pinned=$(pins) had=$free
begin=$(cut -d. -f1 /proc/uptime)
for n in $(seq 11 "$rounds"); do
    round "$n"
    [ $((n % 20)) = 0 ] || continue
    look
    echo "round $n: the guest has $free KiB free, the process $(memory) KiB beside the guest's"
done
echo "$((rounds - 10)) rounds in $(($(cut -d. -f1 /proc/uptime) - begin)) s"
until_true 60 settled || { diff before now; ls -l /proc/"$pid"/fd; fail 'the process has not what it had before'; }
cat now
look
lost=$((had - free)) its=$(((rounds - 10) * queues * kept))
echo "the guest has lost $lost KiB, $its of them to its network cards"
[ "$lost" -le $((its + 32768)) ] || fail "the guest has lost $lost KiB, $its at most are its own"
nodes >nodes-now
cmp nodes-before nodes-now || { diff nodes-before nodes-now; fail 'the store has not what it had before'; }
echo "memory beside the guest's: $used KiB before, $(memory) now"
echo "pins: $pinned before, $(pins) now"
[ "$(pins)" -le $((pinned + 64)) ] || fail "pages are pinned: $pinned before, $(pins) now"
[ "$(memory)" -le $((used + 256)) ] || { maps | diff maps-before -; fail "the process has grown from $used KiB to $(memory) KiB"; }
in_guest 90 'dmesg | grep -E -A 30 "deferring g.e.|BUG:|Oops|Call Trace|WARNING: CPU"' && { cat said; fail 'the guest complains'; }
must 90 'cat /tmp/load.log | sort | uniq -c | sort -rn | head'
cat said
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
