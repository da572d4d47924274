# Bad input: each case gives one clear line and xl's exit status, and leaves nothing behind.
. /lab/tests/lib.sh
guest running 6.12-cloud wait
start running
processes=$(pidof xen-emu)

# refused STATUS PATTERN COMMAND...: must fail so, with one line of complaint like that, and change nothing.
refused() {
    want_status=$1 pattern=$2
    shift 2
    "$@" </dev/null >stdout 2>err
    status=$?
    grep -v '^Parsing config' err >complaint
    echo "== $* -> $status"; cat complaint
    [ "$status" = "$want_status" ] || fail "$*: status $status, not $want_status"
    [ "$(wc -l <complaint)" = 1 ] || fail "$*: not one line of complaint but $(wc -l <complaint)"
    want complaint "$pattern" "$*: the complaint has not \"$pattern\""
    [ "$(xlr list | wc -l)" = 3 ] || { xlr list; fail "$*: a domain is left"; }
    [ "$(pidof xen-emu)" = "$processes" ] || fail "$*: a process is left"
}
case_() { guest bad 6.12-cloud poweroff "$@"; }

case_ 'kernel = "/guest/nowhere"';        refused 3 '/guest/nowhere' xlr create bad.cfg
case_ 'kernel = "/bin/busybox"';          refused 3 'PVH' xlr create bad.cfg
case_ 'ramdisk = "/guest/nowhere"';       refused 3 '/guest/nowhere' xlr create bad.cfg
case_ 'memory = 32';                      refused 3 'MiB' xlr create bad.cfg
case_ 'memory = "lots"';                  refused 1 'bad.cfg:8:.*memory' xlr create bad.cfg
case_ 'memry = 512';                      refused 1 'bad.cfg:8:.*memry.*memory' xlr create bad.cfg
case_ 'vcpus = [';                        refused 1 'bad.cfg:' xlr create bad.cfg
case_ 'on_crash = "bogus"';               refused 1 'bogus' xlr create bad.cfg
case_ 'type = "foo"';                     refused 1 'foo' xlr create bad.cfg
case_ 'name = "running"';                 refused 3 'running' xlr create bad.cfg
case_ 'name = "a/b"';                     refused 1 'a/b' xlr create bad.cfg
case_ 'memory = 999999';                refused 3 'MiB' xlr create bad.cfg
refused 3 'nowhere.cfg' xlr create nowhere.cfg
refused 1 'nosuch' xlr destroy nosuch
refused 1 'nosuch' xlr console nosuch
refused 1 'nosuch' xlr shutdown nosuch

# Somebody who may not use /dev/kvm.
case_ 'memory = 256'
mkdir -m 777 user && cp bad.cfg user/
refused 3 '/dev/kvm' su nobody -s /bin/sh -c "XDG_RUNTIME_DIR=$PWD/user XENSTORED_PATH=$PWD/user/xs exec xlr create $PWD/user/bad.cfg"
xlr destroy running
