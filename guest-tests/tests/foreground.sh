# create -F stays as long as the domain is there, whatever it is told in between, and ends with status 0.
. /lab/tests/lib.sh
guest g 6.12-cloud wait
xlr create -F g.cfg >F.log 2>&1 </dev/null &
waiting=$!
until_true 10 alive g || fail "create -F made no domain: $(cat F.log)"
mkfifo stdin
xlr console g <>stdin >g.log 2>&1 &
until_true 60 grep -q 'guest: up' g.log || fail "the guest did not reach its init"
xlr pause g && xlr unpause g || fail "pause or unpause"
kill -0 $waiting || fail "create -F ended while the domain was there"
xlr shutdown -w g || fail "shutdown ended with status $?"
left=10
while kill -0 $waiting 2>/dev/null && [ $left -gt 0 ]; do sleep 1; left=$((left - 1)); done
[ $left -gt 0 ] || fail "create -F is still there 10 s after the domain"
wait $waiting || { cat F.log; fail "create -F ended with status $?"; }
nothing_left 1
