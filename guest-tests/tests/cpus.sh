# cpus.sh KERNEL ABI [LINE...]: the guest takes its CPUs down and up again, three times.
. /lab/tests/lib.sh
kernel=$1 abi=$2
shift 2
guest g "$kernel" cpus 'vcpus = 4' "event_channels = \"$abi\"" "$@"
boot g
[ "$(grep -c 'guest: down to 1\b' g.log)" = 3 ] || fail "the CPUs do not all go"
[ "$(grep -c 'guest: back to 4\b' g.log)" = 3 ] || fail "the CPUs do not all come back"
grep -E 'guest: CPU [0-9]+ (stays|is lost|does not work)' g.log && fail "a CPU does not do as it is told"
grep -E 'BUG:|Oops|WARNING: CPU|Call Trace|self-detected stall|soft lockup' g.log && fail "the guest's kernel complains"
want g.log 'reboot: Power down'
gone g 5
nothing_left 1
