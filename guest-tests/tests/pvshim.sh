# pvshim.sh KERNEL LINE...: Xen itself, built as a shim, is the guest and runs KERNEL as its PV guest, which comes to init, sees its CPUs, memory, console and store,
# and ends itself.
. /lab/tests/lib.sh
kernel=$1
shift
guest g "$kernel" xenbus 'memory = 768' "$@"
boot g
want g.log '[(]XEN[)] Xen version'
want g.log 'Hypervisor detected: Xen PV'
want g.log 'Booting .*kernel on Xen'
want g.log 'guest: cpus 2\b'
want g.log 'guest: clocksource xen'
want g.log 'guest: console hvc0'
want g.log 'guest: hypervisor xen PV'
want g.log 'guest: name g'
want g.log 'guest: wrote hello'
want g.log 'reboot: (Power off not available: )?System halted'
grep -E 'BUG:|Oops|WARNING: CPU|Call Trace|self-detected stall|soft lockup' g.log && fail "the guest's kernel complains"
gone g 5
nothing_left 1
