# What the tests share. Sourced first; sets -u. `guest` writes a config, `boot` runs it to its end, `start` runs it in the background.
set -u
fail() { echo "FAIL: $*"; exit 1; }
skip() { echo "SKIP: $*"; exit 77; }

# guest NAME KERNEL ACTION [LINE...]: NAME.cfg, a PVH guest whose init does ACTION; further config lines override what stands before.
guest() {
    {
        echo "name = \"$1\""
        echo 'type = "pvh"'
        echo "kernel = \"/guest/vmlinuz-$2\""
        echo "ramdisk = \"/guest/initrd-$2\""
        echo "extra = \"console=hvc0 panic=-1 lab=$3\""
        echo 'memory = 512'
        echo 'vcpus = 2'
    } >"$1.cfg"
    config=$1.cfg
    shift 3
    for line; do echo "$line" >>"$config"; done
}

# boot NAME: creates NAME.cfg on its console, the log in NAME.log, and waits for the guest's own end.
boot() {
    [ -p stdin ] || mkfifo stdin
    xlr create -c "$1.cfg" <>stdin >"$1.log" 2>&1
    status=$?
    cat "$1.log"
    [ "$status" = 0 ] || fail "xlr create -c ended with status $status"
}

# start NAME: creates NAME.cfg and collects its console in NAME.log; returns when the guest's init runs.
start() {
    xlr create "$1.cfg" || fail "xlr create $1.cfg ended with status $?"
    [ -p stdin ] || mkfifo stdin
    xlr console "$1" <>stdin >"$1.log" 2>&1 &
    until_true 120 grep -q 'guest: up' "$1.log" || { cat "$1.log"; fail "$1 did not reach its init"; }
}

# until_true SECONDS COMMAND...: repeats the command until it succeeds; fails after so many seconds.
until_true() {
    left=$(($1 * 5))
    shift
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        sleep 0.2
    done
}

alive() { xlr list "$1" >/dev/null 2>&1; }
dead() { ! alive "$1"; }
# gone NAME [SECONDS]: the domain must end.
gone() { until_true "${2:-60}" dead "$1" || { xlr list; fail "$1 is still there after ${2:-60} s"; }; }
# want FILE PATTERN [WHAT]: the file must have a line like that.
want() { grep -qE -- "$2" "$1" || { cat "$1"; fail "${3:-no line like \"$2\" in $1}"; }; }
# The process of a domain. It is the one that names it in its command line.
domain_pid() { pgrep_f "xen-emu" "$1"; }
pgrep_f() {
    for p in /proc/[0-9]*; do
        line=$({ tr '\0' ' ' <"$p/cmdline"; } 2>/dev/null) || continue
        case $line in *"$1"*"$2"*) echo "${p#/proc/}" ;; esac
    done
}
no_process() { [ -z "$(pidof xen-emu)" ]; }

# nothing_left DOMID: no process, no node of that domain, no file of it.
nothing_left() {
    until_true 30 no_process || { ps; fail "a xen-emu process is left"; }
    if [ -S /run/xenstored/socket ]; then
        /debian/bin/xenstore-ls -f / >nodes || fail "the store does not answer"
        grep -E "^/(local/domain|libxl)/$1(/| |=)|/(backend|console)/[a-z]*/$1/" nodes && fail "nodes of domain $1 are left"
    fi
    left_files=$(find /run/xlr -type f -o -type s 2>/dev/null | grep -vE 'xenstored|/(lock|next-domid|log)' | grep -vE '\.log$')
    left_files="$left_files$(find /run/xlr -mindepth 1 -maxdepth 1 -type d -name '[0-9]*' 2>/dev/null)"
    [ -z "$left_files" ] || fail "files are left: $left_files"
}
