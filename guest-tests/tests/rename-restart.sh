# on_reboot = rename-restart: the domain that ends is kept under a dated name, beside the one that follows it.
. /lab/tests/lib.sh
guest g 6.12-cloud wait 'on_reboot = "rename-restart"'
start g
first=$(xlr domid g)
xlr reboot g || fail "reboot ended with status $?"
again() { now=$(xlr domid g 2>/dev/null) && [ "$now" -gt "$first" ] && xlr list g | grep -qE "^g +$now +512 +2     [r-][b-]---- "; }
until_true 60 again || { xlr list; fail "no running domain followed"; }
xlr list >listed; cat listed
want listed "^g-[0-9]{8}T[0-9]{4}Z +$first +512 +[12]     ---sr- " 'the one that ended is not kept'
xlr destroy "$first" || fail "destroy of the kept one ended with status $?"
alive g || fail "destroying the kept one took its successor along"
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$first"
nothing_left "$now"
