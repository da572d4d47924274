use super::fake::{DATA, FRAMES, Guest, Wish, config, segments};
use super::*;
use crate::disk::engine::{Gather, Io, Op, start};
use crate::disk::sys::Buffers;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::path::Path;
use xen_abi::Gref;
use xen_abi::io::blkif::{BlkifOp, BlkifRsp, DISCARD_SECURE};
use xen_domain::mem::{Gfn, GuestMem};
use xen_domain::testing::{grant, revoke};
use xen_emu_api::device::{DiskCache, DiskFormat};

const OK: BlkifRsp = BlkifRsp::OKAY;
const ERROR: BlkifRsp = BlkifRsp::ERROR;
const ENGINES: [EngineKind; 2] = [EngineKind::Threads, EngineKind::Uring];
/// Bytes of the test disks.
pub const LEN: usize = 8 << 20;

pub fn image(format: DiskFormat) -> tempfile::NamedTempFile {
    // Where O_DIRECT is likely to be possible.
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    match format {
        DiskFormat::Raw => file.as_file().set_len(LEN as u64).unwrap(),
        DiskFormat::Qcow2 => {
            std::fs::write(file.path(), crate::disk::tests::header(LEN as u64, "", None)).unwrap()
        }
    }
    file
}

fn guest_of(path: &Path, format: DiskFormat, cache: DiskCache, engine: EngineKind) -> Guest {
    let blk = Blk::open(&config(path, format, cache), 4).unwrap().with_engine(engine);
    Guest::new(blk, 0)
}

fn rng(seed: u8) -> TestRng {
    TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32])
}

/// One request of a batch that the model knows the outcome of.
enum Expected {
    Page { gref: u32, first: usize, bytes: Vec<u8> },
    Nothing,
}

/// Random requests in random order on as many places of the disk; all answered, all bytes as a model has them.
fn torture(guest: &mut Guest, model: &mut [u8], rng: &mut TestRng, rounds: usize) {
    let queues = guest.rings.len();
    let lanes = 8;
    let lane_sectors = LEN / 512 / lanes / queues;
    for _ in 0..rounds {
        let mut expected = Vec::new();
        for queue in 0..queues {
            for lane in 0..lanes {
                let id = (queue * lanes + lane) as u64;
                let base = (queue * lanes + lane) * lane_sectors;
                let first_gref = DATA + u32::try_from(queue * lanes + lane).unwrap() * 100;
                expected.push(one(guest, model, rng, (queue, id), (base, lane_sectors), first_gref));
            }
        }
        for ring in &mut guest.rings {
            let statuses = ring.statuses(lanes);
            assert!(statuses.iter().all(|status| *status == OK), "{statuses:?}");
        }
        for expected in expected.into_iter().flatten() {
            if let Expected::Page { gref, first, bytes } = expected {
                assert_eq!(guest.page(gref)[first..first + bytes.len()], bytes);
            }
        }
    }
    let failures = guest.failures.lock().unwrap();
    assert!(failures.is_empty(), "{failures:?}");
}

fn one(
    guest: &mut Guest,
    model: &mut [u8],
    rng: &mut TestRng,
    (queue, id): (usize, u64),
    (base, sectors): (usize, usize),
    first_gref: u32,
) -> Vec<Expected> {
    let kind = rng.random_range(0..10);
    if kind == 0 {
        guest.rings[queue].direct(BlkifOp::FLUSH_DISKCACHE, id, 0, &[]);
        return vec![Expected::Nothing];
    }
    if kind == 1 {
        // Whole clusters, which read as zeros afterwards in both formats.
        let start = base.next_multiple_of(128);
        guest.rings[queue].discard(id, start as u64, 128);
        model[start * 512..(start + 128) * 512].fill(0);
        return vec![Expected::Nothing];
    }
    let indirect = kind < 5;
    let count = if indirect { rng.random_range(1..40) } else { rng.random_range(1..12) };
    let write = rng.random_bool(0.5);
    let mut list = Vec::new();
    let mut total = 0;
    for n in 0..count {
        let first = rng.random_range(0..8u8);
        let last = rng.random_range(first..8);
        list.push((first_gref + n, first, last));
        total += usize::from(last - first) + 1;
    }
    let sector = base + rng.random_range(0..sectors - total);
    let mut at = sector * 512;
    let mut expected = Vec::new();
    for (gref, first, last) in &list {
        let (first, len) = (usize::from(*first) * 512, (usize::from(last - first) + 1) * 512);
        let mut page = vec![0; 4096];
        rng.fill_bytes(&mut page);
        guest.fill(*gref, &page);
        if write {
            model[at..at + len].copy_from_slice(&page[first..first + len]);
        } else {
            expected.push(Expected::Page { gref: *gref, first, bytes: model[at..at + len].to_vec() });
        }
        at += len;
    }
    let operation = match (write, kind) {
        (false, _) => BlkifOp::READ,
        (true, 9) if !indirect => BlkifOp::WRITE_BARRIER,
        (true, _) => BlkifOp::WRITE,
    };
    let (ring, list) = (&mut guest.rings[queue], segments(&list));
    if indirect {
        ring.indirect(operation, id, sector as u64, &list, first_gref + 90);
    } else {
        ring.direct(operation, id, sector as u64, &list);
    }
    expected
}

#[test]
fn every_byte_is_where_the_guest_wrote_it() {
    let mut seed = 0;
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        for engine in ENGINES {
            for (abi, queues, order, persistent, cache) in [
                (Abi::X64, 1, 0, false, DiskCache::None),
                (Abi::X64, 4, 2, true, DiskCache::Writeback),
                (Abi::X32, 2, 1, true, DiskCache::None),
                (Abi::X32, 1, 4, false, DiskCache::Writethrough),
            ] {
                seed += 1;
                let (file, mut rng) = (image(format), rng(seed));
                let mut model = vec![0; LEN];
                for _again in 0..2 {
                    let mut guest = guest_of(file.path(), format, cache, engine);
                    guest.connect(Wish { abi, queues, order, persistent }).unwrap();
                    torture(&mut guest, &mut model, &mut rng, 12);
                    guest.blk.disconnect();
                    assert_eq!(guest.pins.in_use(), 0);
                    guest.connect(Wish::default()).unwrap();
                    verify(&mut guest, &model);
                }
                match format {
                    DiskFormat::Raw => assert!(std::fs::read(file.path()).unwrap() == model),
                    DiskFormat::Qcow2 => second_opinion(file.path(), &model),
                }
            }
        }
    }
}

/// What QEMU finds in a qcow2 image.
fn second_opinion(path: &Path, model: &[u8]) {
    let check =
        std::process::Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(path).status();
    let Ok(check) = check else { return eprintln!("SKIP: second opinion on qcow2: no qemu-img here") };
    assert!(check.success(), "qemu-img check: {check}");
    let raw = tempfile::NamedTempFile::new().unwrap();
    let mut convert = std::process::Command::new("qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw"]).args([path, raw.path()]);
    assert!(convert.status().unwrap().success());
    assert!(std::fs::read(raw.path()).unwrap() == model);
}

/// Reads all of the disk by large requests.
fn verify(guest: &mut Guest, model: &[u8]) {
    for (n, part) in (0u64..).zip(model.chunks(256 * 4096)) {
        let list: Vec<_> = (0..256).map(|n| (DATA + n, 0, 7)).collect();
        guest.rings[0].indirect(BlkifOp::READ, n, n * 2048, &segments(&list), DATA + 300);
        assert_eq!(guest.rings[0].statuses(1), [OK]);
        for (gref, page) in (DATA..).zip(part.chunks(4096)) {
            assert!(guest.page(gref) == page, "page {gref} of MiB {n}");
        }
    }
}

#[test]
fn a_barrier_parts_what_is_before_from_what_is_behind() {
    for engine in ENGINES {
        let file = image(DiskFormat::Raw);
        let mut guest = guest_of(file.path(), DiskFormat::Raw, DiskCache::Writeback, engine);
        guest.connect(Wish::default()).unwrap();
        (0..3).for_each(|n| guest.fill(DATA + n, &[u8::try_from(n).unwrap() + 1; 4096]));
        for round in 0..50 {
            let ring = &mut guest.rings[0];
            let page = |n: u32| segments(&[(DATA + n, 0, 7)]);
            (0..8).for_each(|n| ring.direct(BlkifOp::WRITE, n, n * 8, &page(0)));
            ring.direct(BlkifOp::WRITE_BARRIER, 8, 24, &page(1));
            ring.direct(BlkifOp::WRITE, 9, 32, &page(2));
            ring.direct(BlkifOp::WRITE_BARRIER, 10, 0, &[]);
            ring.direct(BlkifOp::READ, 11, 24, &segments(&[(DATA + 8, 0, 7), (DATA + 9, 0, 7)]));
            assert!(ring.statuses(12).iter().all(|status| *status == OK));
            assert_eq!((guest.page(DATA + 8)[0], guest.page(DATA + 9)[0]), (2, 3), "round {round}");
        }
    }
}

#[test]
fn grants_that_are_not_there_fail_their_request_alone() {
    for (offered, wanted) in [(true, false), (false, true), (true, true)] {
        let file = image(DiskFormat::Raw);
        let config =
            DiskConfig { persistent: offered, ..config(file.path(), DiskFormat::Raw, DiskCache::None) };
        let mut guest = Guest::new(Blk::open(&config, 1).unwrap(), 0);
        guest.connect(Wish { persistent: wanted, ..Wish::default() }).unwrap();
        let persistent = offered && wanted;
        revoke(&*guest.ram, Gref(DATA + 1)).unwrap();
        grant(&*guest.ram, Gref(DATA + 2), Gfn((DATA + 2).into()), true).unwrap();
        grant(&*guest.ram, Gref(DATA + 3), Gfn(FRAMES + 5), false).unwrap();
        let ring = &mut guest.rings[0];
        let page = |n: u32| segments(&[(DATA, 0, 7), (DATA + n, 0, 7)]);
        ring.direct(BlkifOp::READ, 0, 0, &page(1));
        ring.direct(BlkifOp::READ, 1, 0, &page(2));
        ring.direct(BlkifOp::WRITE, 2, 0, &page(2));
        ring.direct(BlkifOp::READ, 3, 0, &page(3));
        ring.direct(BlkifOp::READ, 4, 0, &segments(&[(u32::MAX, 0, 7)]));
        ring.indirect(BlkifOp::READ, 5, 0, &page(1), DATA + 9);
        ring.direct(BlkifOp::READ, 6, 0, &page(0));
        assert_eq!(ring.statuses(7), [ERROR, ERROR, OK, ERROR, ERROR, ERROR, OK]);
        let kept = usize::from(persistent) * 2;
        assert_eq!(guest.pins.in_use(), 1 + kept, "the ring, and the good data and indirect pages");
        assert_eq!(revoke(&*guest.ram, Gref(DATA)).unwrap(), persistent);
        guest.blk.disconnect();
        assert_eq!(guest.pins.in_use(), 0);
    }
}

#[test]
fn a_ring_index_that_cannot_be_closes_the_device_once() {
    for engine in ENGINES {
        let file = image(DiskFormat::Raw);
        let mut guest = guest_of(file.path(), DiskFormat::Raw, DiskCache::None, engine);
        guest.connect(Wish::default()).unwrap();
        guest.rings[0].direct(BlkifOp::READ, 0, 0, &segments(&[(DATA, 0, 7)]));
        assert_eq!(guest.rings[0].statuses(1), [OK]);
        guest.rings[0].lie(77);
        while guest.failures.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        let turns = || guest.blk.counters.turns.load(std::sync::atomic::Ordering::Relaxed);
        let before = turns();
        guest.rings[0].kick();
        while turns() == before {
            std::thread::yield_now();
        }
        assert_eq!(guest.failures.lock().unwrap().len(), 1);
        assert!(guest.failures.lock().unwrap()[0].contains("ring index out of range: prod 0x4d"));
        guest.blk.disconnect();
        assert_eq!(guest.pins.in_use(), 0);
        guest.connect(Wish::default()).unwrap();
        guest.rings[0].direct(BlkifOp::READ, 0, 0, &segments(&[(DATA, 0, 7)]));
        assert_eq!(guest.rings[0].statuses(1), [OK]);
    }
}

#[test]
fn disconnecting_under_load_gives_every_page_back_and_touches_none_later() {
    for engine in ENGINES {
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let file = image(format);
            let mut guest = guest_of(file.path(), format, DiskCache::None, engine);
            for persistent in [true, false, true] {
                guest.connect(Wish { persistent, order: 3, ..Wish::default() }).unwrap();
                for n in 0..200 {
                    let operation = if n % 3 == 0 { BlkifOp::WRITE } else { BlkifOp::READ };
                    let gref = DATA + u32::try_from(n).unwrap();
                    guest.rings[0].direct(operation, n, n * 8, &segments(&[(gref, 0, 7)]));
                }
                guest.rings[0].publish();
                guest.blk.disconnect();
                assert_eq!(guest.pins.in_use(), 0);
                let mark = vec![0x5a; 200 * 4096];
                guest.ram.write(Gfn(DATA.into()).gpa(), &mark).unwrap();
                guest.connect(Wish::default()).unwrap();
                guest.rings[0].direct(BlkifOp::FLUSH_DISKCACHE, 0, 0, &[]);
                assert_eq!(guest.rings[0].statuses(1), [OK]);
                let mut now = vec![0; mark.len()];
                guest.ram.read(Gfn(DATA.into()).gpa(), &mut now).unwrap();
                assert!(now == mark);
                guest.blk.disconnect();
            }
        }
    }
}

#[test]
fn a_secure_discard_is_one_where_the_image_can_and_an_error_where_it_cannot() {
    let file = image(DiskFormat::Raw);
    let offered = |nodes: &Nodes| nodes.contains(&("discard-secure".into(), "1".into()));
    for abi in [Abi::X64, Abi::X32] {
        let mut guest = guest_of(file.path(), DiskFormat::Raw, DiskCache::None, EngineKind::Auto);
        assert!(!offered(&guest.blk.advertise()));
        guest.connect(Wish { abi, ..Wish::default() }).unwrap();
        guest.rings[0].flagged_discard(0, 8, 16, DISCARD_SECURE);
        assert_eq!(guest.rings[0].statuses(1), [BlkifRsp::EOPNOTSUPP]);
        guest.blk.disconnect();

        let wiped = crate::disk::tests::Wiped::default();
        guest.blk.disk = Some(Arc::new(crate::disk::tests::erasing(wiped.clone())));
        assert!(offered(&guest.blk.advertise()));
        guest.connect(Wish { abi, ..Wish::default() }).unwrap();
        guest.rings[0].flagged_discard(0, 8, 16, DISCARD_SECURE);
        guest.rings[0].flagged_discard(1, 64, 8, 0);
        guest.rings[0].flagged_discard(2, 2040, 16, DISCARD_SECURE);
        assert_eq!(guest.rings[0].statuses(3), [OK, OK, ERROR]);
        let mut wiped = wiped.lock().unwrap().clone();
        wiped.sort_unstable();
        assert_eq!(wiped, [(8 << 9, 16 << 9, true), (64 << 9, 8 << 9, false)]);
    }
}

#[test]
fn the_guest_hears_of_a_new_size_and_of_new_discs() {
    let (file, other) = (image(DiskFormat::Raw), image(DiskFormat::Raw));
    std::fs::write(other.path(), vec![7; 1 << 20]).unwrap();
    let mut guest = guest_of(file.path(), DiskFormat::Raw, DiskCache::None, EngineKind::Auto);
    let sectors = |nodes: &Nodes| nodes.iter().find(|(name, _)| name == "sectors").unwrap().1.clone();
    assert_eq!(sectors(&guest.connect(Wish::default()).unwrap()), "16384");
    let read = |guest: &mut Guest, sector| {
        guest.rings[0].direct(BlkifOp::READ, 0, sector, &segments(&[(DATA, 0, 7)]));
        guest.rings[0].statuses(1)[0]
    };
    assert_eq!(read(&mut guest, 16384), ERROR);
    assert_eq!(sectors(&guest.blk.resize(Some(16 << 20)).unwrap()), "32768");
    assert_eq!(read(&mut guest, 16384), OK);
    assert!(guest.blk.resize(Some(1 << 20)).unwrap_err().0.contains("not made smaller"));
    assert!(guest.blk.insert(None).unwrap_err().0.contains("not a CD drive"));
    drop(guest);

    let cd =
        DiskConfig { cdrom: true, target: None, ..config(file.path(), DiskFormat::Raw, DiskCache::None) };
    let mut guest = Guest::new(Blk::open(&cd, 1).unwrap(), 0);
    assert!(!guest.blk.advertise().iter().any(|(name, _)| name == "feature-discard"));
    let nodes = guest.connect(Wish { persistent: true, ..Wish::default() }).unwrap();
    assert_eq!(sectors(&nodes), "0");
    assert!(nodes.contains(&("info".into(), "7".into())));
    assert_eq!(read(&mut guest, 0), ERROR);
    let disc = Disc { target: other.path().to_owned(), format: DiskFormat::Raw };
    assert_eq!(sectors(&guest.blk.insert(Some(&disc)).unwrap()), "2048");
    assert_eq!((read(&mut guest, 8), guest.page(DATA)[9]), (OK, 7));
    guest.rings[0].direct(BlkifOp::WRITE, 0, 0, &segments(&[(DATA, 0, 7)]));
    assert_eq!(guest.rings[0].statuses(1), [ERROR], "discs are read-only");
    let gone = Disc { target: "/nonexistent/disc".into(), ..disc };
    assert!(guest.blk.insert(Some(&gone)).unwrap_err().0.contains("No such file"));
    assert_eq!(read(&mut guest, 8), OK, "the old disc stays");
    assert_eq!(sectors(&guest.blk.insert(None).unwrap()), "0");
    assert_eq!(read(&mut guest, 8), ERROR);
    Blk::open(&config(other.path(), DiskFormat::Raw, DiskCache::None), 1).unwrap();
}

/// A drive whose only queue waits for its disc is closed, and not left for dead with an answer of Ok.
#[test]
fn a_disc_that_does_not_answer_closes_the_drive_when_it_is_changed() {
    let cd =
        DiskConfig { cdrom: true, target: None, ..config(Path::new(""), DiskFormat::Raw, DiskCache::None) };
    let gate = Arc::default();
    for queues in [1, 2] {
        let mut guest = Guest::new(Blk::open(&cd, 2).unwrap(), 0);
        let (comes, waits) = std::sync::mpsc::channel();
        guest.blk.disk = Some(Arc::new(crate::disk::tests::hanging(&gate, comes)));
        guest.connect(Wish { queues, ..Wish::default() }).unwrap();
        let shut = gate.lock().unwrap();
        guest.rings[0].direct(BlkifOp::READ, 0, 0, &segments(&[(DATA, 0, 7)]));
        guest.rings[0].publish();
        waits.recv().unwrap();
        guest.blk.insert(None).unwrap();
        assert!(guest.failures.lock().unwrap()[0].contains("the old disc does not answer"));
        drop(shut);
    }
}

#[test]
fn nonsense_in_the_frontends_nodes_is_refused_and_leaves_nothing() {
    let file = image(DiskFormat::Raw);
    let mut guest = guest_of(file.path(), DiskFormat::Raw, DiskCache::None, EngineKind::Auto);
    let rows = [
        (Wish { queues: 5, ..Wish::default() }, "wants 5 queues; 1 to 4 were offered"),
        (Wish { order: 5, ..Wish::default() }, "2^5 pages; at most 16 were offered"),
    ];
    for (wish, want) in rows {
        let said = guest.connect(wish).unwrap_err().0;
        assert!(said.contains(want), "{said}");
        assert_eq!(guest.pins.in_use(), 0);
    }
    revoke(&*guest.ram, Gref(8 + 16)).unwrap();
    let said = guest.connect(Wish { queues: 2, ..Wish::default() }).unwrap_err().0;
    assert_eq!((said.as_str(), guest.pins.in_use()), ("ring: grant 24 is not granted", 0));
}

#[test]
fn unaligned_pages_are_copied_only_for_o_direct() {
    let file = image(DiskFormat::Raw);
    let mut guest = guest_of(file.path(), DiskFormat::Raw, DiskCache::None, EngineKind::Auto);
    guest.connect(Wish::default()).unwrap();
    let disk = guest.blk.disk().unwrap().clone();
    // Granted pages are aligned, and so are sectors in them.
    guest.rings[0].direct(BlkifOp::WRITE, 0, 3, &segments(&[(DATA, 1, 1), (DATA + 1, 3, 6)]));
    assert_eq!((guest.rings[0].statuses(1), disk.bounces()), (vec![OK], 0));
    let mut engine = start(EngineKind::Auto, Some(disk.clone()), Vec::new()).unwrap();
    let mut run = |op, data| {
        engine.submit(Io::new(0, op, 1024, data));
        let mut done = Vec::new();
        while done.is_empty() {
            engine.wait(Gather::ONE, &mut done).unwrap();
        }
        done.remove(0).result.unwrap();
    };
    // A grant of a part of a page may begin anywhere.
    let pieces = |gfn: u64| {
        let mut data = Buffers::guest(guest.ram.clone());
        data.push(Gfn(gfn).gpa().offset(1), 1000).unwrap();
        data.push(Gfn(gfn + 1).gpa().offset(7), 24).unwrap();
        data
    };
    let text: Vec<u8> = (0..1024u32).map(|n| n.to_le_bytes()[0]).collect();
    guest.ram.write(Gfn(200).gpa().offset(1), &text[..1000]).unwrap();
    guest.ram.write(Gfn(201).gpa().offset(7), &text[1000..]).unwrap();
    run(Op::Write, pieces(200));
    assert!(std::fs::read(file.path()).unwrap()[1024..2048] == text);
    run(Op::Read, pieces(300));
    assert!(guest.page(300)[1..1001] == text[..1000] && guest.page(301)[7..31] == text[1000..]);
    assert_eq!((guest.page(300)[1001], guest.page(301)[6], guest.page(301)[31]), (0, 0, 0));
    assert_eq!(disk.bounces(), 2 * u64::from(disk.direct()));
}

/// Whatever is in a slot: answered once, and nothing else of the guest or the host is touched.
#[test]
fn garbage_is_answered_once_and_touches_nothing() {
    let file = image(DiskFormat::Raw);
    let (fill, granted) = (0xa5, DATA..DATA + 32);
    for (engine, abi) in [(EngineKind::Uring, Abi::X64), (EngineKind::Threads, Abi::X32)] {
        let mut guest = guest_of(file.path(), DiskFormat::Raw, DiskCache::Unsafe, engine);
        guest.ram.write(Gfn(0).gpa(), &vec![fill; 4096 * 4096]).unwrap();
        let all = DATA..u32::try_from(FRAMES).unwrap();
        all.filter(|n| !granted.contains(n)).for_each(|n| assert!(!revoke(&*guest.ram, Gref(n)).unwrap()));
        (granted.start + 16..granted.end)
            .for_each(|n| grant(&*guest.ram, Gref(n), Gfn(n.into()), true).unwrap());
        guest.connect(Wish { abi, persistent: true, ..Wish::default() }).unwrap();
        let slots = proptest::collection::vec(slot(abi), 1..32);
        let mut runner = TestRunner::new_with_rng(Config::with_cases(100), rng(9));
        let guest = std::cell::RefCell::new(guest);
        let result = runner.run(&slots, |slots| {
            let mut guest = guest.borrow_mut();
            let ring = &mut guest.rings[0];
            let at = if abi == Abi::X64 { 8 } else { 4 };
            for (id, mut slot) in (0u64..).zip(slots.clone()) {
                slot[at..at + 8].copy_from_slice(&id.to_le_bytes());
                ring.put(&slot[..abi.slot()]);
            }
            ring.publish();
            let ids: Vec<u64> = ring.responses(slots.len()).into_iter().map(|(id, ..)| id).collect();
            prop_assert_eq!(ids, (0..slots.len() as u64).collect::<Vec<_>>());
            Ok(())
        });
        result.unwrap();
        let guest = guest.into_inner();
        let changed = (DATA..u32::try_from(FRAMES).unwrap())
            .filter(|n| guest.page(*n).iter().any(|byte| *byte != fill))
            .collect::<Vec<_>>();
        assert!(changed.iter().all(|n| (granted.start..granted.start + 16).contains(n)), "{changed:?}");
        assert!(guest.failures.lock().unwrap().is_empty());
        assert_eq!(file.as_file().metadata().unwrap().len(), LEN as u64);
    }
}

/// Bytes of a slot, near enough to sense that much of it is carried out.
fn slot(abi: Abi) -> impl Strategy<Value = Vec<u8>> {
    let bytes = proptest::collection::vec(any::<u8>(), 112);
    let sector = prop_oneof![4 => 0..(LEN as u64 / 512), 1 => any::<u64>()];
    let segment = (DATA - 4..DATA + 40, 0..10u8, 0..10u8);
    let segments = proptest::collection::vec(segment, 11);
    (bytes, 0..8u8, 0..13u8, sector, segments, any::<bool>()).prop_map(
        move |(mut bytes, operation, count, sector, segments, plain)| {
            let (sector_at, segments_at) = if abi == Abi::X64 { (16, 24) } else { (12, 20) };
            bytes[0] = operation;
            if plain {
                bytes[1] = count;
                bytes[sector_at..sector_at + 8].copy_from_slice(&sector.to_le_bytes());
                for (n, (gref, first, last)) in segments.into_iter().enumerate() {
                    let at = segments_at + n * 8;
                    bytes[at..at + 4].copy_from_slice(&gref.to_le_bytes());
                    (bytes[at + 4], bytes[at + 5]) = (first, last);
                }
                if operation == 6 {
                    (bytes[1], bytes[2], bytes[3]) = (count % 2, count, 0);
                }
            }
            bytes
        },
    )
}
