# paused-clock.sh [LINE...]: the clock of a domain stands still while it is paused, and its wall clock follows the host's.
. /lab/tests/lib.sh
cat >g.cfg <<END
name = "g"
type = "pvh"
kernel = "/guest/micro/pvclock"
memory = 64
extra = "paused"
END
for line; do echo "$line"; done >>g.cfg
mkfifo stdin
xlr create -c g.cfg <>stdin >g.log 2>&1 &
until_true 60 grep -q 'to be paused' g.log || { cat g.log; fail 'the guest does not come to its loop'; }
xlr pause g || fail "pause ended with status $?"
sleep 4
xlr unpause g || fail "unpause ended with status $?"
until_true 60 grep -qE 'an hour is to pass|FAILURE' g.log || { cat g.log; fail 'the clock did not stand still'; }
date -s "@$(($(date +%s) + 3600))" >/dev/null || fail "date -s ended with status $?"
trap 'date -s "@$(($(date +%s) - 3600))" >/dev/null' EXIT
until_true 60 grep -qE 'SUCCESS|SKIP|FAILURE' g.log || { cat g.log; fail 'the wall clock does not follow'; }
cat g.log
grep -q SUCCESS g.log || fail "$(grep -E 'SKIP|FAILURE' g.log | tail -n 1 | tr -d '\r')"
