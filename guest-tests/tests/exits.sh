# exits.sh: 10,000 IPIs and 10,000 notifications of a back-end come to userspace not once; 1000 hypercalls that have to do.
. /lab/tests/lib.sh
cat >g.cfg <<END
name = "g"
type = "pvh"
kernel = "/guest/micro/exits"
memory = 32
on_poweroff = "preserve"
on_crash = "preserve"
END
mkfifo stdin
xlr create -p g.cfg || fail "xlr create ended with status $?"
xlr console g <>stdin >g.log 2>&1 &
xlr unpause g
until_true 90 grep -qE 'SUCCESS|SKIP|FAILURE' g.log || { cat g.log; fail 'no verdict'; }
cat g.log
grep -q SUCCESS g.log || fail "$(grep -E 'SKIP|FAILURE' g.log | tail -n 1 | tr -d '\r')"
xlr describe g exits >exits || fail "xlr describe ended with status $?"
cat exits
hypercalls=$(awk '$1 == "hypercall" { print $2 }' exits)
all=$(awk 'NR > 1 { sum += $2 } END { print sum }' exits)
[ "$hypercalls" -ge 1000 ] || fail "only $hypercalls hypercalls are counted, there were 1000 at least"
[ "$all" -lt 5000 ] || fail "$all exits to userspace: 20,000 events are not all the kernel's"
xlr describe g hypercalls >calls || fail "xlr describe ended with status $?"
cat calls
grep -q 'EVENT_CHANNEL_OP.STATUS' calls || fail 'no hypercall is counted by its name'
grep 'EVENT_CHANNEL_OP.SEND' calls && fail 'some events come to userspace'
xlr destroy g
