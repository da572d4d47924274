# on_crash = preserve: a guest that panicked stays, shown as crashed, until it is destroyed, and a core of it can be had.
. /lab/tests/lib.sh
guest g 6.12-cloud panic 'on_crash = "preserve"'
xlr create g.cfg || fail "xlr create ended with status $?"
id=$(xlr domid g)
crashed() { xlr list g | grep -qE "^g +$id +512 +[12]     ---sc- "; }
until_true 60 crashed || { xlr list; fail "the panicked guest is not shown as crashed"; }
sleep 2
crashed || { xlr list; fail "the panicked guest did not stay"; }
xlr dump-core g /tmp/g.core || fail "dump-core ended with status $?"
[ "$(head -c 4 /tmp/g.core | tail -c 3)" = ELF ] || fail 'the core is no ELF file'
[ "$(wc -c </tmp/g.core)" -gt 536870912 ] && [ "$(du -k /tmp/g.core | cut -f1)" -gt 40000 ] || { ls -ls /tmp/g.core; fail 'the core has not the guest in it'; }
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
