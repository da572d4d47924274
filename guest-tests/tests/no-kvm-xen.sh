# no-kvm-xen.sh SHIM: on a host whose KVM has no KVM_XEN, xlr info says so, accel = "kernel" is refused in one line, and the portable backend boots the guest,
# whose hypercalls are written over as one line says, unless that is forbidden.
. /lab/tests/lib.sh
xlr info >info
want info '^kvm_xen_hvm +: 0x0$'
want info '^backend +: portable \(.*CONFIG_KVM_XEN'
guest g 6.12-cloud poweroff 'accel = "kernel"'
xlr create g.cfg >out 2>err
status=$?
cat out err
[ "$status" = 3 ] || fail "accel = kernel: status $status"
[ "$(grep -vc "^Parsing config" err)" = 1 ] || fail "accel = kernel: not one line of complaint"
want err 'no Xen support.*CONFIG_KVM_XEN'
guest g 6.12-cloud wait
xlr create g.cfg >out 2>err || { cat err; fail "xlr create ended with status $?"; }
[ "$(grep -c 'hypercall_rewrite' err)" = 1 ] || { cat err; fail 'no notice of the rewritten hypercalls'; }
xlr list --json g >listed
want listed '"backend": "portable"'
xlr info >info
want info '^domain_backends +: g=portable$'
until_true 60 xlr shutdown g || fail "the guest does not hear a shutdown"
gone g 60
# What the guest cannot do without is said where it is forbidden.
guest i 6.12-cloud poweroff 'hypercall_rewrite = 0'
xlr create -p i.cfg >out 2>err || { cat err; fail "hypercall_rewrite = 0: status $?"; }
want err 'hypercall_rewrite = 0 leaves the kernel its hypercall instructions'
xlr destroy i || fail "hypercall_rewrite = 0: destroy ended with status $?"
# What cannot be rewritten is refused with the reason.
guest h 6.12-cloud poweroff 'kernel = "/guest/micro/hello"' 'hypercall_rewrite = 1'
xlr create h.cfg >out 2>err && fail 'a kernel without stubs was rewritten'
want err 'cannot be rewritten.*VMMCALL'
guest h 6.12-cloud poweroff "$@"
xlr create h.cfg >out 2>err && fail 'a shim was started that calls by instructions'
want err 'xen-shim: its hypercalls cannot be rewritten.*VMMCALL'
