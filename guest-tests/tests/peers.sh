# peers.sh client|server|killed [LINE...]: two microkernels talk over an event channel and granted pages of theirs, and one of them dies first: by its
# own will, or because its process is killed. Further config lines are both's.
. /lab/tests/lib.sh
dies=$1
shift
a=$(($(cat /run/xlr/next-domid 2>/dev/null || echo 1)))
b=$((a + 1))

# peer ROLE WORDS [LINE...]
peer() {
    role=$1
    echo "name = \"$role\"
type = \"pvh\"
kernel = \"/guest/micro/peer\"
memory = 32
vcpus = 1
on_crash = \"preserve\"
extra = \"$role $2\"" >"$role.cfg"
    shift 2
    for line; do echo "$line" >>"$role.cfg"; done
}
case $dies in
client) peer server "peer=$b" "$@"; peer client "peer=$a first" "$@" ;;
*) peer server "peer=$b first" "$@"; peer client "peer=$a" "$@" ;;
esac
# killed: the server stays when it is done, and its process ends while the client still has its pages.
[ "$dies" != killed ] || echo 'on_poweroff = "preserve"' >>server.cfg
mkfifo stdin
for role in server client; do
    xlr create "$role.cfg" -p || fail "xlr create $role.cfg ended with status $?"
    xlr console "$role" <>stdin >"$role.log" 2>&1 &
done
[ "$(xlr domid server) $(xlr domid client)" = "$a $b" ] || fail "the domids are not $a and $b"
pid=$(domain_pid "/run/xlr/$a")
xlr unpause server
xlr unpause client
if [ "$dies" = killed ]; then
    until_true 60 grep -q 'dies first' server.log || { cat server.log client.log; fail 'the server does not come so far'; }
    xlr describe server hypercalls >calls || fail "xlr describe ended with status $?"
    cat calls
    grep -q 'EVENT_CHANNEL_OP.STATUS' calls || fail 'no hypercall is counted'
    grep 'EVENT_CHANNEL_OP.SEND' calls && fail 'events between the domains come to userspace'
    sleep 1
    kill -9 "$pid"
fi
until_true 90 grep -qE 'SUCCESS|FAILURE' client.log || { cat server.log client.log; fail 'the client does not end'; }
[ "$dies" = killed ] || until_true 60 grep -qE 'SUCCESS|FAILURE' server.log || { cat server.log client.log; fail 'the server does not end'; }
cat server.log client.log
for role in server client; do
    verdict=$(grep -E 'FAILURE' "$role.log" | tail -n 1 | tr -d '\r')
    [ -z "$verdict" ] || fail "$role: $verdict"
done
grep -hE 'panick|stays shared|stand still' /run/xlr/*/xen-emu.log && fail 'a process complains'
want client.log 'closed and bound again'
for role in server client; do gone "$role" 20; done
nothing_left "$a"
