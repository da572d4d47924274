# shutdown.sh HOW [LINE...]: pv (asked by XenStore), button (-F at a guest deaf to that), trigger, sigterm (at the domain's process).
. /lab/tests/lib.sh
case $1 in pv) action=wait ;; *) action=acpid ;; esac
how=$1
shift
guest g 6.12-cloud "$action" "$@"
start g
id=$(xlr domid g)
case $how in
pv)
    xlr shutdown -w g || fail "shutdown -w ended with status $?"
    alive g && fail "shutdown -w returned while the guest was there"
    want g.log 'guest: asked to poweroff'
    ;;
button) xlr shutdown -F -w g || fail "shutdown -F -w ended with status $?" ;;
trigger) xlr trigger g power || fail "trigger ended with status $?" ;;
sigterm)
    pid=$(pidof xen-emu) || fail "no xen-emu process"
    kill -TERM $pid
    ;;
esac
gone g
sleep 1
[ "$how" = pv ] || want g.log 'guest: power button'
want g.log 'reboot: Power down'
nothing_left "$id"
