# Several readers see the same; a late one gets what was before it.
. /lab/tests/lib.sh
guest g 6.12-cloud wait
start g
for n in 1 2 3; do
    xlr console g <>stdin >"reader$n.log" 2>&1 &
    eval "pid$n=$!"
done
for n in 1 2 3; do
    until_true 10 grep -q 'guest: up' "reader$n.log" || fail "reader $n got no replay"
    want "reader$n.log" 'Booting kernel on Xen PVH' "reader $n got no beginning"
done
xlr shutdown -w g || fail "shutdown ended with status $?"
for n in 1 2 3; do
    until_true 10 grep -q 'reboot: Power down' "reader$n.log" || fail "reader $n did not see the end"
done
