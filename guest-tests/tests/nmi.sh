# An NMI reaches the guest, on the vCPU named, and does not kill it.
. /lab/tests/lib.sh
guest g 6.12-cloud wait
start g
for vcpu in 0 1; do
    xlr trigger g nmi $vcpu || fail "trigger ended with status $?"
    until_true 10 grep -qE "NMI.* for .*reason .* on CPU $vcpu" g.log || fail "vCPU $vcpu got no NMI"
done
xlr trigger g nmi 2 2>err && fail "vCPU 2 of 2 took an NMI"
xlr shutdown -w g || fail "shutdown ended with status $?"
want g.log 'guest: asked to poweroff' 'the guest did not live on'
