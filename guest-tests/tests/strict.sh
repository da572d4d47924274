# strict.sh KERNEL [LINE...]: with acpi = 0 a guest has Xen's own PVH tables; its power-off is all vCPUs halted, and ends the domain.
. /lab/tests/lib.sh
kernel=$1
shift
guest g "$kernel" poweroff 'acpi = 0' "$@"
boot g
want g.log 'Booting kernel on Xen PVH'
want g.log 'reboot: (Power off not available: System halted instead|System halted|Power down)'
gone g 10
nothing_left 1
