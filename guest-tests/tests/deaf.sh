# SIGTERM at a domain's process gives the guest a minute to power off; one that does not is destroyed.
. /lab/tests/lib.sh
guest g 6.12-cloud wait
start g
id=$(xlr domid g)
pid=$(pidof xen-emu) || fail "no xen-emu process"
kill -TERM $pid
sleep 50
alive g || fail "destroyed before the minute was over"
gone g 30
nothing_left "$id"
