# channel.sh SERVER-KERNEL CLIENT-KERNEL [SERVER-LINE [CLIENT-LINE]]: two unmodified Linux guests talk over an event channel and a granted page,
# through the kernel's own devices, three times: the client leaves first, the server leaves first, the server's domain is destroyed.
. /lab/tests/lib.sh
a=$(($(cat /run/xlr/next-domid 2>/dev/null || echo 1)))
b=$((a + 1))
mkdir -p more/bin
cp /usr/bin/channel more/bin
(cd more && find . | cpio -o -H newc) >more.cpio || fail 'no archive of the program'
for kernel in "$1" "$2"; do cat "/guest/initrd-$kernel" more.cpio >"initrd-$kernel"; done
words() { echo "extra = \"console=hvc0 panic=-1 lab=channel role=$1 peer=$2\""; }
guest server "$1" channel "$(words server "$b")" "ramdisk = \"$PWD/initrd-$1\"" 'memory = 192' 'vcpus = 1' "${3:-}"
guest client "$2" channel "$(words client "$a")" "ramdisk = \"$PWD/initrd-$2\"" 'memory = 192' 'vcpus = 2' "${4:-}"
mkfifo stdin
for role in server client; do
    xlr create "$role.cfg" || fail "xlr create $role.cfg ended with status $?"
    xlr console "$role" <>stdin >"$role.log" 2>&1 &
done
[ "$(xlr domid server) $(xlr domid client)" = "$a $b" ] || fail "the domids are not $a and $b"
over() { grep -qE 'channel (open|.* failed)' server.log || grep -q 'channel .* failed' client.log; }
until_true 120 over || { cat server.log client.log; fail 'the server does not come so far'; }
# The last talk is open from the client's side too.
three() { [ "$(grep -c '2000 messages sent, 2000 received' client.log)" = 3 ]; }
until_true 60 three || { cat server.log client.log; fail 'the client does not come so far'; }
xlr describe client hypercalls
case ${4:-} in *portable*) xlr describe client backend | grep portable || fail 'the client is not on the portable backend' ;; esac
case ${3:-} in *fifo*) want server.log 'Using FIFO-based ABI' ;; esac
xlr destroy server || fail "xlr destroy ended with status $?"
gone client 60
cat server.log client.log
for role in server client; do
    for how in client-leaves server-leaves; do want "$role.log" "channel $how done"; done
    want "$role.log" 'up after'
done
want client.log 'channel server-dies done'
want client.log 'reboot: Power down'
grep -hE 'BUG:|WARNING: CPU|Oops|leaking' server.log client.log && fail 'a guest complains'
grep -hE 'panick|still shared|stand still' /run/xlr/*/xen-emu.log && fail 'a process complains'
nothing_left "$a"
nothing_left "$b"
