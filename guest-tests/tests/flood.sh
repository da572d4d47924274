# flood.sh [LINE...]: 30,000 lines on the console arrive byte by byte as they were sent at a reader who was there from the start.
. /lab/tests/lib.sh
guest g 6.12-cloud flood "$@"
xlr create -p g.cfg || fail "create -p ended with status $?"
mkfifo stdin
xlr console g <>stdin >g.log 2>&1 &
reader=$!
sleep 1
xlr unpause g
gone g 1500
wait $reader
tr -d '\r' <g.log | sed -n '/guest: flood begins/,/guest: flood ends/p' | grep -v -e 'guest:' -e '^\[ ' >got
awk 'BEGIN { for (i = 1; i <= 30000; i++) printf "%06d 0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ\n", i }' >sent
cmp got sent || fail "what arrived is not what was sent: $(wc -l <got) lines of 30000"
