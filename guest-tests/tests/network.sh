# network.sh IMAGE [LINE...]: a card on a bridge: ping, TCP both ways, a file unharmed, and cards that come and go.
. /lab/tests/lib-devices.sh
shift
lan
box g 'vif = ["bridge=xenbr0,mac=00:16:3e:00:77:01"]' "$@"
id=$(xlr domid g)
must 90 "ip addr add $lan.50/24 dev eth0 && ip link set eth0 up && cat /sys/class/net/eth0/address"
want said '^00:16:3e:00:77:01$'
# So many answers, however late.
must 120 "ping -c 5 -i 0.3 -w 100 $lan.1"
must 120 "ping -c 3 -i 0.3 -w 100 -s 20000 $lan.1"
server 5201 tools iperf3 -s -D
for way in '' -R; do
    must 120 "iperf3 -c $lan.1 -t 3 -i 0 $way"
    want said 'receiver'
    grep receiver said
done
killall iperf3
dd if=/dev/urandom of=/run/lan/www/blob bs=1M count=16 2>/dev/null
# A bulk download by apt's own http client.
must 200 "/usr/lib/apt/apt-helper -o APT::Sandbox::User=root download-file http://$lan.1/blob /tmp/blob >/dev/null && sha256sum </tmp/blob"
sha256sum </run/lan/www/blob >seen
said_as seen || fail 'what arrived is not what was sent'
rm /run/lan/www/blob

# Cards that come and go: a plain one, one whose sending is limited, one that a script puts on its bridge.
come() {
    xlr network-attach g mac=00:16:3e:00:77:02 "$@" || fail "network-attach $* ended with status $?"
    must 120 'until ip link show eth1; do sleep 0.2; done; ip addr add 192.168.76.50/24 dev eth1 && ip link set eth1 up'
}
go() {
    detached network-detach g "$1"
    must 120 'while ip link show eth1 2>/dev/null; do sleep 0.2; done'
}
ip addr add 192.168.76.1/24 dev xenbr0
come bridge=xenbr0
go 1
# Somebody deletes the interface: the guest is told, and the card that begins anew has one again.
come bridge=xenbr0
must 120 'ping -c 1 -w 100 192.168.76.1'
ip link del "vif$id.1"
until_true 60 eval "xenstore read /local/domain/0/backend/vif/$id/1/error 2>/dev/null | grep 'end is gone'" || fail 'nobody hears that the interface is gone'
must 120 'until grep -q Closed /sys/bus/xen/devices/vif-1/state; do sleep 0.2; done; cd /sys/bus/xen/drivers/vif && echo vif-1 >unbind && echo vif-1 >bind; cd /'
must 120 'until ip link show eth1; do sleep 0.2; done; ip addr add 192.168.76.50/24 dev eth1 && ip link set eth1 up && ping -c 1 -w 100 192.168.76.1'
go 1
come bridge=xenbr0 rate=2Mb/s
# A megabyte takes four seconds but for what may go at once.
receiver() { nc -l -p 9999 </dev/null >sent & }
server 9999 receiver
read -r begin _ </proc/uptime
must 120 "bash -c 'head -c 1000000 /dev/urandom | tee /tmp/sent >/dev/tcp/192.168.76.1/9999'"
wait $!
read -r end _ </proc/uptime
echo "a megabyte at 2 Mb/s: $begin to $end s"
awk -v begin="$begin" -v end="$end" 'BEGIN { exit !(end - begin >= 3) }' || fail 'the rate does not hold'
must 120 'sha256sum </tmp/sent'
sha256sum <sent >seen
said_as seen || fail 'what was sent slowly is not what arrived'
go 00:16:3e:00:77:02
cat >vif-lab <<END
#!/bin/sh
echo "\$1 \$2 \$vif \$netdev \$(xenstore-read "\$XENBUS_PATH/mac") \$(xenstore-read "\$XENBUS_PATH/ip")" >>$PWD/scripted
[ "\$1" = offline ] || { brctl addif xenbr0 "\$vif" && ip link set "\$vif" up; }
END
chmod 755 vif-lab
come script="$PWD/vif-lab" ip=192.168.76.50 gatewaydev=eth9
must 120 'ping -c 1 -w 100 192.168.76.1'
go 1
for action in online offline; do echo "$action type_if=vif vif$id.1 eth9 00:16:3e:00:77:02 192.168.76.50"; done >seen
cmp seen scripted || { cat scripted; fail 'the script was not run as libxl runs it'; }
unharmed
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
[ -z "$(ls /sys/class/net/xenbr0/brif)" ] || fail "left on the bridge: $(ls /sys/class/net/xenbr0/brif)"
