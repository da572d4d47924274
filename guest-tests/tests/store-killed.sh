# store-killed.sh IMAGE: xenstored is killed under load while a guest runs, twice. The guest's process starts it again; the guest's own
# requests, the tools, and a disk that comes and goes work afterwards. A domain that died with the store is cleaned up, and the guest
# hears that it is to shut down.
. /lab/tests/lib-devices.sh
truncate -s 16M scratch.img
box g
id=$(xlr domid g)
# A client of our own over /dev/xen/xenbus, for there is none in the guest: ask TYPE PAYLOAD.
must 30 'cat >/tmp/ask <<"END"
my ($type, $payload) = @ARGV;
$payload =~ s/\\0/\0/g;
open(my $bus, "+<", "/dev/xen/xenbus") or die "open: $!";
syswrite($bus, pack("L4", $type, 7, 0, length $payload) . $payload) or die "write: $!";
my $got = "";
while (length $got < 16 || length $got < 16 + (unpack "L4", $got)[3]) {
    sysread($bus, $got, 4096, length $got) or die "read: $!";
}
print substr($got, 16), "\n";
END
:'
must 30 'perl /tmp/ask 2 "name\0"'
want said '^g$' 'the guest cannot read its name'
# served OLD: another process serves.
served() { pid=$(pidof xenstored) && [ "$pid" != "$1" ] && xenstore-exists "/local/domain/$id/name"; }
for round in 1 2; do
    while :; do xenstore-write /tool/load "$(date)" && xenstore-ls /local >/dev/null; done 2>/dev/null &
    load=$!
    say "(while [ ! -e /tmp/stop ]; do perl /tmp/ask 11 'data/load\0x' >/dev/null; done) & loader=\$!"
    sleep 1
    old=$(pidof xenstored)
    kill -9 "$old" || fail 'xenstored cannot be killed'
    until_true 20 served "$old" || { cat /run/xlr/xenstored.log; cat "/run/xlr/$id/xen-emu.log"; fail 'the store does not come back'; }
    kill $load
    must 60 'touch /tmp/stop; wait $loader; rm /tmp/stop'
    must 30 'perl /tmp/ask 2 "name\0"'
    want said '^g$' 'the guest cannot read its name any more'
    must 30 'perl /tmp/ask 11 "data/after\0here" >/dev/null'
    [ "$(xenstore-read "/local/domain/$id/data/after")" = here ] || fail 'what the guest writes is not in the store'
    xlr list g || fail 'xlr list does not know the guest'
    [ "$(xlr domname "$id")" = g ] || fail 'the name is lost'
    xlr block-attach g "$PWD/scratch.img,raw,xvdb,rw" || fail "block-attach ended with status $?"
    must 30 'until [ -b /dev/xvdb ]; do sleep 0.2; done; dd if=/dev/zero of=/dev/xvdb bs=4k count=64 conv=fsync'
    xlr block-detach g xvdb || fail "block-detach ended with status $?"
    must 30 'while [ -b /dev/xvdb ]; do sleep 0.2; done'
done
guest w 6.12-cloud wait
xlr create -p w.cfg || fail "create -p ended with status $?"
other=$(xlr domid w)
old=$(pidof xenstored)
kill -9 "$old" "$(domain_pid "/run/xlr/$other")" || fail 'no store or no process of the other domain'
until_true 20 served "$old" || fail 'the store does not come back'
xlr list 2>said && want said 'its process died; cleaned up'
xlr list w && fail 'a domain without a process is listed'
xenstore-exists "/local/domain/$other" && fail 'nodes of a domain that died with the store are left'
[ "$(pidof xenstored | wc -w)" = 1 ] || fail 'more than one store runs'
in_guest 30 'dmesg | grep -E "BUG:|Oops|Call Trace|WARNING: CPU"' && { cat said; fail 'the guest complains'; }
xlr shutdown -w g || fail "shutdown ended with status $?"
nothing_left "$id"
