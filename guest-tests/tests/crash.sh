# on_crash: restart brings a panicking guest back; the default destroys it.
. /lab/tests/lib.sh
guest g 6.12-cloud panic 'on_crash = "restart"'
xlr create g.cfg || fail "xlr create ended with status $?"
first=$(xlr domid g)
again() { now=$(xlr domid g 2>/dev/null) && [ "$now" -gt "$first" ]; }
until_true 60 again || { xlr list; fail "the panicking guest did not come back"; }
xlr destroy g || fail "destroy ended with status $?"
guest h 6.12-cloud panic
xlr create h.cfg || fail "xlr create ended with status $?"
gone h 60
