# SIGTERM at a domain's process presses the button; a guest that does not act on it lives on, and a second SIGTERM destroys it.
. /lab/tests/lib.sh
guest g 6.12-cloud wait
start g
id=$(xlr domid g)
pid=$(pidof xen-emu) || fail "no xen-emu process"
kill -TERM $pid
sleep 2
alive g || fail "the first SIGTERM ended a guest that does not act on its button"
kill -TERM $pid || fail "no process $pid"
gone g 10
nothing_left "$id"
