# hostile.sh [LINE...]: a guest does what it can against event channels. Its process neither dies nor fills its log nor works on when the guest
# has come to its end, and another domain gets all its events meanwhile.
. /lab/tests/lib.sh
micro() {
    printf '%s\n' "name = '$1'" "type = 'pvh'" "kernel = '/guest/micro/$1'" 'memory = 64' 'vcpus = 2' "on_poweroff = 'preserve'" >"$1.cfg"
    shift
    for line; do echo "$line"; done >>"$config"
}
config=hostile.cfg
micro hostile "on_crash = 'preserve'" "$@"
config=flood.cfg
micro flood "on_crash = 'preserve'"
mkfifo stdin
for name in flood hostile; do
    xlr create -p "$name.cfg" || fail "xlr create $name.cfg ended with status $?"
    xlr console "$name" <>stdin >"$name.log" 2>&1 &
done
id=$(xlr domid hostile)
pid=$(domain_pid "/run/xlr/$id")
xlr unpause flood
xlr unpause hostile
for name in flood hostile; do
    until_true 3600 grep -qE 'SUCCESS|SKIP|FAILURE' "$name.log" || { cat flood.log hostile.log; fail "$name does not come to its end"; }
done
cat flood.log hostile.log
for name in flood hostile; do
    grep -q SUCCESS "$name.log" || fail "$name: $(grep -E 'SKIP|FAILURE' "$name.log" | tail -n 1 | tr -d '\r')"
done
[ "$(domain_pid "/run/xlr/$id")" = "$pid" ] || fail 'the process is another one'
grep -E 'panick|WARN|ERROR' "/run/xlr/$id/xen-emu.log" | tail -n 5
grep -q panick "/run/xlr/$id/xen-emu.log" && fail 'a thread panicked'
size=$(wc -c <"/run/xlr/$id/xen-emu.log")
[ "$size" -lt 65536 ] || fail "$size bytes of log"
ticks() { cut -d' ' -f14,15 "/proc/$pid/stat" | { read -r user system; echo $((user + system)); }; }
before=$(ticks)
sleep 3
after=$(ticks)
[ $((after - before)) -lt 150 ] || fail "the process of a guest that has ended used $((after - before)) of 300 ticks"
echo "$size bytes of log, $((after - before)) ticks in 3 s"
for name in hostile flood; do xlr destroy "$name" || fail "destroy ended with status $?"; done
nothing_left "$id"
