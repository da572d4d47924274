# Debian's client and ours show the same whole tree of a running domain, permissions included.
. /lab/tests/lib.sh
guest g 6.12-cloud wait
start g
id=$(xlr domid g)
/debian/bin/xenstore-ls -fp / >theirs || fail "Debian's xenstore-ls: status $?"
xenstore-ls -fp / >ours || fail "our xenstore-ls: status $?"
diff theirs ours || fail "the two listings differ"
cat ours
for node in name domid vm memory/target memory/static-max cpu/0/availability cpu/1/availability store/port store/ring-ref \
    console/port console/ring-ref console/tty control/shutdown device; do
    want ours "^/local/domain/$id/$node = " "no node $node"
done
[ "$(/debian/bin/xenstore-read "/local/domain/$id/name")" = g ] || fail "the name node is wrong"
/debian/bin/xenstore-write /tool/lab hello && [ "$(xenstore-read /tool/lab)" = hello ] || fail "a write by Debian's client is not seen by ours"
xenstore-rm /tool/lab && ! /debian/bin/xenstore-exists /tool/lab || fail "a removal by ours is not seen by Debian's client"
xlr destroy g || fail "destroy ended with status $?"
nothing_left "$id"
