# channels.sh IMAGE: a pty and a socket that lead into a guest carry bytes both ways, as they were sent. In the guest an agent on the socket's
# console answers clients that come, leave and come again, as qemu-guest-agent does; it finds the console by the channel's name.
. /lab/tests/lib-devices.sh
agent=org.qemu.guest_agent.0
box g "channel = [\"connection=pty,name=org.example.line\", \"connection=socket,name=$agent,path=$PWD/agent\"]"
id=$(xlr domid g)
# Linux calls them by their order; the console itself is hvc0. They stay open: who opens one first finds a terminal that echoes.
must 90 'exec 6<>/dev/hvc1 7<>/dev/hvc2; for n in 1 2; do stty -F /dev/hvc$n raw -echo; cat /sys/bus/xen/devices/console-$n/state; done'
[ "$(grep -c Connected said)" = 2 ] || { cat said; fail 'the channels are not connected'; }
# The guest reads whose they are.
must 90 'cat >/tmp/names <<"END"
for my $number (1, 2) {
    my $path = "device/console/$number/name";
    open(my $bus, "+<", "/dev/xen/xenbus") or die "$!";
    syswrite($bus, pack("LLLL", 2, 7, 0, 1 + length $path) . "$path\0");
    sysread($bus, my $head, 16);
    sysread($bus, my $value, (unpack("LLLL", $head))[3]);
    print "$value\n";
}
END
true'
must 90 'perl /tmp/names'
printf '%s\n' org.example.line "$agent" >seen
cmp said seen || { cat said; fail 'the guest does not find the names'; }
xlr channel-list g >listed
cat listed
want listed '^0 +0 +4 +[0-9]+ +[0-9]+ +pty +/dev/pts/[0-9]+ *$' 'the pty is not in channel-list'
want listed '^1 +0 +4 +[0-9]+ +[0-9]+ +socket *$' 'the socket is not in channel-list'

# Who types never comes to an end: a console whose input ends is left, as xl leaves it.
mkfifo keyboard
exec 5<>keyboard
# both NUMBER: 64 KiB into the guest and other 64 KiB out of it, through `xlr console -n`. In lines, of which none has the escape.
both() {
    must 90 'head -c 48k /dev/urandom | base64 >/tmp/out; wc -c </tmp/out; sha256sum </tmp/out'
    size=$(sed -n 1p said) sum=$(sed -n 2p said)
    head -c 49152 /dev/urandom | base64 >in
    must 90 "head -c $(stat -c %s in) </dev/hvc$1 >/tmp/in & echo \$! >/tmp/reader; cat /tmp/out >/dev/hvc$1 & echo begun"
    xlr console -n "$1" g <keyboard >out 2>err &
    client=$!
    cat in >keyboard
    until_true 120 arrived || { ls -l out; cat err; fail "console $1: $(stat -c %s out) of $size bytes came out of the guest"; }
    must 120 'wait $(cat /tmp/reader); sha256sum </tmp/in'
    sha256sum <in >seen
    said_as seen || fail "console $1: what came into the guest is not what was sent"
    kill "$client"
    wait "$client"
    [ "$(sha256sum <out)" = "$sum" ] || { ls -l out; fail "console $1: what came out of the guest is not what was sent"; }
}
arrived() { [ "$(stat -c %s out)" -ge "$size" ]; }
both 1
both 2
# What is said while nobody is there is kept for who comes.
must 90 'echo "said to nobody" >/dev/hvc1'
xlr console -n 1 g <keyboard >out 2>&1 &
client=$!
until_true 60 grep -q '^said to nobody' out || { cat out; fail 'what was said while nobody was there is lost'; }
kill $client

# The agent: a line of JSON in, a line out.
must 90 'cat >/tmp/agent <<"END"
open(my $line, "+<", "/dev/hvc2") or die "$!";
my $rest = "";
while (sysread($line, my $some, 4096)) {
    $rest .= $some;
    while ($rest =~ s/^([^\n]*)\n//) {
        my $asked = $1;
        my $id = $asked =~ /"id": *(\d+)/ ? $1 : "{}";
        my $known = $asked =~ /guest-sync|guest-ping/;
        syswrite($line, $known ? "{\"return\": $id}\n" : "{\"error\": {\"class\": \"CommandNotFound\"}}\n");
    }
}
END
perl /tmp/agent >/dev/null 2>&1 & echo begun'
cat >client.py <<'END'
import json, socket, sys
def ask(stream, command):
    stream.write(json.dumps(command) + "\n")
    stream.flush()
    return json.loads(stream.readline())
for life in range(20):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(sys.argv[1])
    stream = s.makefile("rw")
    for n in range(5):
        number = life * 1000 + n
        answer = ask(stream, {"execute": "guest-sync", "arguments": {"id": number}})
        assert answer == {"return": number}, (life, n, answer)
    assert ask(stream, {"execute": "guest-ping"}) == {"return": {}}
    assert "error" in ask(stream, {"execute": "x" * 3000})
    stream.close()
    s.close()
print("20 clients answered")
END
tools python3 "$PWD/client.py" "$PWD/agent" || fail 'the agent does not answer every client'
unharmed
xlr destroy g || fail "destroy ended with status $?"
[ ! -e agent ] || fail 'the socket is left'
nothing_left "$id"
