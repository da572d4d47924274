# network-refused.sh: cards that cannot be had: one clear line each, xl's exit status, nothing left. And what somebody without rights can have.
. /lab/tests/lib-devices.sh
lan
guest running 6.12-cloud wait 'vif = ["bridge=xenbr0"]'
start running
# Another guest's console will read stdin.
kill $!
id=$(xlr domid running)
processes=$(pidof xen-emu)
failed=
wrong() { echo "WRONG: $*"; failed="$failed$*; "; }
interfaces() { ls /sys/class/net; }
interfaces >before
same_interfaces() {
    interfaces >after
    cmp -s before after
}

# refused STATUS PATTERN COMMAND...
refused() {
    want_status=$1 pattern=$2
    shift 2
    "$@" </dev/null >stdout 2>err
    status=$?
    grep -v '^Parsing config' err >complaint
    echo "== $* -> $status"; cat complaint
    [ "$status" = "$want_status" ] || wrong "$*: status $status, not $want_status"
    [ "$(wc -l <complaint)" = 1 ] || wrong "$*: not one line of complaint but $(wc -l <complaint)"
    grep -qE -- "$pattern" complaint || wrong "$*: the complaint has not \"$pattern\""
    [ "$(xlr list | wc -l)" = 3 ] || { xlr list; wrong "$*: a domain is left"; }
    until_true 20 eval '[ "$(pidof xen-emu)" = "$processes" ]' || wrong "$*: a process is left"
    until_true 20 same_interfaces || wrong "$*: interfaces are left: $(cat after)"
    [ "$(xenstore-ls /local/domain/0/backend/vif | grep -c hotplug-status)" = 1 ] || wrong "$*: nodes are left"
}
vif() { guest bad 6.12-cloud poweroff "vif = [\"$1\"]"; }

# At create, what is wrong with the words is said with their place, and what the host has not got by its name.
vif 'bridge=nowhere';                 refused 3 'vif 0: bridge nowhere does not exist' xlr create bad.cfg
vif 'bridge=lo';                      refused 3 'vif 0: lo is a network interface, but no bridge' xlr create bad.cfg
vif "bridge=xenbr0,vifname=vif$id.0"; refused 3 "vif 0: .*vif$id.0 is in use" xlr create bad.cfg
# A bridge that was made for it goes with it, also when it is another card that cannot be had.
vif "bridge=xenbr1,bridge-create=1,vifname=vif$id.0"; refused 3 "vif 0: .*vif$id.0 is in use" xlr create bad.cfg
vif 'bridge=xenbr1,bridge-create=1", "bridge=nowhere'; refused 3 'vif 1: bridge nowhere does not exist' xlr create bad.cfg
vif 'bridge=xenbr0,vifname=xenbr0';   refused 3 'vif 0: xenbr0 cannot be a TAP' xlr create bad.cfg
vif 'bridge=xenbr0,script=nowhere';   refused 3 'bad.cfg:8:.*/etc/xen/scripts/nowhere' xlr create bad.cfg
vif 'mac=00:16:3e:00:00';             refused 1 'bad.cfg:8:.*mac `00:16:3e:00:00`' xlr create bad.cfg
vif 'mac=01:16:3e:00:00:01';          refused 1 'bad.cfg:8:.*multicast' xlr create bad.cfg
vif 'brigde=xenbr0';                  refused 1 'bad.cfg:8:.*brigde.*bridge' xlr create bad.cfg
vif 'rate=10';                        refused 1 'bad.cfg:8:.*rate `10`' xlr create bad.cfg
vif 'mtu=67';                         refused 1 'bad.cfg:8:.*mtu' xlr create bad.cfg
vif 'hostfwd=tcp:2222:22';            refused 1 'bad.cfg:8:.*type=user' xlr create bad.cfg
guest bad 6.12-cloud poweroff 'vif = ["bridge=xenbr0", "bridge=nowhere"]'
refused 3 'vif 1: bridge nowhere' xlr create bad.cfg
# The second card with the same id.
guest bad 6.12-cloud poweroff 'vif = ["bridge=xenbr0,devid=3", "bridge=xenbr0,devid=3"]'
refused 1 'bad.cfg:8:.*3' xlr create bad.cfg
vif 'bridge=xenbr0,vlan=5';           refused 3 'script /etc/xen/scripts/vif-bridge: No such file' xlr create bad.cfg
# And at attach.
refused 1 'vif 1: bridge nowhere does not exist' xlr network-attach running bridge=nowhere
refused 1 'mac `x`' xlr network-attach running mac=x
refused 1 'Unknown device 00' xlr network-detach running 00:16:3e:99:99:99
refused 1 'Unknown device 7' xlr network-detach running 7
refused 1 'nosuch' xlr network-attach nosuch bridge=xenbr0

# Nobody in particular may not make a TAP, whoever may open /dev/net/tun; it is told what it can have.
user_home
for mode in 600 666; do
    chmod $mode /dev/net/tun
    vif bridge=xenbr0
    refused 3 'vif 0: .*(CAP_NET_ADMIN|type=user)' su nobody -s /bin/sh -c "XDG_RUNTIME_DIR=$PWD/home exec xlr create $PWD/bad.cfg"
    [ -z "$(find home -type s -path '*[0-9]/*')" ] || wrong 'nobody has sockets left'
done
# A TAP that was made for it is as good as any.
tools ip tuntap add dev tap77 mode tap user nobody vnet_hdr multi_queue || fail 'no TAP for nobody'
ip link set tap77 up
brctl addif xenbr0 tap77
guest g 6.12-cloud devices "disk = [\"$(echo /disk/0/*.img),raw,xvda,r\"]" 'vif = ["type=tap,vifname=tap77"]'
as_nobody "xlr create $PWD/g.cfg" || fail "nobody cannot have a TAP made for it"
log=g.log
as_nobody "xlr console g <>$PWD/stdin" >g.log 2>&1 &
in_box
must 120 "ip addr add $lan.50/24 dev eth0 && ip link set eth0 up && ping -c 3 -w 100 $lan.1"
as_nobody 'xlr destroy g' || fail 'nobody cannot destroy its guest'
[ -d /sys/class/net/tap77 ] || fail 'the TAP is gone that was not ours'
ip link del tap77
until_true 20 same_interfaces || fail "interfaces are left: $(cat after)"
xlr destroy running
nothing_left "$id"
[ -z "$failed" ] || fail "$failed"
