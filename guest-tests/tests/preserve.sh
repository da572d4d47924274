# on_crash = preserve: a guest that panicked stays, shown as crashed, until it is destroyed.
. /lab/tests/lib.sh
guest g 6.12-cloud panic 'on_crash = "preserve"'
xlr create g.cfg || fail "xlr create ended with status $?"
id=$(xlr domid g)
crashed() { xlr list g | grep -qE "^g +$id +512 +[12]     ---sc- "; }
until_true 60 crashed || { xlr list; fail "the panicked guest is not shown as crashed"; }
sleep 2
crashed || { xlr list; fail "the panicked guest did not stay"; }
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
