//! Images that a killed process or a host without power leaves behind, and images whose counts are wrong.
#![expect(unsafe_code, reason = "a storage that remembers has the methods of the crate's trait")]

use super::layout::{COUNTS, DIRTY, EXTERNAL_DATA, FEATURES};
use super::repair::{Repaired, get, put, repair};
use super::*;
use crate::disk::tests::header;
use imago::Storage;
use imago::io_buffers::IoVector;
use imago::storage::drivers::CommonStorageHelper;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use xen_emu_api::device::DiskFormat;

const BLOCK: u64 = 4096;

/// What reaches a file.
enum Event {
    Write(u64, Vec<u8>),
    Sync,
}

/// A file, and everything that was written to it.
struct Recorder {
    file: File,
    log: Arc<Mutex<Vec<Event>>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl fmt::Display for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl Storage for Recorder {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    unsafe fn pure_readv(&self, to: IoVectorMut<'_>, at: u64) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.file.pure_readv(to, at) }
    }
    unsafe fn pure_writev(&self, from: IoVector<'_>, at: u64) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(from.len()).unwrap()];
        from.copy_into_slice(&mut bytes);
        self.log.lock().unwrap().push(Event::Write(at, bytes));
        // SAFETY: the caller's promise.
        unsafe { self.file.pure_writev(from, at) }
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.log.lock().unwrap().push(Event::Sync);
        Ok(())
    }
    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }
    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.get_storage_helper()
    }
}

fn options() -> Options {
    let cache = DiskCache::Writeback;
    Options { format: DiskFormat::Qcow2, writable: true, cache, sector_size: None, force: false }
}

fn open(path: &Path) -> Qcow2 {
    Qcow2::open(path, &options()).unwrap()
}

fn read(disk: &Qcow2, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    let mut buffers = Buffers::own(bytes.len(), 512);
    disk.read(at, &mut buffers).unwrap();
    buffers.rewind();
    buffers.slices()[0].copy_to(&mut bytes);
    bytes
}

fn write(disk: &Qcow2, at: u64, bytes: &[u8]) {
    let mut buffers = Buffers::own(bytes.len(), 512);
    buffers.slices()[0].copy_from(bytes);
    disk.write(at, &mut buffers).unwrap();
}

/// What `qemu-img check` says: 0 all is well, 3 clusters that nobody uses, 2 broken. None without the program.
fn check(path: &Path) -> Option<i32> {
    for _ in 0..100 {
        let check = Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(path).output();
        let Ok(check) = check else {
            eprintln!("SKIP: second opinion on qcow2: no qemu-img here");
            return None;
        };
        if check.status.code() != Some(1) {
            return check.status.code();
        }
        eprintln!("qemu-img check: {}", String::from_utf8_lossy(&check.stderr));
        // A child of another test that has not called exec yet has our files, and their locks.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("qemu-img check fails");
}

/// A kind of image.
#[derive(Clone, Copy, Debug)]
struct Shape {
    version: u32,
    cluster_bits: u32,
    order: u32,
    size: u64,
    /// On top of a file full of ones.
    overlay: bool,
}

const SHAPES: [Shape; 5] = [
    Shape { version: 3, cluster_bits: 16, order: 4, size: 5 << 30, overlay: false },
    Shape { version: 3, cluster_bits: 16, order: 4, size: 5 << 30, overlay: true },
    Shape { version: 2, cluster_bits: 16, order: 4, size: 5 << 30, overlay: false },
    Shape { version: 3, cluster_bits: 12, order: 1, size: 64 << 20, overlay: false },
    // The table of counts has to grow after 2 MiB.
    Shape { version: 3, cluster_bits: 9, order: 6, size: 16 << 20, overlay: false },
];

impl Shape {
    /// What one L2 table is for.
    fn region(self) -> u64 {
        1 << (2 * self.cluster_bits - 3)
    }

    /// An empty image that counts nothing yet.
    fn image(self) -> Vec<u8> {
        let l1 = self.size.div_ceil(self.region());
        let mut bytes =
            header(self.size, if self.overlay { "base" } else { "" }, self.overlay.then_some("raw"));
        bytes.truncate(512);
        let mut put = |at: usize, number: u32| bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
        put(4, self.version);
        put(20, self.cluster_bits);
        put(36, u32::try_from(l1).unwrap());
        put(44, 2 << self.cluster_bits);
        put(52, 1 << self.cluster_bits);
        put(96, if self.version == 2 { 0 } else { self.order });
        put(100, if self.version == 2 { 0 } else { 104 });
        let clusters = 2 + (l1 * 8).div_ceil(1 << self.cluster_bits);
        bytes.resize(usize::try_from(clusters << self.cluster_bits).unwrap(), 0);
        bytes
    }

    /// Some blocks within one region, near its beginning.
    fn place(self, rng: &mut TestRng) -> (u64, u64) {
        let region = rng.random_range(0..(self.size / self.region()).min(512)) * self.region();
        // The last one of each is for afterwards.
        let within = (self.region() / BLOCK - 1).min(96);
        let first = rng.random_range(0..within);
        (region + first * BLOCK, rng.random_range(1..=24.min(within - first)))
    }

    fn empty(self) -> u8 {
        u8::from(self.overlay)
    }
}

/// What was done to an image, with the number of events before each.
#[derive(Default)]
struct History {
    /// Blocks and their new contents; none = discarded, and could be anything.
    changes: Vec<(usize, u64, Option<u32>)>,
    /// The number of changes that are on the disk from this event on.
    flushed: Vec<(usize, usize)>,
    events: Vec<Event>,
}

fn content(tag: u32) -> Vec<u8> {
    tag.to_le_bytes().repeat(1024)
}

enum Step {
    Write(u32),
    Discard,
    Flush,
}

impl Step {
    fn any(tag: u32, shape: Shape, rng: &mut TestRng) -> (Step, u64, u64) {
        let (at, blocks) = shape.place(rng);
        let step = match rng.random_range(0..10) {
            0 | 1 => Step::Flush,
            2 if shape.version > 2 => Step::Discard,
            _ => Step::Write(tag),
        };
        (step, at, blocks)
    }
}

/// Does this to an image: what, where, and with how many blocks.
fn work(path: &Path, steps: impl IntoIterator<Item = (Step, u64, u64)>) -> History {
    let log = Arc::new(Mutex::new(Vec::new()));
    let recorder = |file| Box::new(Recorder { file, log: log.clone() }) as Box<dyn DynStorage>;
    let disk = Qcow2::open_through(path, &options(), &recorder).unwrap();
    let now = || log.lock().unwrap().len();
    let mut history = History::default();
    for (step, at, blocks) in steps {
        let each = (0..blocks).map(|n| at + n * BLOCK);
        match step {
            Step::Flush => {
                disk.flush().unwrap();
                history.flushed.push((now(), history.changes.len()));
            }
            Step::Discard => {
                history.changes.extend(each.map(|block| (now(), block, None)));
                disk.discard(at, blocks * BLOCK, false).unwrap();
            }
            Step::Write(tag) => {
                history.changes.extend(each.map(|block| (now(), block, Some(tag))));
                write(&disk, at, &content(tag).repeat(usize::try_from(blocks).unwrap()));
            }
        }
    }
    drop(disk);
    history.events = std::mem::take(&mut *log.lock().unwrap());
    history
}

impl History {
    /// The file as it is when all ends before event `end`; without power, what was not synced is there or not, piece by piece.
    fn crash(&self, mut file: Vec<u8>, end: usize, power: Option<&mut TestRng>) -> Vec<u8> {
        let synced = self.events[..end].iter().rposition(|event| matches!(event, Event::Sync)).unwrap_or(0);
        let mut lost = power.map(|rng| move || rng.random_range(0..3) > 0);
        for (n, event) in self.events[..end].iter().enumerate() {
            let Event::Write(at, bytes) = event else { continue };
            for (k, piece) in bytes.chunks(512).enumerate() {
                let at = usize::try_from(*at).unwrap() + k * 512;
                if n > synced && lost.as_mut().is_some_and(|lost| lost()) {
                    continue;
                }
                file.resize(file.len().max(at + piece.len()), 0);
                file[at..at + piece.len()].copy_from_slice(piece);
            }
        }
        file
    }

    /// What may be in each block then.
    fn allowed(&self, end: usize) -> BTreeMap<u64, Vec<Option<u32>>> {
        let flushed =
            self.flushed.iter().rfind(|(event, _)| *event <= end).map_or(0, |(_, changes)| *changes);
        let mut allowed: BTreeMap<u64, Vec<Option<u32>>> = BTreeMap::new();
        for (n, (event, block, tag)) in
            self.changes.iter().enumerate().filter(|(_, (event, ..))| *event <= end)
        {
            let tags = allowed.entry(*block).or_insert_with(|| vec![Some(0)]);
            if n < flushed {
                tags.clear();
            }
            tags.push(*tag);
            let _ = event;
        }
        allowed
    }

    /// Looks at what is left, writes more, and looks again.
    fn survives(&self, shape: Shape, path: &Path, end: usize, what: &str) {
        let what = format!("{shape:?}, {what} before event {end} of {}", self.events.len());
        if let Some(status) = check(path) {
            assert!(matches!(status, 0 | 3), "{what}: qemu-img check: {status}");
        }
        let allowed = self.allowed(end);
        let verify = |disk: &Qcow2| {
            for (block, tags) in &allowed {
                let found = read(disk, *block, BLOCK);
                let bytes = |tag: u32| if tag == 0 { vec![shape.empty(); 4096] } else { content(tag) };
                let mays: Vec<_> = tags.iter().map(|tag| tag.map(bytes)).collect();
                // Sectors of one write need not all be there.
                for (n, sector) in found.chunks(512).enumerate() {
                    let is = |may: &Option<Vec<u8>>| may.as_ref().is_none_or(|may| may[..512] == *sector);
                    let begins = &sector[..4];
                    let one = mays.iter().any(is);
                    assert!(one, "{what}: {block:#x} sector {n} begins {begins:?}, not one of {tags:?}");
                }
            }
        };
        let disk = open(path);
        verify(&disk);
        let fresh = |n: u64| n * shape.region() + shape.region() - BLOCK;
        let regions = (shape.size / shape.region()).min(64);
        (0..regions).for_each(|n| write(&disk, fresh(n), &content(7)));
        disk.flush().unwrap();
        drop(disk);
        let status = check(path);
        assert!(matches!(status, None | Some(0)), "{what}: {status:?} after it was used again");
        let disk = open(path);
        (0..regions).for_each(|n| assert!(read(&disk, fresh(n), BLOCK) == content(7), "{what}: region {n}"));
        verify(&disk);
    }
}

/// At any moment, and whichever of the writes since the last sync are there.
#[test]
fn what_was_flushed_survives_kills_and_power_cuts_on_large_images() {
    let times = std::env::var("QCOW2_CRASHES").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    for (n, shape) in (0..).zip(SHAPES) {
        let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[n; 32]);
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("image");
        if shape.overlay {
            fs::write(dir.path().join("base"), vec![1; 4096]).unwrap();
            let base = fs::File::options().write(true).open(dir.path().join("base")).unwrap();
            (0..shape.size / shape.region()).for_each(|region| {
                base.write_all_at(&vec![1; 120 * 4096], region * shape.region()).unwrap();
            });
        }
        fs::write(&path, shape.image()).unwrap();
        drop(open(&path));
        assert!(matches!(check(&path), None | Some(0)), "{shape:?}: an image without counts is not well");
        let before = fs::read(&path).unwrap();
        let history = work(&path, (2..160).map(|tag| Step::any(tag, shape, &mut rng)));
        let events = &history.events;
        let syncs: Vec<_> = (1..events.len()).filter(|at| matches!(events[*at], Event::Sync)).collect();
        for _ in 0..times {
            let any = rng.random_range(0..events.len());
            let near = syncs[rng.random_range(0..syncs.len())];
            for end in [any, near, (near + 2).min(events.len())] {
                fs::write(&path, history.crash(before.clone(), end, None)).unwrap();
                history.survives(shape, &path, end, "killed");
                fs::write(&path, history.crash(before.clone(), end, Some(&mut rng))).unwrap();
                history.survives(shape, &path, end, "power cut");
            }
        }
    }
}

/// What was discarded becomes others' data and tables: none of it has two owners at any moment.
#[test]
fn a_discarded_cluster_has_one_owner_at_every_moment() {
    let shape = SHAPES[3];
    let (region, whole) = (shape.region(), 24);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("image");
    fs::write(&path, shape.image()).unwrap();
    drop(open(&path));
    let before = fs::read(&path).unwrap();
    // L2 tables that are there, so that nothing but them changes; later ones have to be made.
    let mut steps = vec![(Step::Write(2), 0, whole)];
    steps.extend((1..4).map(|n| (Step::Write(2), n * region + 64 * BLOCK, 1)));
    steps.extend([(Step::Flush, 0, 0), (Step::Discard, 0, whole)]);
    // Before the flush and after it; and what was discarded is written to again.
    steps.extend((1..4).map(|n| (Step::Write(3), n * region, 3)));
    steps.extend([(Step::Write(4), 8 * BLOCK, 3), (Step::Flush, 0, 0)]);
    steps.extend((4..9).map(|n| (Step::Write(5), n * region, 2)));
    steps.extend([(Step::Discard, region, 3), (Step::Flush, 0, 0), (Step::Write(6), 9 * region, 3)]);
    let history = work(&path, steps);
    assert!(fs::metadata(&path).unwrap().len() < 60 * BLOCK, "what was discarded is not used again");
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    for end in 1..=history.events.len() {
        fs::write(&path, history.crash(before.clone(), end, None)).unwrap();
        history.survives(shape, &path, end, "killed");
        for _ in 0..2 {
            fs::write(&path, history.crash(before.clone(), end, Some(&mut rng))).unwrap();
            history.survives(shape, &path, end, "power cut");
        }
    }
}

/// A kill right after the opening leaves no feature that says what the first write makes untrue.
#[test]
fn autoclear_features_are_off_before_data_change() {
    let file = spoilt(4, &[(88, 1)]);
    let log = Arc::new(Mutex::new(Vec::new()));
    let recorder = |file| Box::new(Recorder { file, log: log.clone() }) as Box<dyn DynStorage>;
    let disk = Qcow2::open_through(file.path(), &options(), &recorder).unwrap();
    assert_eq!(fs::read(file.path()).unwrap()[88..96], [0; 8]);
    assert!(matches!(log.lock().unwrap().last(), Some(Event::Sync)));
    drop(disk);
    assert!(matches!(check(file.path()), None | Some(0 | 3)));
}

/// What is refused stays as it was, to the byte; so does what another may write to.
#[test]
fn an_image_that_is_refused_is_not_written_to() {
    let refused = |words: &[(usize, u64)], force, want: &str| {
        let file = spoilt(4, words);
        let before = fs::read(file.path()).unwrap();
        let said = Qcow2::open(file.path(), &Options { force, ..options() }).err().unwrap().to_string();
        assert!(said.contains(want), "{words:x?}: {said}");
        assert!(fs::read(file.path()).unwrap() == before, "{words:x?}");
    };
    for (bit, features) in [
        (1, "0x2 (marked corrupt)"),
        (3, "0x8 (zstd compression)"),
        (4, "0x10 (extended L2 entries)"),
        (5, "0x20"),
        (63, "0x8000000000000000"),
    ] {
        let said = format!("incompatible features {features} are not supported; qemu-img convert");
        refused(&[(72, 1 << bit)], false, &said);
    }
    refused(&[(0, 0x5146_49fb_0000_0004)], false, "version 4");
    refused(&[(72, DIRTY)], true, "dirty");
    refused(&[], true, "not counted");
    let file = spoilt(4, &[]);
    drop(open(file.path()));
    let before = fs::read(file.path()).unwrap();
    drop(Qcow2::open(file.path(), &Options { force: true, ..options() }).unwrap());
    assert!(fs::read(file.path()).unwrap() == before);
}

/// The beginning of an image of this order with an L2 table, whose words may be others.
fn spoilt(order: u32, words: &[(usize, u64)]) -> tempfile::NamedTempFile {
    let mut bytes = header(1 << 20, "", None);
    bytes.resize(7 << 16, 0);
    bytes[96..100].copy_from_slice(&order.to_be_bytes());
    bytes[2 << 16..3 << 16].fill(0);
    let mut put64 = |at: usize, word: u64| bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
    put64(L1, COPIED | 4 << 16);
    put64(L2, COPIED | 5 << 16);
    words.iter().for_each(|(at, word)| put64(*at, *word));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    file
}

const L1: usize = 3 << 16;
const L2: usize = 4 << 16;
const FAR: u64 = 1 << 41;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

#[test]
fn counts_of_every_width_are_put_right_and_the_image_is_clean_then() {
    for order in 0..7 {
        let file = spoilt(order, &[(FEATURES.into(), DIRTY), (2 << 16, 0)]);
        let block =
            |file: &tempfile::NamedTempFile| fs::read(file.path()).unwrap()[2 << 16..3 << 16].to_vec();
        // Cluster 6 is counted and not used.
        let mut leak = block(&file);
        put(&mut leak, order, 6, 1).unwrap();
        file.as_file().write_all_at(&leak, 2 << 16).unwrap();
        assert_eq!(repair(file.as_file(), true).unwrap(), Repaired { raised: 6, lowered: 1 }, "{order}");
        let counts: Vec<u64> = (0..8).map(|n| get(&block(&file), order, n)).collect();
        assert_eq!(counts, [1, 1, 1, 1, 1, 1, 0, 0], "{order}");
        assert!(matches!(check(file.path()), None | Some(0)), "{order}");
        assert_eq!(repair(file.as_file(), true).unwrap(), Repaired::default(), "{order}");
    }
}

/// A process of an earlier version was killed: a new L2 table is in use and has no count.
#[test]
fn an_l2_table_without_a_count_is_not_given_away() {
    let file = spoilt(4, &[(2 << 16, 0x0001_0001_0001_0001), ((2 << 16) + 8, 0x0000_0001_0000_0000)]);
    assert!(matches!(check(file.path()), None | Some(2)));
    let disk = open(file.path());
    (1..16).for_each(|n| write(&disk, n << 16, &content(9)));
    disk.flush().unwrap();
    (1..16).for_each(|n| assert!(read(&disk, n << 16, BLOCK) == content(9)));
    assert_eq!(read(&disk, 0, BLOCK), [0; 4096]);
    drop(disk);
    assert!(matches!(check(file.path()), None | Some(0)));
}

#[test]
fn what_no_counts_can_make_right_is_refused() {
    let said = |words: &[(usize, u64)]| repair(spoilt(4, words).as_file(), true).map_err(|e| e.to_string());
    let two = |n| Ok(Repaired { raised: n, lowered: 0 });
    assert_eq!(said(&[]), two(6));
    assert_eq!(said(&[(L2 + 8, COMPRESSED | 6 << 16 | 77), (L2 + 16, 1), (L2 + 24, 6 << 16 | 1)]), two(7));
    // Data in another file.
    assert_eq!(said(&[(L2, FAR), (72, EXTERNAL_DATA)]), two(5));
    for (words, want) in [
        (&[(L2, FAR)][..], "clusters beyond its end"),
        (&[(L2 + 800, COMPRESSED | FAR)], "clusters beyond its end"),
        (&[(L1, FAR)], "clusters beyond its end"),
        (&[(L2 + 8, 5 << 16)], "cluster 5 has more than one user"),
        (&[(L2 + 8, 4 << 16)], "cluster 4 has more than one user"),
        (&[(L2 + 8, 2 << 16)], "cluster 2 has more than one user"),
        (&[(L1, 3 << 16)], "cluster 3 has more than one user"),
        (&[(L1 + 8, 4 << 16), (32, 2)], "cluster 4 has more than one user"),
        (&[(L2 + 8, 5 << 16 | 512)], "no cluster's beginning"),
        (&[(L1, 4 << 16 | 512)], "no cluster's beginning"),
        (&[(1 << 16, 2 << 16 | 512)], "no cluster's beginning"),
        (&[(36, u64::MAX)], "header"),
        (&[(COUNTS.start, 77)], "header"),
        (&[(56, 0)], "header"),
    ] {
        let said = said(words).unwrap_err();
        assert!(said.contains(want), "{words:x?}: {said}");
    }
}

/// Snapshots share clusters, whose counts are as many; a compressed cluster of the host's has several of the guest's.
#[test]
fn images_of_qemus_are_found_right_and_made_right() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).current_dir(dir.path()).output();
        output.is_ok_and(|output| output.status.success())
    };
    let path = dir.path().join("image");
    if !qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "image", "4G"]) {
        return eprintln!("SKIP: images of QEMU's: no qemu-img here");
    }
    let steps =
        ["write -P 1 0 1M", "write -P 2 1G 1M", "write -c -P 3 3G 64k", "write -c -P 4 3221291008 64k"];
    steps.iter().for_each(|step| assert!(qemu("qemu-io", &["-c", step, "image"])));
    assert!(qemu("qemu-img", &["snapshot", "-c", "one", "image"]));
    assert!(qemu("qemu-io", &["-c", "write -P 5 512k 1M", "image"]));
    assert!(qemu("qemu-img", &["snapshot", "-c", "two", "image"]));
    assert!(qemu("qemu-io", &["-c", "write -P 6 0 64k", "-c", "write -P 7 2G 64k", "image"]));
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    assert_eq!(repair(&file, true).unwrap(), Repaired::default(), "QEMU counts the same");
    // All counts are lost.
    let at = |at| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, at).unwrap();
        u64::from_be_bytes(word)
    };
    file.write_all_at(&[0; 65536], at(at(COUNTS.start as u64))).unwrap();
    assert!(repair(&file, true).unwrap().raised > 40);
    assert_eq!(check(&path), Some(0));
    // Writes to what snapshots have, too.
    let disk = open(&path);
    for (at, tag) in [(0, 6), (1 << 20, 5), (1 << 30, 2), (3 << 30, 3), ((3 << 30) + 65536, 4), (2 << 30, 7)]
    {
        assert_eq!(read(&disk, at, 512), [tag; 512]);
        write(&disk, at + BLOCK, &content(99));
    }
    drop(disk);
    assert!(matches!(check(&path), Some(0 | 3)));
    drop(open(&path));
    assert_eq!(check(&path), Some(0), "what was replaced is free after the next opening");
    assert!(qemu("qemu-img", &["snapshot", "-a", "one", "image"]));
    let disk = open(&path);
    assert_eq!(read(&disk, BLOCK, 512), [1; 512]);
    assert_eq!(read(&disk, (3 << 30) + BLOCK, 512), [3; 512]);
}

/// Longer than its L1 table allows; and what it is told to grow to is there after a kill.
#[test]
fn a_grown_image_stays_grown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), header(1 << 30, "", None)).unwrap();
    let disk = open(file.path());
    write(&disk, 0, &content(3));
    disk.grow(6 << 40).unwrap();
    write(&disk, 5 << 40, &content(4));
    disk.flush().unwrap();
    let then = tempfile::NamedTempFile::new().unwrap();
    fs::copy(file.path(), then.path()).unwrap();
    assert!(matches!(check(then.path()), None | Some(0)));
    let disk = open(then.path());
    assert_eq!(disk.len().unwrap(), 6 << 40);
    assert!(read(&disk, 5 << 40, BLOCK) == content(4) && read(&disk, 0, BLOCK) == content(3));
}

/// `QCOW2_LARGE=50 cargo test --release -p xen-emu opening_a_large_image -- --nocapture --ignored`: the time it takes to look at
/// an image of so many GiB of data, which are holes here.
#[test]
#[ignore = "a measurement"]
fn opening_a_large_image() {
    let gib: u64 = std::env::var("QCOW2_LARGE").ok().and_then(|n| n.parse().ok()).unwrap_or(50);
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    fs::write(file.path(), header(1 << 40, "", None)).unwrap();
    for region in 0..gib * 2 {
        let l2 = (4 + region) << 16;
        file.as_file().write_all_at(&(COPIED | l2).to_be_bytes(), (3 << 16) + region * 8).unwrap();
        let data = |n: u64| COPIED | ((4 + gib * 2 + region * 8192 + n) << 16);
        let entries: Vec<u8> = (0..8192).flat_map(|n| data(n).to_be_bytes()).collect();
        file.as_file().write_all_at(&entries, l2).unwrap();
    }
    file.as_file().set_len((5 + gib * 2 + gib * 16384) << 16).unwrap();
    for what in ["no counts", "all well"] {
        let start = std::time::Instant::now();
        let repaired = repair(file.as_file(), true).unwrap();
        println!("{gib} GiB of data, {what}: {repaired:?} in {:?}", start.elapsed());
    }
}
