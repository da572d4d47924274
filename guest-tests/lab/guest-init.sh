#!/bin/busybox sh
# Init of a Linux guest. lab=ACTION on the kernel's command line says what it does; lines meant for tests begin with `guest:`.
echo "guest: init"
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/debian/bin TERM=linux HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
read -r cmdline </proc/cmdline
# MODULE.NAME=VALUE on the command line is for a module, as modprobe has it.
parameters() { for word in $cmdline; do case $word in "$1".*) echo "${word#*.}" ;; esac; done; }
for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" $(parameters "$(echo "$module" | tr - _)") 2>/dev/null
done
mount -t xenfs xenfs /proc/xen
action=poweroff
for word in $cmdline; do
    case $word in lab=*) action=${word#lab=} ;; esac
done

# The kernel runs these when the toolstack asks it to shut down or to reboot.
on_request() { printf '#!/bin/sh\necho "guest: asked to %s" >/dev/console\n%s\n' "$1" "$2" >"/sbin/$1"; chmod 755 "/sbin/$1"; }
on_request poweroff 'exec poweroff -f'
on_request reboot 'exec reboot -f'

memory() { sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
clocksource() { cat /sys/devices/system/clocksource/clocksource0/current_clocksource; }
# The first console of /proc/consoles is the one /dev/console writes to.
console() { awk '/C/ { print $1; exit }' /proc/consoles; }

report() {
    echo "guest: kernel $(uname -r)"
    echo "guest: cpus $(nproc)"
    echo "guest: memory $(memory) kB"
    echo "guest: clocksource $(clocksource)"
    echo "guest: console $(console)"
    echo "guest: hypervisor $(cat /sys/hypervisor/type) $(cat /sys/hypervisor/guest_type)"
    echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s"
}

# Name and value of every file below a folder, one per line.
show_tree() {
    find "$1" -type f | sort | while read -r file; do
        printf '  %-45s %s\n' "${file#"$1"/}" "$(head -c 200 "$file" 2>/dev/null | tr '\n' ' ')"
    done
}

demo() {
    echo
    echo "This is an unmodified Debian kernel, running as a Xen guest. What it says of itself:"
    echo
    printf '  %-45s %s\n' kernel "$(uname -srv)" \
        'command line' "$cmdline" \
        CPUs "$(nproc)" \
        memory "$(memory) kB" \
        clocksource "$(clocksource)" \
        console "$(console)"
    echo
    echo "/sys/hypervisor:"
    show_tree /sys/hypervisor
    echo
    echo "Its kernel log about Xen:"
    dmesg | grep -iE 'xen|hypervisor' | head -n 40
    echo
}

# Runs until somebody outside ends the domain.
wait_for_ever() { while :; do sleep 3600; done; }

case $action in
poweroff) report; poweroff -f ;;
reboot) report; reboot -f ;;
wait) report; wait_for_ever ;;
balloon)
    # Every size of memory it comes to have.
    report
    while :; do
        now=$(memory)
        [ "$now" = "${last:-}" ] || echo "guest: has $now kB"
        last=$now
        sleep 0.5
    done
    ;;
demo) demo; report; poweroff -f ;;
shell)
    demo
    echo "A shell in the guest; \`exit\` powers it off."
    setsid -c sh </dev/hvc0 >/dev/hvc0 2>&1
    poweroff -f
    ;;
acpid)
    # Deaf to requests by XenStore, so that only the power button can end it.
    on_request poweroff :
    mkdir -p /etc/acpi/PWRF
    printf '#!/bin/sh\necho "guest: power button" >/dev/console\nexec /bin/poweroff -f\n' >/etc/acpi/PWRF/00000080
    chmod 755 /etc/acpi/PWRF/00000080
    report
    acpid -d -c /etc/acpi >/tmp/acpid.log 2>&1
    wait_for_ever
    ;;
panic)
    report
    echo 1 >/proc/sys/kernel/sysrq
    echo c >/proc/sysrq-trigger
    ;;
xenbus)
    # A client that nobody here wrote, over /dev/xen/xenbus.
    report
    echo "guest: name $(xenstore-read name)"
    xenstore-write data/lab-test hello && echo "guest: wrote $(xenstore-read data/lab-test)"
    xenstore-ls -f "/local/domain/$(xenstore-read domid)" | sed 's/^/guest: node /'
    poweroff -f
    ;;
channel)
    # Talks with the guest peer= as role= says; who is to die with its domain stays.
    report
    for word in $cmdline; do case $word in role=* | peer=*) export "$word" ;; esac; done
    for how in client-leaves server-leaves server-dies; do
        channel "$role" "$peer" "$how" || { echo "guest: channel $how failed"; break; }
    done
    poweroff -f
    ;;
flood)
    # The kernel would speak in the middle of a line.
    dmesg -n 1
    echo "guest: flood begins"
    awk 'BEGIN { for (i = 1; i <= 30000; i++) printf "%06d 0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ\n", i }'
    echo "guest: flood ends"
    poweroff -f
    ;;
forks)
    # How long 300 processes take, in hundredths of a second of the guest's own clock.
    report
    read -r begin _ </proc/uptime
    for i in $(seq 300); do /bin/true; done
    read -r end _ </proc/uptime
    echo "guest: forks $begin $end"
    poweroff -f
    ;;
cpus)
    # Every CPU but the first goes and comes back; each then sleeps by a timer of its own.
    report
    others=$(seq $(($(nproc) - 1)))
    for round in 1 2 3; do
        for cpu in $others; do echo 0 >"/sys/devices/system/cpu/cpu$cpu/online" || echo "guest: CPU $cpu stays"; done
        echo "guest: down to $(nproc)"
        for cpu in $others; do echo 1 >"/sys/devices/system/cpu/cpu$cpu/online" || echo "guest: CPU $cpu is lost"; done
        for cpu in $others; do taskset -c "$cpu" sleep 0.05 || echo "guest: CPU $cpu does not work"; done
        echo "guest: back to $(nproc)"
    done
    poweroff -f
    ;;
devices)
    # A shell in the Debian system on xvda, which is not written to. The kernel is not to speak in the middle of what it says.
    report
    dmesg -n 1
    ip link set lo up
    mkdir -p /debian-root
    for try in $(seq 50); do [ -b /dev/xvda1 ] && break; sleep 0.1; done
    mount -t ext4 -o ro,noload /dev/xvda1 /debian-root
    for folder in proc sys dev; do mount --bind "/$folder" "/debian-root/$folder"; done
    for folder in run tmp; do mount -t tmpfs tmpfs "/debian-root/$folder"; done
    echo "guest: shell"
    setsid -c chroot /debian-root /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp TERM=dumb PS1= /bin/sh \
        </dev/hvc0 >/dev/hvc0 2>&1
    poweroff -f
    ;;
*) echo "guest: no action $action"; poweroff -f ;;
esac
wait_for_ever
