use super::engine::{Done, EngineKind, Gather, start};
use super::*;
use proptest::prelude::*;
use std::fs;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

fn options(format: DiskFormat) -> Options {
    Options { format, writable: true, cache: DiskCache::None, sector_size: None, force: false }
}

fn error(path: &Path, format: DiskFormat) -> String {
    Disk::open(path, &options(format)).err().map(|e| e.to_string()).unwrap_or_default()
}

/// A disk that answers a request only when the gate is open; it says when one comes.
pub fn hanging(gate: &Arc<Mutex<()>>, comes: Sender<()>) -> Disk {
    struct Hanging(Arc<Mutex<()>>, Mutex<Sender<()>>);
    impl Hanging {
        fn wait(&self) -> io::Result<()> {
            let _ = self.1.lock().unwrap().send(());
            drop(self.0.lock());
            Err(io::ErrorKind::TimedOut.into())
        }
    }
    impl Image for Hanging {
        fn len(&self) -> io::Result<u64> {
            Ok(1 << 20)
        }
        fn sector_sizes(&self) -> (u32, u32) {
            (512, 512)
        }
        fn discards(&self) -> Option<Discard> {
            None
        }
        fn read(&self, _: u64, _: &mut Buffers) -> io::Result<()> {
            self.wait()
        }
        fn write(&self, _: u64, _: &mut Buffers) -> io::Result<()> {
            self.wait()
        }
        fn flush(&self) -> io::Result<()> {
            self.wait()
        }
        fn discard(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            self.wait()
        }
        fn grow(&self, _: u64) -> io::Result<()> {
            self.wait()
        }
    }
    let disk = Disk {
        image: Box::new(Hanging(gate.clone(), Mutex::new(comes))),
        path: "/hanging".into(),
        cache: DiskCache::None,
        writable: false,
        bytes: AtomicU64::new(0),
        bounces: AtomicU64::new(0),
        flushes: Flushes::default(),
    };
    disk.refresh().unwrap();
    disk
}

/// A qcow2 image of version 3 with 64 KiB clusters, nothing in it, and perhaps a backing file; up to 4 TiB.
pub fn header(size: u64, backing: &str, format: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![0; 4 << 16];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb\0\0\0\x03");
    if !backing.is_empty() {
        put(8, &160u64.to_be_bytes());
        put(16, &u32::try_from(backing.len()).unwrap().to_be_bytes());
    }
    put(20, &16u32.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &u32::try_from(size.div_ceil(512 << 20)).unwrap().to_be_bytes());
    put(40, &(3u64 << 16).to_be_bytes());
    put(48, &(1u64 << 16).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    if let Some(format) = format {
        put(104, &0xe279_2acau32.to_be_bytes());
        put(108, &u32::try_from(format.len()).unwrap().to_be_bytes());
        put(112, format.as_bytes());
    }
    put(160, backing.as_bytes());
    // Reference counts: one block, with the four clusters in use.
    put(1 << 16, &(2u64 << 16).to_be_bytes());
    put(2 << 16, &[0, 1, 0, 1, 0, 1, 0, 1]);
    bytes
}

/// What was discarded: where, how much, securely.
pub type Wiped = Arc<std::sync::Mutex<Vec<(u64, u64, bool)>>>;

/// As a block device that erases securely: the lab and most machines have none.
struct Eraser(Wiped);

impl Image for Eraser {
    fn len(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }
    fn sector_sizes(&self) -> (u32, u32) {
        (512, 512)
    }
    fn discards(&self) -> Option<Discard> {
        Some(Discard { granularity: 512, alignment: 0, secure: true })
    }
    fn read(&self, _: u64, _: &mut Buffers) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, _: u64, _: &mut Buffers) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, at: u64, len: u64, secure: bool) -> io::Result<()> {
        self.0.lock().unwrap().push((at, len, secure));
        Ok(())
    }
    fn grow(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A disk of 1 MiB that can be discarded securely.
pub fn erasing(wiped: Wiped) -> Disk {
    let disk = Disk {
        image: Box::new(Eraser(wiped)),
        path: "/dev/eraser".into(),
        cache: DiskCache::None,
        writable: true,
        bytes: AtomicU64::new(0),
        bounces: AtomicU64::new(0),
        flushes: Flushes::default(),
    };
    disk.refresh().unwrap();
    disk
}

/// As a host whose disk fails once, and which tells of that once.
struct FailsOnce(std::sync::atomic::AtomicBool);

impl Image for FailsOnce {
    fn len(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }
    fn sector_sizes(&self) -> (u32, u32) {
        (512, 512)
    }
    fn discards(&self) -> Option<Discard> {
        None
    }
    fn read(&self, _: u64, _: &mut Buffers) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, _: u64, _: &mut Buffers) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        let failed = self.0.swap(true, Ordering::Relaxed);
        if failed { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
    }
    fn discard(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn grow(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn after_a_failed_flush_every_queue_is_told_so() {
    let failing = Disk { image: Box::new(FailsOnce(false.into())), ..erasing(Wiped::default()) };
    let failing = Arc::new(failing);
    for _ in 0..3 {
        assert!(run_by(EngineKind::Auto, &failing, Op::Flush, 0, &[]).is_err());
    }
    run(&failing, Op::Read, 0, &[0; 512]);
    for kind in [EngineKind::Threads, EngineKind::Uring] {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = Arc::new(Disk::open(file.path(), &options(DiskFormat::Raw)).unwrap());
        let flush = || run_by(kind, &disk, Op::Flush, 0, &[]);
        flush().unwrap();
        // Another queue's is under way, and fails.
        disk.flushes.begin().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(flush);
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waiting.is_finished());
            disk.flushes.end(false);
            assert!(waiting.join().unwrap().is_err());
        });
        assert!(flush().is_err());
        run(&disk, Op::Read, 0, &[0; 512]);
    }
}

#[test]
fn what_is_no_disk_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (raw, qcow2) = (DiskFormat::Raw, DiskFormat::Qcow2);
    fs::write(at("plain"), vec![7; 8192]).unwrap();
    fs::write(at("corrupt"), [&b"QFI\xfb\0\0\0\x03"[..], &[0xff; 4096]].concat()).unwrap();
    fs::write(at("a"), header(1 << 20, "b", Some("qcow2"))).unwrap();
    fs::write(at("b"), header(1 << 20, "a", Some("qcow2"))).unwrap();
    fs::write(at("vmdk"), header(1 << 20, "plain", Some("vmdk"))).unwrap();
    fs::write(at("gone"), header(1 << 20, "nothing", Some("raw"))).unwrap();
    fs::write(at("unsaid"), header(1 << 20, "a", None)).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let rows = [
        ("none", raw, "none: No such file"),
        ("", raw, "a directory cannot be a disk; give a file or a block device"),
        ("", qcow2, "a directory cannot be a disk"),
        ("fifo", raw, "a FIFO cannot be a disk"),
        ("plain", qcow2, "not a qcow2 image; for plain bytes say format=raw"),
        ("corrupt", qcow2, "a corrupt qcow2 image: its header is damaged; try qemu-img check -r all"),
        ("a", qcow2, "its backing files form a loop: "),
        ("vmdk", qcow2, "its backing file has format vmdk; raw and qcow2 are supported"),
        ("gone", qcow2, "nothing: No such file"),
        ("unsaid", qcow2, "the format of its backing file is not written in it"),
    ];
    for (name, format, want) in rows {
        let said = error(&at(name), format);
        assert!(said.starts_with("disk image ") && said.contains(want), "{name}: {said}");
        assert!(!said.contains('\n'), "{said:?}");
    }
}

#[test]
fn a_backing_file_is_shared_by_readers_and_closed_to_writers() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("base"), vec![7; 1 << 20]).unwrap();
    let overlays = ["one", "two"].map(|name| {
        fs::write(at(name), header(1 << 20, "base", Some("raw"))).unwrap();
        Arc::new(Disk::open(&at(name), &options(DiskFormat::Qcow2)).unwrap())
    });
    assert!(error(&at("base"), DiskFormat::Raw).contains("is in use by process"));
    let forced = Options { force: true, ..options(DiskFormat::Raw) };
    drop(Disk::open(&at("base"), &forced).unwrap());
    let [one, two] = &overlays;
    assert_eq!(one.len(), 1 << 20);
    run(one, Op::Write, 65536 - 512, &[3; 1024]);
    assert_eq!(
        run(one, Op::Read, 65536 - 1024, &[0; 2048]),
        [[7; 512], [3; 512], [3; 512], [7; 512]].concat()
    );
    assert_eq!(run(two, Op::Read, 65536, &[0; 512]), [7; 512]);
    drop(overlays);
    assert_eq!(error(&at("base"), DiskFormat::Raw), "");
}

/// One request by the engine that suits; the bytes as they are afterwards.
fn run(disk: &Arc<Disk>, op: Op, at: u64, bytes: &[u8]) -> Vec<u8> {
    run_by(EngineKind::Auto, disk, op, at, bytes).unwrap()
}

fn run_by(kind: EngineKind, disk: &Arc<Disk>, op: Op, at: u64, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let ram = Arc::new(crate::memory::Memory::new(&[(0, 1 << 20)]).unwrap());
    let mut data = Buffers::guest(ram.clone());
    // One sector into the page, so that O_DIRECT has something to say.
    for (n, piece) in (0u64..).zip(bytes.chunks(2048)) {
        use xen_domain::mem::GuestMem;
        let gpa = xen_domain::mem::Gpa(n * 4096 + 512);
        ram.write(gpa, piece).unwrap();
        data.push(gpa, piece.len()).unwrap();
    }
    let mut engine = start(kind, Some(disk.clone()), Vec::new())?;
    engine.submit(engine::Io::new(5, op, at, data));
    let mut done: Vec<Done> = Vec::new();
    while done.is_empty() {
        engine.wait(Gather::ONE, &mut done)?;
    }
    let ended = done.remove(0);
    assert_eq!(ended.tag, 5);
    ended.result?;
    let mut read = vec![0; bytes.len()];
    for (n, piece) in (0u64..).zip(read.chunks_mut(2048)) {
        xen_domain::mem::GuestMem::read(&*ram, xen_domain::mem::Gpa(n * 4096 + 512), piece).unwrap();
    }
    Ok(read)
}

#[test]
fn raw_images_are_written_discarded_resized_and_end_where_they_end() {
    for kind in [EngineKind::Threads, EngineKind::Uring] {
        for cache in [DiskCache::None, DiskCache::Writeback, DiskCache::Writethrough, DiskCache::Unsafe] {
            let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
            file.as_file().set_len((1 << 20) + 100).unwrap();
            let disk =
                Arc::new(Disk::open(file.path(), &Options { cache, ..options(DiskFormat::Raw) }).unwrap());
            assert_eq!(disk.len(), 1 << 20, "whole sectors");
            let run = |op, at, bytes: &[u8]| run_by(kind, &disk, op, at, bytes);
            run(Op::Write, 4096, &[9; 8192]).unwrap();
            run(Op::Flush, 0, &[]).unwrap();
            assert_eq!(run(Op::Read, 4096 - 512, &[1; 1024]).unwrap(), [[0; 512], [9; 512]].concat());
            run(Op::Discard { len: 4096, secure: false }, 4096, &[]).unwrap();
            assert_eq!(run(Op::Read, 8192 - 512, &[1; 1024]).unwrap(), [[0; 512], [9; 512]].concat());
            assert!(disk.grow(1 << 19).unwrap_err().to_string().contains("not made smaller"));
            assert_eq!(disk.grow(2 << 20).unwrap(), 2 << 20);
            run(Op::Write, (2 << 20) - 512, &[4; 512]).unwrap();
            file.as_file().set_len(1 << 20).unwrap();
            assert!(run(Op::Read, 1 << 20, &[1; 512]).is_err(), "beyond the end");
            assert_eq!(disk.refresh().unwrap(), 1 << 20);
        }
    }
}

/// What is discarded goes back to the host, but for what a snapshot in the image has as well; and room that was given back is used
/// again without harm.
#[test]
fn a_qcow2_image_gives_back_what_is_discarded() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    fs::write(file.path(), header(1 << 20, "", None)).unwrap();
    let open = || Arc::new(Disk::open(file.path(), &options(DiskFormat::Qcow2)).unwrap());
    let kib = || file.as_file().metadata().unwrap().blocks() / 2;
    let discard = |len| Op::Discard { len, secure: false };
    let disk = open();
    for n in [0, 1] {
        run(&disk, Op::Write, n << 18, &[5; 1 << 18]);
    }
    run(&disk, Op::Flush, 0, &[]);
    let full = kib();
    // All but the first 4 KiB and the last 512 bytes: whole clusters are those between.
    run(&disk, discard((1 << 19) - 4096 - 512), 4096, &[]);
    assert_eq!(run(&disk, Op::Read, 65536, &[1; 1 << 17]), [0; 1 << 17]);
    assert_eq!(run(&disk, Op::Read, 0, &[1; 4096]), [5; 4096]);
    assert_eq!(run(&disk, Op::Read, (1 << 19) - 512, &[1; 512]), [5; 512]);
    run(&disk, Op::Flush, 0, &[]);
    assert!(kib() <= full - 6 * 64, "{} of {full} KiB are left", kib());
    run(&disk, Op::Write, 1 << 19, &[6; 1 << 18]);
    run(&disk, Op::Flush, 0, &[]);
    run(&disk, discard(1 << 18), 1 << 18, &[]);
    assert_eq!(run(&disk, Op::Read, 1 << 19, &[1; 1 << 18]), [6; 1 << 18]);
    run(&disk, Op::Flush, 0, &[]);
    drop(disk);

    // A snapshot has the clusters too: they have two users, and an L2 entry that is no copy of its own.
    let at = |offset| {
        let mut word = [0; 8];
        file.as_file().read_exact_at(&mut word, offset).unwrap();
        u64::from_be_bytes(word)
    };
    let l2 = at(3 << 16) & 0x00ff_ffff_ffff_fe00;
    let (entry, counts) = (l2 + 8 * 8, 2 << 16);
    let cluster = at(entry) & 0x00ff_ffff_ffff_fe00;
    file.as_file().write_all_at(&(cluster).to_be_bytes(), entry).unwrap();
    file.as_file().write_all_at(&2u16.to_be_bytes(), counts + (cluster >> 16) * 2).unwrap();
    let disk = open();
    run(&disk, discard(1 << 16), 1 << 19, &[]);
    run(&disk, Op::Flush, 0, &[]);
    assert_eq!(run(&disk, Op::Read, 1 << 19, &[1; 1 << 16]), [0; 1 << 16]);
    drop(disk);
    let mut kept = [0; 1 << 16];
    file.as_file().read_exact_at(&mut kept, cluster).unwrap();
    assert_eq!(kept, [6; 1 << 16]);
}

/// A good image of a few clusters, of which some words are others; every row of it is a place and a value.
fn spoilt(base: &[u8], words: &[(usize, u32)]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for (at, value) in words {
        if let Some(word) = bytes.get_mut(*at..*at + 4) {
            word.copy_from_slice(&value.to_be_bytes());
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// It is refused, or fails its requests, or is a disk of whatever it says; nothing ends and nothing hangs.
    #[test]
    fn a_spoilt_qcow2_image_harms_nobody(
        words in proptest::collection::vec((spoilt_place(), spoilt_value()), 1..5),
        at in prop_oneof![Just(0u64), 0..(1u64 << 20), any::<u64>().prop_map(|n| n >> 8)],
    ) {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        fs::write(file.path(), header(1 << 20, "", None)).unwrap();
        let first = Arc::new(Disk::open(file.path(), &options(DiskFormat::Qcow2)).unwrap());
        run(&first, Op::Write, 65536, &[3; 4096]);
        run(&first, Op::Flush, 0, &[]);
        drop(first);
        let good = fs::read(file.path()).unwrap();
        fs::write(file.path(), spoilt(&good, &words)).unwrap();
        if let Ok(disk) = Disk::open(file.path(), &options(DiskFormat::Qcow2)) {
            let disk = Arc::new(disk);
            let at = at & !511;
            for (op, len) in [(Op::Read, 8192), (Op::Write, 8192), (Op::Flush, 0), (Op::Read, 8192)] {
                let _ = run_by(EngineKind::Threads, &disk, op, at, &vec![1; len]);
            }
            let _ = run_by(EngineKind::Threads, &disk, Op::Discard { len: 131_072, secure: false }, at, &[]);
        }
    }
}

/// In the header, its extensions, and the beginnings of the tables.
fn spoilt_place() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 1..28usize, 2 => 0..64usize, 4 => (0..6usize, 0..6usize).prop_map(|(cluster, n)| cluster * 16384 + n)]
        .prop_map(|n| n * 4)
}

fn spoilt_value() -> impl Strategy<Value = u32> {
    prop_oneof![0..40u32, any::<u32>(), (0..32u32).prop_map(|n| 1 << n), (0..8u32).prop_map(|n| n << 16)]
}
