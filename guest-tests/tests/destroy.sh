# destroy, and destroy while paused, leave no process, node or file.
. /lab/tests/lib.sh
guest g 6.12-cloud wait
start g
id=$(xlr domid g)
xlr destroy g || fail "destroy ended with status $?"
gone g 5
nothing_left "$id"
xlr create -p g.cfg || fail "create -p ended with status $?"
id=$(xlr domid g)
xlr list g >listed; cat listed
want listed '--p---' 'a paused domain is not shown as paused'
xlr destroy "$id" || fail "destroy by domid ended with status $?"
nothing_left "$id"
xlr destroy g 2>err && fail "destroying what is gone succeeded"
want err 'invalid domain identifier'
