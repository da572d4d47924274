# Called by the name xl: create -p, console, unpause, destroy, as test runners drive it.
. /lab/tests/lib.sh
guest g 6.12-cloud wait
xl create -p g.cfg >created 2>&1 || { cat created; fail "xl create -p ended with status $?"; }
want created '^Parsing config from g.cfg$'
id=$(xl domid g)
xl list g >listed
want listed "^g +$id +512 +1     --p---  +0\.0\$" 'a domain made with -p is not paused, or has run'
mkfifo stdin
xl console g <>stdin >g.log 2>&1 &
reader=$!
sleep 1
[ -s g.log ] && fail "a paused guest wrote to its console"
xl unpause g || fail "xl unpause ended with status $?"
until_true 60 grep -q 'guest: up' g.log || fail "the guest did not reach its init"
want g.log 'Booting kernel on Xen PVH' 'the console lost the beginning'
xl destroy g || fail "xl destroy ended with status $?"
wait $reader || fail "xl console ended with status $?"
xl list nosuch 2>err && fail "xl list of an unknown domain succeeded"
xl 2>err >out
cat out err | grep -q '^Usage xl ' || { cat out err; fail "the usage does not say xl"; }
nothing_left "$id"
