# network.sh IMAGE: a card on a bridge: ping, TCP both ways, a file unharmed, and cards that come and go.
. /lab/tests/lib-devices.sh
lan
box g 'vif = ["bridge=xenbr0,mac=00:16:3e:00:77:01"]'
id=$(xlr domid g)
must 30 "ip addr add $lan.50/24 dev eth0 && ip link set eth0 up && cat /sys/class/net/eth0/address"
want said '^00:16:3e:00:77:01$'
must 60 "ping -c 5 -i 0.3 $lan.1"
want said ' 0% packet loss'
must 60 "ping -c 3 -i 0.3 -s 20000 $lan.1"
want said ' 0% packet loss'
tools iperf3 -s -D || fail 'no iperf3 server in L1'
for way in '' -R; do
    must 90 "iperf3 -c $lan.1 -t 3 -i 0 $way"
    want said 'receiver'
    grep receiver said
done
killall iperf3
dd if=/dev/urandom of=/run/lan/www/blob bs=1M count=16 2>/dev/null
# A bulk download by apt's own http client.
must 120 "/usr/lib/apt/apt-helper -o APT::Sandbox::User=root download-file http://$lan.1/blob /tmp/blob >/dev/null && sha256sum </tmp/blob"
sha256sum </run/lan/www/blob >seen
said_as seen || fail 'what arrived is not what was sent'
rm /run/lan/www/blob
for round in $(seq 3); do
    xlr network-attach g bridge=xenbr0 mac=00:16:3e:00:77:02 || fail "network-attach ended with status $?"
    must 30 'until ip link show eth1; do sleep 0.2; done'
    xlr network-detach g 1 || fail "network-detach ended with status $?"
    must 30 'while ip link show eth1 2>/dev/null; do sleep 0.2; done'
done
grep -E 'BUG:|Oops|Call Trace|WARNING: CPU' g.log && fail "the guest's kernel complains"
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
[ -z "$(ls /sys/class/net/xenbr0/brif)" ] || fail "left on the bridge: $(ls /sys/class/net/xenbr0/brif)"
