# network-user.sh IMAGE: user-mode networking. A whole Debian that belongs to nobody in particular gets its address and its name server from
# passt, installs a package from a server outside, and is reached by ssh and UDP through forwarded ports.
. /lab/tests/lib-devices.sh
take_disk "$1"
outside
guest_files
user_home
{
    echo 'name = "g"'
    echo 'type = "pvh"'
    printf 'kernel = "%s/vmlinuz"\nramdisk = "%s/initrd.img"\nextra = "root=LABEL=root ro console=hvc0"\n' "$PWD" "$PWD"
    echo 'memory = 512'
    echo 'vcpus = 2'
    echo "disk = [\"$disk,raw,xvda,rw\"]"
    echo 'vif = ["type=user,hostfwd=tcp:2222:22,hostfwd=udp:127.0.0.1:5353:5300"]'
} >g.cfg
chown nobody "$disk"

# What cannot be given is one line, and leaves nothing.
refused() {
    as_nobody "xlr create $PWD/g.cfg" </dev/null >err 2>&1
    status=$?
    grep -v '^Parsing config' err >complaint
    cat complaint
    [ "$status" = 3 ] || fail "$1: status $status, not 3"
    [ "$(wc -l <complaint)" = 1 ] || fail "$1: not one line of complaint"
    want complaint "$2"
    until_true 30 no_process || fail "$1: a process is left"
    [ -z "$(pidof passt passt.avx2)" ] || fail "$1: passt is left"
}
nc -l -p 2222 </dev/null >/dev/null &
listener=$!
until_true 60 eval 'netstat -lnt | grep -q :2222'
refused 'a port in use' 'vif 0:.*passt.*2222'
kill $listener
mv /usr/bin/passt /usr/bin/elsewhere
refused 'no passt' 'vif 0:.*passt.*apt install passt'
mv /usr/bin/elsewhere /usr/bin/passt

as_nobody "xlr create $PWD/g.cfg" || fail "nobody cannot create a guest with user-mode networking"
log=g.log
as_nobody "xlr console g <>$PWD/stdin" >g.log 2>&1 &
id=$(as_nobody 'xlr domid g')
ps -o user,comm | grep -q '^nobody *passt' || { ps; fail 'no passt of nobody'; }

# ssh by nobody: the password comes from a program that prints it.
printf '#!/bin/sh\necho xlr\n' >/run/ask && chmod 755 /run/ask
ssh_guest() {
    tools setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/tmp SSH_ASKPASS=/run/ask SSH_ASKPASS_REQUIRE=force \
        timeout 600 ssh -q -p 2222 -o ConnectTimeout=30 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1 "$@"
}
# What it says on its console may be broken up by its kernel: then ssh finds out.
until_true 400 grep -q 'debian login:' "$log" || echo 'no login prompt'
until_true 120 ssh_guest true || fail 'no ssh into the guest'
by_ssh() { ssh_guest "$1" >said 2>&1 || { cat said; fail "by ssh: $1"; }; }
# The guest has L1's own address, gateway and name server.
by_ssh 'ip -4 -o addr show scope global; ip route; cat /run/systemd/netif/leases/*'
cat said
want said "inet $beyond.2/24"
want said "default via $beyond.254"
want said "^DNS=$beyond.1"
by_ssh "echo nameserver $beyond.1 >/etc/resolv.conf; getent hosts repo.lab"
want said "^$beyond.1 *repo.lab"
by_ssh 'sed -i s/192.168.77.1/repo.lab/ /etc/apt/sources.list.d/lab.list && apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y hello && hello'
want said 'Hello, world!'
# Bulk data both ways arrives as it was sent.
dd if=/dev/urandom of=/run/lan/www/blob bs=1M count=2 2>/dev/null
sum=$(sha256sum </run/lan/www/blob | cut -d' ' -f1)
by_ssh '/usr/lib/apt/apt-helper download-file http://repo.lab/blob /root/blob && sha256sum /root/blob'
want said "^$sum " 'what was downloaded is not what was sent'
ssh_guest 'cat /root/blob' >back || fail 'no way back'
[ "$(sha256sum <back | cut -d' ' -f1)" = "$sum" ] || fail 'what came back is not what was sent'
ssh_guest 'cat >/root/again && sha256sum /root/again' <back >said || fail 'no way in'
want said "^$sum " 'what was sent in is not what was sent'
# UDP through its port. L1's other addresses were not asked for.
by_ssh "nohup python3 -c 'import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((\"\", 5300))
while True:
    data, who = s.recvfrom(2000)
    s.sendto(data.upper(), who)' >/dev/null 2>&1 </dev/null &"
answered() {
    tools python3 -c 'import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect(("127.0.0.1", 5353))
s.send(b"hello")
print(s.recv(100).decode())' >echoed 2>&1
    grep -q HELLO echoed
}
until_true 6 answered || { cat echoed; fail 'no answer by UDP'; }
# passt dies: the guest's card is closed, and begins anew with another one.
login
kill -9 $(pidof passt passt.avx2)
must 120 'until grep -q Closed /sys/bus/xen/devices/vif-0/state; do sleep 0.2; done; cd /sys/bus/xen/drivers/vif && echo vif-0 >unbind && echo vif-0 >bind; cd /'
until_true 120 ssh_guest true || fail 'no ssh into the guest with another passt'
ssh_guest 'dmesg | grep -E "BUG:|Oops|Call Trace|WARNING: CPU"' && fail "the guest's kernel complains"
ssh_guest 'poweroff' || :
gone_for_nobody() { ! as_nobody 'xlr list g' >/dev/null 2>&1; }
until_true 180 gone_for_nobody || fail 'the guest does not end'
want g.log 'reboot: Power down'
until_true 30 eval '[ -z "$(pidof passt passt.avx2)" ]' || { ps; fail 'passt is left'; }
until_true 30 no_process || fail 'a process is left'
check_disk
