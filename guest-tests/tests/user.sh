# Nobody in particular, with access to /dev/kvm and nothing else: a guest, a store and a run directory of its own.
. /lab/tests/lib.sh
guest g 6.12-cloud poweroff
chmod 666 /dev/kvm
mkfifo stdin
mkdir -m 700 home
chmod 666 stdin
chown nobody home
as_nobody() { su nobody -s /bin/sh -c "export XDG_RUNTIME_DIR=$PWD/home; $1"; }
as_nobody "xlr create -c $PWD/g.cfg <>$PWD/stdin" >g.log 2>&1 || { cat g.log; fail "nobody cannot run a guest"; }
want g.log 'Booting kernel on Xen PVH'
want g.log 'reboot: Power down'
as_nobody 'xlr list' >listed || fail "nobody cannot list"
[ "$(wc -l <listed)" = 2 ] || { cat listed; fail "its guest is still listed"; }
as_nobody 'xenstore ls /local' >/dev/null || fail "xenstore does not find nobody's store"
as_nobody 'XENSTORED_PATH=$XDG_RUNTIME_DIR/xlr/xenstored/socket /debian/bin/xenstore-ls /local' >/dev/null ||
    fail "Debian's xenstore-ls cannot read nobody's store"
[ -e /run/xlr ] && fail "something of nobody's went to /run/xlr"
[ -z "$(find home ! -user nobody)" ] || fail "files of nobody's are not its own"
[ "$(stat -c %a home/xlr)" = 700 ] || fail "others may look into the run directory"
# Without the right to /dev/kvm there is one line that says so, and nothing stays.
chmod 600 /dev/kvm
as_nobody "xlr create $PWD/g.cfg" >refused 2>&1 && fail "a guest without /dev/kvm"
grep -v '^Parsing' refused >said
[ "$(wc -l <said)" = 1 ] || { cat refused; fail "not one clear line"; }
want said '/dev/kvm'
until_true 10 no_process || fail "a process is left"
