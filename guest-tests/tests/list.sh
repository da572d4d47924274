# xl's columns with real states and times; list -l is JSON; pause and unpause show.
. /lab/tests/lib.sh
guest g 6.12-cloud wait
start g
id=$(xlr domid g)
[ "$(xlr domname "$id")" = g ] || fail "domname"
xlr list >listed || fail "list ended with status $?"
cat listed
want listed '^Name +ID +Mem VCPUs	State	Time\(s\)$' 'not the header of xl'
want listed '^Domain-0 +0 +[0-9]+ +[0-9]+     r-----  +[0-9]+\.[0-9]$' 'no Domain-0 as xl shows it'
want listed "^g +$id +512 +2     [r-][b-]----  +([1-9][0-9]*\.[0-9]|0\.[1-9])\$" 'the guest is not shown as xl does, or has used no time'
xlr pause g && xlr list g | grep -q -- '--p---' || fail "pause is not shown"
xlr unpause g && xlr list g | grep -q -- '--p---' && fail "unpause is not shown"
xlr list -l >json || fail "list -l ended with status $?"
head -c 1 json | grep -q '\[' || fail "list -l is no JSON array"
want json "\"domid\": $id"
xlr list nosuch 2>err && fail "list of an unknown domain succeeded"
want err 'nosuch is an invalid domain identifier'
xlr destroy g
