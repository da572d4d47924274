# on_crash: restart brings a panicking guest back; coredump-destroy writes a core and destroys it.
. /lab/tests/lib.sh
guest g 6.12-cloud panic 'on_crash = "restart"'
xlr create g.cfg || fail "xlr create ended with status $?"
first=$(xlr domid g)
again() { now=$(xlr domid g 2>/dev/null) && [ "$now" -gt "$first" ]; }
until_true 60 again || { xlr list; fail "the panicking guest did not come back"; }
xlr destroy g || fail "destroy ended with status $?"
guest h 6.12-cloud panic 'on_crash = "coredump-destroy"'
xlr create h.cfg || fail "xlr create ended with status $?"
gone h 60
core=/var/lib/xen/dump/h
[ "$(head -c 4 $core | tail -c 3)" = ELF ] || { ls -l /var/lib/xen/dump; fail 'no core of the panicking guest'; }
