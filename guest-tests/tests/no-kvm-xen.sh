# On a host whose KVM has no KVM_XEN a create says so, or the portable backend boots the guest.
. /lab/tests/lib.sh
guest g 6.12-cloud poweroff
[ -p stdin ] || mkfifo stdin
xlr create -c g.cfg <>stdin >g.log 2>err
status=$?
cat g.log err
if [ "$status" = 0 ]; then
    want g.log 'Booting kernel on Xen PVH'
    want g.log 'reboot: Power down'
else
    [ "$status" = 3 ] || fail "status $status"
    want err 'KVM_XEN'
fi
nothing_left 1
