#!/bin/sh
# One stage of a Debian image: image.sh STAGE WORK NAME SUITE, in mount and PID namespaces of its own (see src/image.rs).
# WORK has root (the system), debs/{base,rest,tools,repository}, tools (fakeroot, not part of the system) and out (the result). In the
# chroot WORK is at /mnt, so that /mnt/root is the system again, without /proc, /dev and /mnt in it.
set -eu
stage=$1 work=$2 name=$3 suite=$4
root=$work/root
size=2048 # MiB of the disk
begin=1 # MiB before its partition

enter() {
    mount --bind "$work" "$root/mnt"
    mount -t proc proc "$root/proc" || mount --rbind /proc "$root/proc"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for node in null zero full random urandom; do
        : >"$root/dev/$node"
        mount --bind "/dev/$node" "$root/dev/$node"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    mkdir "$root/dev/shm"
}
# The system's own programs; what they believe to be chown, mknod and so on is kept in the file `owners`.
inside() {
    chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root DEBIAN_FRONTEND=noninteractive \
        DEBCONF_NONINTERACTIVE_SEEN=true SYSTEMD_OFFLINE=1 FAKEROOTDONTTRYCHOWN=1 \
        /bin/bash /mnt/tools/usr/bin/fakeroot-sysv -l /mnt/tools/usr/lib/x86_64-linux-gnu/libfakeroot/libfakeroot-sysv.so \
        -f /mnt/tools/usr/bin/faked-sysv -i /mnt/owners -s /mnt/owners -- "$@"
}

unpack() {
    for folder in bin sbin lib lib64; do
        mkdir -p "$root/usr/$folder"
        ln -s "usr/$folder" "$root/$folder"
    done
    for deb in "$work"/debs/base/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --no-same-owner --keep-directory-symlink
    done
    for deb in "$work"/debs/tools/*.deb; do dpkg-deb -x "$deb" "$work/tools"; done
    : >"$work/owners"
    mkdir -p "$root/mnt" "$root/proc" "$root/dev" "$root/etc/dpkg/dpkg.cfg.d" "$root/usr/sbin"
    # Nobody reads manuals and translations here, and a small image is a fast one.
    cat >"$root/etc/dpkg/dpkg.cfg.d/lab" <<EOT
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
EOT
    # No daemon is started while the system is only a folder.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    : >"$root/etc/fstab"
}

install() {
    enter
    inside sh -c 'dpkg --install --force-depends /mnt/debs/base/*.deb && dpkg --install --force-depends /mnt/debs/rest/*.deb'
    inside sh -c 'dpkg --audit && ! dpkg --audit | grep -q .'
}

# Runs in the system.
settle_inside() {
    uuid=$(cat /proc/sys/kernel/random/uuid)
    echo "$uuid" >/mnt/uuid
    rm -f /usr/sbin/policy-rc.d
    echo debian >/etc/hostname
    printf '127.0.0.1\tlocalhost\n127.0.1.1\tdebian\n' >/etc/hosts
    echo "UUID=$uuid / ext4 errors=remount-ro 0 1" >/etc/fstab
    echo root:xlr | chpasswd -c SHA256
    printf 'PermitRootLogin yes\nUseDNS no\n' >/etc/ssh/sshd_config.d/lab.conf
    printf '[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' >/etc/systemd/network/lan.network
    systemctl enable systemd-networkd.service
    # What a short life under emulation has no time for.
    systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service dpkg-db-backup.timer \
        fstrim.timer systemd-networkd-wait-online.service
    systemd-machine-id-setup
    repository
    menu
    apt-get clean
    # The kernel's package has made these; grub's own scripts and the tests rely on them.
    [ -e /vmlinuz ] && [ -e /initrd.img ]
    cp -L /vmlinuz /initrd.img /boot/grub/grub.cfg /mnt/out/
    # Newer than /usr, so that nothing is rebuilt at the first boot.
    touch /etc/.updated /var/.updated
}
# A repository of a few packages for the guest's own apt, to be served by L1, whose address the guest's lease names.
repository() {
    mkdir -p /srv/apt
    cp /mnt/debs/repository/*.deb /srv/apt/
    cd /srv/apt
    for deb in *.deb; do
        dpkg-deb -f "$deb"
        printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" "$(sha256sum "$deb" | cut -d' ' -f1)"
    done >Packages
    cd /
    rm -f /etc/apt/sources.list.d/* /etc/apt/sources.list
    echo 'deb [trusted=yes] http://192.168.77.1/apt ./' >/etc/apt/sources.list.d/lab.list
}
# grub.cfg by the real grub-mkconfig; only grub-probe, which wants to see the disk, is told what the disk will be.
menu() {
    cp /usr/share/grub/default/grub /etc/default/grub
    sed -i -e 's/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT=""/' -e 's/^GRUB_CMDLINE_LINUX=.*/GRUB_CMDLINE_LINUX="console=hvc0"/' \
        /etc/default/grub
    mkdir -p /boot/grub /dev/disk/by-uuid
    : >"/dev/disk/by-uuid/$uuid"
    probe=$(command -v grub-probe)
    mv "$probe" "$probe.real"
    cat >"$probe" <<EOT
#!/bin/sh
case " \$* " in
*=device\ * | *"-t device "*) echo /dev/xvda1 ;;
*fs_uuid*) echo $uuid ;;
*partuuid*) exit 1 ;;
*partmap*) echo gpt ;;
*abstraction*) ;;
*=fs\ * | *"-t fs "*) echo ext2 ;;
*compatibility_hint* | *=drive\ *) echo 'hd0,gpt1' ;;
*hints_string*) echo "--hint='hd0,gpt1' " ;;
*) exit 1 ;;
esac
EOT
    chmod 755 "$probe"
    grub-mkconfig -o /boot/grub/grub.cfg || failed=1
    mv "$probe.real" "$probe"
    [ -z "${failed:-}" ] && grep -q "root=UUID=$uuid.*console=hvc0" /boot/grub/grub.cfg
}

# Runs in the system: /mnt/root becomes the disk's partition, and the disk a file on what L1 gets as a drive.
disk_inside() {
    uuid=$(cat /mnt/uuid)
    mkdir /mnt/drive
    disk=/mnt/drive/$name.img
    truncate -s "${size}M" "$disk"
    echo "start=$((begin * 2048)), size=$(((size - begin - 1) * 2048)), type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=root" |
        sfdisk --quiet --label gpt "$disk"
    mke2fs -q -t ext4 -L root -U "$uuid" -d /mnt/root -E "offset=$((begin << 20)),assume_storage_prezeroed=1" -F "$disk" "$((size - begin - 1))M"
    # Room for what tests write beside the image.
    truncate -s "$((size * 4))M" /mnt/out/drive.img
    mke2fs -q -t ext4 -m 0 -L "$name" -O ^has_journal -d /mnt/drive -E assume_storage_prezeroed=1 -F /mnt/out/drive.img
    mv "$disk" /mnt/out/
}

case $stage in
unpack | install) $stage ;;
settle | disk)
    enter
    inside sh /mnt/image.sh "${stage}_inside" "$work" "$name" "$suite"
    ;;
settle_inside | disk_inside) $stage ;;
*) echo "image.sh: no stage $stage"; exit 1 ;;
esac
