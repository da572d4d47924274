# network-load.sh IMAGE MIB PACKETS: two cards with MTU 1500 and 9000. Known data both ways over IPv4 and IPv6, with the guest's and
# the host's offloads on and off, and over a line that loses and reorders; then so many small packets, after which nothing has grown.
. /lab/tests/lib-devices.sh
mib=$2 packets=$3
lan
ip link add xenbr9 type bridge
ip link set xenbr9 mtu 9000
ip addr add 192.168.79.1/24 dev xenbr9
ip link set xenbr9 up
tools ip addr add fd00:77::1/64 dev xenbr0 nodad
tools ip addr add fd00:79::1/64 dev xenbr9 nodad
cp /lab/tests/load.py /run/lan/www/
servers=
trap 'kill $servers; ip link del xenbr9' EXIT
serve() {
    tools python3 /run/lan/www/load.py serve "$1" 7777 >serve.log 2>&1 &
    servers="$servers $!"
    until_true 100 grep -q ready serve.log && rm serve.log
}
for address in $lan.1 192.168.79.1 fd00:77::1 fd00:79::1; do serve $address || fail "no server at $address"; done
box g 'vif = ["bridge=xenbr0,mac=00:16:3e:00:77:01", "bridge=xenbr9,mac=00:16:3e:00:79:01,mtu=9000"]'
id=$(xlr domid g)
emu=$(pidof xen-emu)
[ "$(cat "/sys/class/net/vif$id.1/mtu")" = 9000 ] || fail "the TAP's MTU is $(cat "/sys/class/net/vif$id.1/mtu")"
[ "$(xenstore-read "/local/domain/$id/device/vif/1/mtu")" = 9000 ] || fail 'the guest is not told of the MTU'
[ "$(xenstore-read "/local/domain/$id/device/vif/0/mtu")" = 1500 ] || fail 'the guest is not told of the usual MTU'
must 90 "ip addr add $lan.50/24 dev eth0 && ip addr add 192.168.79.50/24 dev eth1 && ip link set eth0 up && ip link set eth1 mtu 9000 up"
must 90 'ip addr add fd00:77::50/64 dev eth0 nodad && ip addr add fd00:79::50/64 dev eth1 nodad'
must 120 "/usr/lib/apt/apt-helper -o APT::Sandbox::User=root download-file http://$lan.1/load.py /tmp/load.py"
load() { must $((200 + mib * 20)) "python3 /tmp/load.py $*"; }

# counted DEVICE way: packets and bytes through a TAP; rx is out of the guest.
counted() { cat "/sys/class/net/vif$id.$1/statistics/$2_packets" "/sys/class/net/vif$id.$1/statistics/$2_bytes" | tr '\n' ' '; }
# mean DEVICE WAY COMMAND...: the mean size of the long packets of a transfer goes to `size`.
mean() {
    device=$1 way=$2
    shift 2
    before=$(counted "$device" "$way")
    load "$@"
    size=$(echo "$before $(counted "$device" "$way")" | awk '{ print int(($4 - $2) / ($3 - $1 + 1)) }')
}
# both DEVICE ADDRESS LEAST MOST: both ways, and the mean packet has so many bytes.
both() {
    mean "$1" rx sink "$2" 7777 "$mib"
    echo "to $2, $what: $size bytes in a packet"
    [ "$size" -ge "$3" ] && [ "$size" -le "$4" ] || fail "$what: packets out of the guest have $size bytes, not $3 to $4"
    mean "$1" tx source "$2" 7777 "$mib"
    echo "from $2, $what: $size bytes in a packet"
    [ "$size" -ge "$3" ] && [ "$size" -le "$4" ] || fail "$what: packets into the guest have $size bytes, not $3 to $4"
}
offloads() {
    for n in 0 1; do
        must 120 "ethtool -K eth$n $1 >/dev/null"
        tools ethtool -K "vif$id.$n" $1 >/dev/null || fail "L1 cannot turn offloads of its TAP: $1"
    done
}

what='all offloads'
both 0 $lan.1 1600 65600
both 1 192.168.79.1 9100 65600
both 0 fd00:77::1 1600 65600
# The longest packets there are: one write of 64 KiB, and datagrams of all sizes, in fragments where they are longer than the MTU.
load datagrams $lan.1 7777 60 65000
load datagrams fd00:79::1 7777 60 9500

# A line that loses, doubles and reorders what goes to the guest.
for n in 0 1; do tools tc qdisc add dev "vif$id.$n" root netem delay 2ms 1ms loss 0.5% duplicate 0.5% reorder 10% || fail 'no netem'; done
load source $lan.1 7777 1
load sink 192.168.79.1 7777 1
for n in 0 1; do tools tc qdisc del dev "vif$id.$n" root; done

# From here on nothing may grow.
state() {
    fds=$(ls "/proc/$emu/fd" | wc -l) threads=$(ls "/proc/$emu/task" | wc -l)
    # What it has written to, but for the guest's own memory.
    resident=$(awk '/^Size:/ { size = $2 } /^Anonymous:/ && size < 65536 { n += $2 } END { print n }' "/proc/$emu/smaps")
    nodes=$(xenstore-ls -f / | grep -vc "^/tool/xenstored") ports=$(xlr describe g evtchn | wc -l) pins=$(xlr describe g gnttab | grep -c "gref ")
}
what='no segmentation'
offloads 'tso off gso off gro off'
both 0 $lan.1 500 1514
both 1 fd00:79::1 3000 9014
what='no offload at all'
offloads 'tx off sg off'
both 0 $lan.1 500 1514
load datagrams 192.168.79.1 7777 30 30000

# Many small packets, both ways: more than the other end takes, and then as many as are answered. Nobody listens, so that nothing has to
# come through the flood but itself.
all() { for n in 0 1; do counted $n rx; counted $n tx; done | awk '{ n += $1 + $3 + $5 + $7 } END { print n }' ; }
flood() {
    must $(($1 + 200)) "python3 /tmp/load.py flood $lan.1 9 $1"
    tools python3 /run/lan/www/load.py flood $lan.50 9 "$1" || fail 'no flood from L1'
    must $(($1 + 200)) "ping -q -f -l 100 -s 64 -w $1 $lan.1"
}
# A card that has lost its way does not find it again.
flood 2
must 120 "ping -c 5 -w 100 $lan.1"
state
before="$fds $threads $nodes $ports" was=$resident pinned=$pins began=$(all)
until [ $(($(all) - began)) -ge "$packets" ]; do flood 5; done
state
echo "$(($(all) - began)) packets: descriptors, threads, nodes, ports: $before, then $fds $threads $nodes $ports"
echo "resident KiB: $was, then $resident; pins: $pinned, then $pins"
xlr describe g devices
[ "$before" = "$fds $threads $nodes $ports" ] || fail "$packets packets have left something: $before became $fds $threads $nodes $ports"
[ $((resident - was)) -lt 2048 ] || fail "$packets packets have left $((resident - was)) KiB"
# The system's disk keeps some, and comes and goes.
[ $((pins - pinned)) -lt 100 ] || fail "$packets packets have left $((pins - pinned)) pins"
must 120 "ping -c 5 -w 100 $lan.1"
offloads 'tx on sg on tso on gso on gro on'
mean 0 rx sink $lan.1 7777 "$mib"
[ "$size" -gt 1600 ] || fail 'offloads do not come back'

# No grant is left in use when the cards go: Linux would say so.
for n in 0 1; do detached network-detach g $n; done
in_guest 120 'dmesg | grep -iE "deferring g.e|g.e. 0x|still in use"' && { cat said; fail 'the guest finds its grants in use'; }
unharmed
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
for bridge in xenbr0 xenbr9; do
    [ -z "$(ls /sys/class/net/$bridge/brif)" ] || fail "left on $bridge: $(ls /sys/class/net/$bridge/brif)"
done
