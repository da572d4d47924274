# paused.sh [LINE...]: a guest that is paused uses no CPU, and goes on where it was.
. /lab/tests/lib.sh
guest g 6.12-cloud wait "$@"
start g
xlr pause g || fail "pause ended with status $?"
want_state() { xlr list g | tail -n 1 | grep -q -- "$1"; }
want_state '--p---' || { xlr list; fail 'the guest is not paused'; }
used() { xlr list g | tail -n 1 | awk '{ print $6 }'; }
before=$(used)
sleep 3
[ "$before" = "$(used)" ] || fail "a paused guest ran: $before s, then $(used) s"
xlr unpause g || fail "unpause ended with status $?"
sleep 1
xlr shutdown -w g || fail "shutdown -w ended with status $?"
want g.log 'guest: asked to poweroff'
grep -E 'BUG:|Oops|WARNING: CPU|self-detected stall|soft lockup' g.log && fail "the guest's kernel complains"
gone g 5
