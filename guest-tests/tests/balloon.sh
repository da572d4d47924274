# balloon.sh maxmem|target: the balloon. maxmem: a guest with more in its map than it gets settles at `memory`. target: another
# memory/target takes 64 MiB from a running guest and gives it back. The guest lives through it, `xlr list` and the guest see it.
. /lab/tests/lib.sh
case $1 in maxmem) more='maxmem = 640' ;; *) more='' ;; esac
guest g 6.12-cloud balloon "$more"
start g
id=$(xlr domid g)
listed() { xlr list g | awk 'NR == 2 { print $3 }'; }
has() { [ "$(listed)" = "$1" ]; }
# The newest size the guest has told, in kB.
told() { sed -n 's/^guest: has \([0-9]*\) kB.*/\1/p' "g.log" | tail -n 1; }
tells() { [ "$(told)" = "$1" ]; }
# settles MIB: xlr shows the guest with so much.
settles() { until_true 30 has "$1" || { xlr list; xenstore-ls "/local/domain/$id/memory"; fail "xlr list shows $(listed) MiB, not $1"; }; }
# told_soon KB
told_soon() { until_true 15 tells "$1" || fail "the guest has $(told) kB, not $1"; }
settles 512
if [ "$1" = maxmem ]; then
    sleep 2
    settles 512
    [ "$(told)" -le 524288 ] || fail "the guest has $(told) kB of 512 MiB"
else
    until_true 10 grep -q 'guest: has' g.log
    all=$(told)
    for step in 448 512 448 512; do
        xenstore-write "/local/domain/$id/memory/target" $((step * 1024)) || fail "xenstore-write: status $?"
        settles "$step"
        told_soon $((all - (512 - step) * 1024))
    done
fi
grep -E 'BUG:|Oops|WARNING: CPU|Call Trace|Out of memory' g.log && fail "the guest's kernel complains"
xlr shutdown -w g || fail "shutdown ended with status $?"
want g.log 'guest: asked to poweroff'
nothing_left "$id"
