# micro.sh NAME [MEMORY-MIB [LINE...]]: a microkernel with further config lines; its own last verdict line decides.
. /lab/tests/lib.sh
cat >g.cfg <<EOF
name = "g"
type = "pvh"
kernel = "/guest/micro/$1"
memory = ${2:-64}
vcpus = 2
EOF
[ $# -lt 3 ] || { shift 2; for line; do echo "$line"; done >>g.cfg; }
boot g
verdict=$(grep -E 'SUCCESS|SKIP|FAILURE' g.log | tail -n 1 | tr -d '\r')
case $verdict in
*FAILURE*) fail "$verdict" ;;
*SKIP*) skip "$verdict" ;;
*SUCCESS*) ;;
*) fail 'no verdict line' ;;
esac
