# What tests of disks and network cards share. Sourced first, in the place of lib.sh. A guest's console is the file NAME.log and the fifo
# stdin; `login` and `shell` make it a shell that `in_guest` runs commands in.
. /lab/tests/lib.sh
lan=192.168.77

# take_disk IMAGE: sets disk to a fresh image of that name, whose folder has room for more.
take_disk() {
    for disk in /disk/[1-9]*/"$1.img"; do
        [ -f "$disk" ] && mkdir "${disk%/*}/taken" 2>/dev/null && return
    done
    fail "L1 has no fresh image $1"
}
# Its first partition, read only, at ./root while the command runs.
on_partition() {
    mkdir -p root
    losetup -r -o 1048576 /dev/loop6 "$disk" || fail "no loop device on $disk"
    mount -o ro /dev/loop6 root || fail "the guest's file system does not mount"
    "$@"
    result=$?
    umount root
    losetup -d /dev/loop6
    return $result
}
# check_disk: the file system must be clean.
check_disk() {
    losetup -r -o 1048576 /dev/loop6 "$disk" || fail "no loop device on $disk"
    tools e2fsck -fn /dev/loop6 >fsck.log 2>&1
    result=$?
    losetup -d /dev/loop6
    cat fsck.log
    [ "$result" = 0 ] || fail "e2fsck -fn finds the guest's file system unclean (status $result)"
    ! grep -q 'recovering journal' fsck.log || fail "the guest left its journal behind"
}

# lan: the bridge xenbr0 with L1 at .1, leases from .100 on, and the images' package repository by http.
lan() {
    [ -d /sys/class/net/xenbr0 ] && return
    ip link add xenbr0 type bridge
    ip addr add $lan.1/24 dev xenbr0
    ip link set xenbr0 up
    mkdir -p /run/lan/www
    ln -sfn /tools/srv/apt /run/lan/www/apt
    : >/run/lan/leases
    printf '%s\n' "start $lan.100" "end $lan.200" 'interface xenbr0' 'lease_file /run/lan/leases' 'pidfile /run/lan/pid' \
        'option subnet 255.255.255.0' >/run/lan/udhcpd.conf
    udhcpd -S /run/lan/udhcpd.conf >/dev/null 2>&1
    httpd -p $lan.1:80 -h /run/lan/www
}
# outside: a network beyond L1's own, as an unprivileged user has it: L1 is .2, its gateway .254, and at .1 the images' package
# repository by http, and a name server with that address for every name. It ends with the script.
beyond=192.168.78
outside() {
    mkdir -p /run/lan/www
    ln -sfn /tools/srv/apt /run/lan/www/apt
    cp /lab/tests/names.py /run/lan/
    unshare -n sh -c 'until ip link show in0 2>/dev/null; do sleep 0.1; done
        ip link set lo up; ip addr add '$beyond'.1/24 dev in0; ip addr add '$beyond'.254/24 dev in0; ip link set in0 up
        httpd -p '$beyond'.1:80 -h /run/lan/www; exec tools python3 /run/lan/names.py '$beyond'.1' >outside.log 2>&1 &
    world=$!
    trap 'kill $world $(pgrep_f httpd $beyond.1) 2>/dev/null; ip link del out0' EXIT
    tools ip link add out0 type veth peer name in0 netns $world || fail 'no network outside'
    ip addr add $beyond.2/24 dev out0
    ip link set out0 up
    ip route add default via $beyond.254
    echo "nameserver $beyond.1" >/etc/resolv.conf
    until_true 60 eval "ping -c 1 -W 1 $beyond.1 >/dev/null" || fail 'the network outside does not come up'
}

# user_home: nobody may use KVM, and has a folder for its run directory; `as_nobody COMMAND` is it.
user_home() {
    chmod 666 /dev/kvm
    mkdir -m 700 home
    [ -p stdin ] || mkfifo stdin
    chmod 666 stdin
    chown nobody home
}
as_nobody() { su nobody -s /bin/sh -c "export XDG_RUNTIME_DIR=$PWD/home; $1"; }
# guest_files: vmlinuz and initrd.img of the disk's own kernel.
guest_files() { on_partition cp -L root/vmlinuz root/initrd.img . && chmod 644 vmlinuz initrd.img; }

# power_on NAME: creates NAME.cfg with its console in NAME.log.
power_on() {
    [ -p stdin ] || mkfifo stdin
    xlr create "$1.cfg" || fail "xlr create $1.cfg ended with status $?"
    log=$1.log
    xlr console "$1" <>stdin >"$log" 2>&1 &
    console=$!
}
# expect SECONDS PATTERN: on the console, at any time so far.
expect() { until_true "$1" grep -qE -- "$2" "$log" || { tail -n 30 "$log" | tr -d '\r'; fail "no \"$2\" on the console in $1 s"; }; }
# say LINE: to the console; with nobody there any more it is lost, and nobody waits.
say() { printf '%s\n' "$1" 1<>stdin; }
# witness: the command is given up, and the guest says how it is.
witness() {
    printf '\003' >stdin
    say 'dmesg | tail -n 4; grep -E "xen|hyp|RES|CAL" /proc/interrupts; grep . /sys/bus/xen/devices/*/state; cut -c 1-60 /proc/$(pidof xenwatch)/stack'
    sleep 10
    tail -n 30 "$log" | tr -d '\r'
}
asked=0
# in_guest SECONDS COMMAND: runs it in the guest's shell; what it prints is in the file `said`, its status is the status.
in_guest() {
    asked=$((asked + 1))
    say "echo BEGIN''-$asked; { $2; } 2>&1; echo END''-$asked-\$?"
    until_true "$1" grep -q "^.\?END-$asked-[0-9]" "$log" || { witness; fail "no end of \"$2\" in the guest in $1 s"; }
    tr -d '\r' <"$log" | sed -n "/^BEGIN-$asked\$/,/^END-$asked-/p" | sed '1d;$d' >said
    status=$(tr -d '\r' <"$log" | sed -n "s/^END-$asked-//p")
    return "$status"
}
# must SECONDS COMMAND: the same, and it must succeed.
must() { in_guest "$1" "$2" || { cat said; fail "in the guest: $2: status $status"; }; }
# said_as FILE: it said that one line, though the kernel may have put one of its own beside it.
said_as() { grep -q -x -F -f "$1" said || { cat "$1" said; return 1; }; }
# quiet_shell: one that says nothing of its own, on a console where the guest's kernel says no more than that it dies: it would say it in
# the middle of what programs say. `dmesg` has the rest.
quiet_shell() {
    say 'exec env PS1= ENV= PAGER=cat DEBIAN_FRONTEND=noninteractive /bin/sh'
    sleep 1
    say 'stty -echo'
    must 60 'dmesg -n 1'
}
# unharmed: the guest's kernel has nothing to complain of. It is asked, since it says little on the console.
unharmed() { must 60 'if dmesg | grep -E "BUG:|Oops|Call Trace|WARNING: CPU|EXT4-fs error|I/O error"; then false; fi'; }
# prompted PATTERN COUNT: so many lines of the console have it.
prompted() { [ "$(grep -cE -- "$1" "$log")" -ge "$2" ]; }
# login: as root, through getty. The kernel or systemd may speak in the middle of a prompt, which nobody finds then: it is asked for again.
login() {
    for try in $(seq 20); do
        until_true 20 prompted 'debian login:' 1 && break
        [ "$try" -lt 5 ] || say ''
    done
    for try in 1 2 3; do
        say root
        until_true 60 prompted 'assword:' "$try"
        say xlr
        until_true 60 prompted 'root@debian:~#' 1 && break
    done
    expect 1 'root@debian:~#'
    quiet_shell
}
# detached KIND-detach GUEST DEVICE: it must go. A guest on a slow machine may take longer than the 10 s that xlr waits for, which is an
# error of the command, but then the device goes when the guest lets go: it is waited for here.
detached() {
    xlr "$@" 2>err && return
    cat err
    grep -q 'has not let go' err || fail "xlr $* ended with an error"
    # Each of these waits 10 s again.
    until_true 4 no_device "$@" || fail "the guest never lets go: $*"
}
no_device() { ! xlr "$@" 2>err && grep -qE 'not connected|Unknown device' err; }
# server PORT COMMAND...: runs it in L1 and waits until something listens there.
server() {
    at=$1
    shift
    "$@"
    until_true 60 eval "netstat -lnt | grep -q ':$at '" || fail "nothing in L1 listens at port $at"
}

# box NAME LINE...: a quick guest for device tests: the lab's init, then a shell in the Debian system on xvda, which is read only.
box() {
    name=$1
    shift
    [ "$#" -gt 0 ] || set -- ''
    guest "$name" 6.12-cloud devices "disk = [\"$(echo /disk/0/*.img),raw,xvda,r\"]" "$@"
    power_on "$name"
    in_box
}
# in_box: its shell is there.
in_box() {
    expect 200 'guest: shell'
    sleep 1
    quiet_shell
}
