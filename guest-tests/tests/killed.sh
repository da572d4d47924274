# kill -9 of a domain's process is noticed, shown and cleaned up; the name is free again.
. /lab/tests/lib.sh
guest g 6.12-cloud wait
start g
id=$(xlr domid g)
pid=$(pidof xen-emu) || fail "no xen-emu process"
kill -9 $pid
until_true 5 no_process
gone g 10
nothing_left "$id"
xlr create g.cfg || fail "the name cannot be used again: status $?"
xlr destroy g
