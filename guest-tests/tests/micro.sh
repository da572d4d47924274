# micro.sh NAME: a microkernel; its own verdict line decides.
. /lab/tests/lib.sh
cat >g.cfg <<EOF
name = "g"
type = "pvh"
kernel = "/guest/micro/$1"
memory = 64
vcpus = 2
EOF
boot g
if grep -q SUCCESS g.log; then exit 0; fi
if grep -q SKIP g.log; then skip "$(grep SKIP g.log | tail -n 1 | tr -d '\r')"; fi
fail "$(grep FAILURE g.log | tail -n 1 | tr -d '\r' | grep . || echo 'no verdict line')"
