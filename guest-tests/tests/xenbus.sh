# Inside the guest Debian's clients work over /dev/xen/xenbus.
. /lab/tests/lib.sh
guest g 6.12-cloud xenbus
boot g
want g.log 'guest: name g\b'
want g.log 'guest: wrote hello'
want g.log 'guest: node .*memory/target'
