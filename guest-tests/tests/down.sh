# down.sh [LINE...]: a vCPU that is down uses no CPU of the host, whatever is pending for it.
. /lab/tests/lib.sh
cat >g.cfg <<END
name = "g"
type = "pvh"
kernel = "/guest/micro/vcpu_op"
memory = 64
vcpus = 2
extra = "down"
END
for line; do echo "$line"; done >>g.cfg
mkfifo stdin
xlr create -p g.cfg || fail "xlr create ended with status $?"
xlr console g <>stdin >g.log 2>&1 &
xlr unpause g
until_true 60 grep -qE 'sleeps for ever|FAILURE' g.log || { cat g.log; fail 'the guest does not go to sleep'; }
cat g.log
want g.log 'sleeps for ever'

# signals: how often KVM_RUN has come back with nothing for us.
signals() {
    xlr describe g exits >exits || fail "xlr describe ended with status $?"
    awk '$1 == "signal" { print $2 }' exits
}
before=$(signals)
sleep 3
after=$(signals)
cat exits
[ $((after - before)) -lt 3000 ] || fail "KVM_RUN came back $((after - before)) times in 3 s"
xlr destroy g || fail "xlr destroy ended with status $?"
