# durable.sh IMAGE FORMAT CACHE VCPUS FEATURES: what a guest was told is on disk is there. Writers in the guest write records to a disk of that
# FORMAT and CACHE, flush, and only then say so. First the disk is taken away from them; then the domain's process is killed, and the
# host loses all that it had not yet written itself: the images' file system stands on a copy of its device as it was at that moment.
# FEATURES are parameters of the guest's driver, such as feature_persistent=0, or `all`.
. /lab/tests/lib-devices.sh
format=$2 cache=$3 cpus=$4 features=$5
# MiB of the writers' disk, and bytes from one writer's part of it to the next one's.
case $format in raw) size=64 far=12582912 ;; qcow2) size=4096 far=805306368 ;; esac

# The host's disk: a file system of its own on a loop device in memory, written to only by flushes.
echo 0 >/proc/sys/vm/dirty_writeback_centisecs
echo 360000 >/proc/sys/vm/dirty_expire_centisecs
# mounted LOOP FILE NAME: the file system in a file, at /disk/NAME and for tools.
mounted() {
    losetup "$1" "$2" || fail 'no loop device'
    mkdir -p "/disk/$3" "/tools/media/$3"
    mount -t ext4 "$1" "/disk/$3" && mount --bind "/disk/$3" "/tools/media/$3" || fail 'the file system does not mount'
}
end() {
    echo 500 >/proc/sys/vm/dirty_writeback_centisecs
    umount /tools/media/store /tools/media/after /disk/store /disk/after
    losetup -d /dev/loop5
    losetup -d /dev/loop4
} 2>/dev/null
trap end EXIT
truncate -s 224M store.img
tools mke2fs -q -t ext4 -F "$PWD/store.img" || fail 'mke2fs fails'
mounted /dev/loop5 store.img store
# new NAME: an image in it; written says what qemu-img calls the format.
new() {
    mib=$([ "$1" = records ] && echo "$size" || echo 64)
    case $format in
    raw) truncate -s "${mib}M" "/disk/store/$1" ;;
    qcow2) tools qemu-img create -q -f qcow2 "/media/store/$1" "${mib}M" || fail 'qemu-img makes no image' ;;
    esac
}
new records
new files
sync

extra='console=hvc0 panic=-1 lab=devices'
[ "$features" = all ] || for word in $features; do extra="$extra xen_blkfront.$word"; done
box g "vcpus = $cpus" 'memory = 768' "extra = \"$extra\""
attach() {
    for disk in xvdb,target=/disk/store/records xvdc,target=/disk/store/files; do
        xlr block-attach g "format=$format,cache=$cache,vdev=$disk" || fail "block-attach ended with status $?"
    done
    must 30 'until [ -b /dev/xvdb ] && [ -b /dev/xvdc ]; do sleep 0.2; done'
}
attach
must 30 'ls -d /sys/block/xvdb/mq/* | wc -l; cat /sys/block/xvdb/queue/max_segments; cat /sys/module/xen_blkfront/parameters/*'
tr '\n' ' ' <said
want said "^$cpus\$" "not $cpus queues"
case $features in
all) want said '^32$' 'no indirect segments' ;;
*max_indirect_segments=0*) want said '^11$' 'indirect segments where none should be' ;;
esac

# Each writer has 12 MiB of xvdb, far from the others' in a qcow2 image, so that each has an L2 table of its own there. Record N is 512 bytes
# that say so; a block of 4 KiB has eight of them. A round writes eight blocks here and there, or 256 KiB in a row, then flushes, then says
# how far it has got.
must 30 'cat >/tmp/writer <<"END"
use Fcntl;
my ($w, $n, $far) = @ARGV;
sysopen(my $d, "/dev/xvdb", O_RDWR) or die "open: $!";
$| = 1;
for (my $round = 0; ; $round++) {
    print "round $w $round $n\n";
    my @blocks = $round % 4 ? map { ($n + $_) * 1103 % 3008 } 0 .. 7 : map { $round * 61 % 2944 + $_ } 0 .. 63;
    for my $block (@blocks) {
        my $record = sprintf("record %d %d %d ", $w, $n++, $block);
        $record .= "x" x (511 - length $record) . "\n";
        sysseek($d, $w * $far + $block * 4096, 0);
        syswrite($d, $record x 8) == 4096 or do { print "error $w $!\n"; exit 0 };
    }
    syscall(75, fileno $d) == 0 or do { print "error $w $!\n"; exit 0 };
    print "flushed $w $n\n";
}
END
cat >/tmp/filer <<"END"
mkdir /tmp/c; mount /dev/xvdc /tmp/c || exit
n=0
while :; do
    head -c $((n % 40 * 1024 + 100)) /dev/urandom >/tmp/c/$((n % 100)) || exit
    sum=$(sha256sum </tmp/c/$((n % 100)))
    sync -d /tmp/c/$((n % 100)) && sync -f /tmp/c || exit
    echo "synced $n $sum"
    n=$((n + 1))
done
END
# Behind the writers: clusters that come and go.
cat >/tmp/trimmer <<"END"
while dd if=/dev/urandom of=/dev/xvdb bs=64k seek=$((768 + n % 15 * 16)) count=16 conv=nocreat,notrunc,fsync 2>/dev/null &&
    blkdiscard -o $(((768 + n % 15 * 16) * 65536 + 65536)) -l 917504 /dev/xvdb; do
    echo "trimmed $n"
    n=$((n + 1))
done
END
mke2fs -q -t ext4 /dev/xvdc'

# All that was said to be flushed must be in the image; what was begun later may be there too, and nothing else.
cat >verify <<'END'
my ($log, $disk, $far) = @ARGV;
my (%flushed, %need, %last);
open(my $l, "<", $log) or die "$log: $!";
my @lines = map { tr/\r//d; $_ } <$l>;
for (@lines) { $flushed{$1} = $2 if /^flushed (\d) (\d+)$/ }
for (@lines) {
    my ($w, $round, $n) = /^round (\d) (\d+) (\d+)$/ or next;
    my @blocks = $round % 4 ? map { ($n + $_) * 1103 % 3008 } 0 .. 7 : map { $round * 61 % 2944 + $_ } 0 .. 63;
    for my $block (@blocks) {
        $need{$w}{$block} = $n if $n < ($flushed{$w} // 0);
        $last{$w}{$block} = $n++;
    }
}
open(my $d, "<", $disk) or die "$disk: $!";
my ($checked, $bad) = (0, 0);
for my $w (sort keys %need) {
    for my $block (keys %{$need{$w}}) {
        my ($from, $to) = ($need{$w}{$block}, $last{$w}{$block});
        for my $sector (0 .. 7) {
            sysseek($d, $w * $far + $block * 4096 + $sector * 512, 0);
            sysread($d, my $record, 512);
            my ($of, $n, $at) = $record =~ /^record (\d+) (\d+) (\d+) x+$/;
            $checked++;
            next if defined $n && $of == $w && $at == $block && $n >= $from && $n <= $to;
            my $found = defined $n ? "$of $n $at" : "no record";
            print "writer $w block $block sector $sector: $found, not $from to $to\n" if $bad++ < 5;
        }
    }
    print "writer $w: flushed up to $flushed{$w}\n";
}
print "$checked sectors checked, $bad bad\n";
exit($bad || $checked < 1000 ? 1 : 0);
END
# verified LOG FOLDER: the images in it.
verified() {
    for name in records files; do
        rm -f $name.raw
        case $format in
        raw) cp "$2/$name" $name.raw ;;
        qcow2)
            tools qemu-img check "/media/${2#/disk/}/$name" >check.log 2>&1
            # 3: clusters that nobody uses, which a crash may leave. Anything else is broken.
            case $? in 0 | 3) ;; *) cat check.log; fail "$name is broken" ;; esac
            tools qemu-img convert -O raw "/media/${2#/disk/}/$name" "$PWD/$name.raw" || fail 'qemu-img cannot read it'
            ;;
        esac
    done
    tools perl "$PWD/verify" "$PWD/$1" "$PWD/records.raw" $far || fail "what was flushed is not in $2/records"
    # The journal is replayed, and then all is well.
    tools e2fsck -fy "$PWD/files.raw" >fsck.log 2>&1
    case $? in 0 | 1) ;; *) cat fsck.log; fail 'the file system is beyond repair' ;; esac
    grep -v 'recovering journal' fsck.log | grep -qE 'FIXED|CORRECTED|corrupt|ERROR' && { cat fsck.log; fail 'the journal did not make the file system whole'; }
    mkdir -p files.d && mount -o loop,ro "$PWD/files.raw" files.d || fail 'the file system does not mount'
    tr -d '\r' <"$1" | sed -n 's/^synced \([0-9]*\) \([0-9a-f]*\) .*/\1 \2/p' >synced
    last=$(tail -n 1 synced | cut -d' ' -f1)
    # The newest of each name; the one after the last may have been begun anew.
    while read -r n sum; do
        [ $((n + 100)) -gt "$((last + 1))" ] || continue
        [ "$(sha256sum <files.d/$((n % 100)) | cut -d' ' -f1)" = "$sum" ] || { umount files.d; fail "file $n is not what was synced"; }
    done <synced
    umount files.d
    [ -n "$last" ] || fail 'no file was synced'
    echo "$((last + 1)) files synced"
    rm -f files.raw records.raw
}
# load FROM: four writers and the one with files, until each has got somewhere.
load() {
    before=$(wc -l <g.log)
    say "for w in 0 1 2 3; do perl /tmp/writer \$w $1 $far & done; sh /tmp/filer & n=0 sh /tmp/trimmer & echo loa''ding"
    until_true 200 progress || { tail -n 20 g.log; fail 'the writers make no progress'; }
}
progress() {
    tail -n +"$((before + 1))" g.log | tr -d '\r' >new.log
    [ "$(grep -c '^synced' new.log)" -ge 5 ] && [ "$(grep -c '^trimmed' new.log)" -ge 3 ] && for w in 0 1 2 3; do [ "$(grep -c "^flushed $w" new.log)" -ge 3 ] || return; done
}

load 0
# Taken away under the load: what was flushed before is there.
xlr block-detach g xvdb || fail "block-detach ended with status $?"
xlr block-detach --force g xvdc || fail "block-detach --force ended with status $?"
must 200 wait
grep -q 'error 0 ' g.log || fail 'a writer to a disk that is gone heard nothing of it'
cp g.log detached.log
verified detached.log /disk/store
must 60 'umount -l /tmp/c; while [ -b /dev/xvdb ] || [ -b /dev/xvdc ]; do sleep 0.2; done; rmdir /tmp/c'
in_guest 30 'dmesg | grep -E "BUG:|Oops|Call Trace|WARNING: CPU"' && { cat said; fail 'the guest complains'; }

# Killed under the load, and the host's power gone.
rm /disk/store/records /disk/store/files
new records
new files
sync
attach
must 60 'mke2fs -q -t ext4 /dev/xvdc'
lines=$(wc -l <g.log)
load 100000
kill -9 "$(pidof xen-emu)"
cp store.img after.img
tail -n +"$((lines + 1))" g.log >killed.log
mounted /dev/loop4 after.img after
verified killed.log /disk/after
