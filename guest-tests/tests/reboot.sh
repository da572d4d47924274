# reboot.sh KERNEL [LINE...]: a guest that reboots itself comes back under a new domid, as on_reboot says.
. /lab/tests/lib.sh
kernel=$1
shift
guest g "$kernel" reboot 'on_reboot = "restart"' "$@"
xlr create g.cfg || fail "xlr create ended with status $?"
first=$(xlr domid g) || fail "no domid"
again() { now=$(xlr domid g 2>/dev/null) && [ "$now" -gt $((first + 1)) ]; }
until_true 60 again || { xlr list; fail "domid $first never came back twice"; }
xlr destroy g || fail "destroy ended with status $?"
# And when told to, a reboot is the end.
guest h "$kernel" reboot 'on_reboot = "destroy"' "$@"
boot h
want h.log 'reboot: Restarting system'
gone h 10
