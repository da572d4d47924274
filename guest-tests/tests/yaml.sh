# The same keys as YAML; the last word on the command line counts there too.
. /lab/tests/lib.sh
cat >y.yaml <<Y
name: y
type: pvh
kernel: /guest/vmlinuz-6.12-cloud
ramdisk: /guest/initrd-6.12-cloud
extra: console=hvc0 panic=-1 lab=poweroff
memory: 256
vcpus: 2
on_reboot: destroy
Y
mkfifo stdin
xlr create -c y.yaml vcpus=1 <>stdin >y.log 2>&1 || { cat y.log; fail "xlr create ended with status $?"; }
want y.log 'guest: cpus 1' 'the override did not count'
want y.log 'reboot: Power down'
printf 'name: y\nmemory: lots\n' >bad.yaml
xlr create bad.yaml 2>err && fail "memory: lots was taken"
want err 'bad.yaml:2:'
nothing_left 1
