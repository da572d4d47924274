use super::*;

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use crate::out::Out;
use crate::quota::Limit;
use crate::store::ConnId;
use crate::wire::{Header, MsgType};

fn ask(store: &mut Store, conn: ConnId, kind: MsgType, tx_id: u32, payload: &[u8]) {
    let header = Header { kind, req_id: 0, tx_id, len: 0 };
    store.handle(conn, header, payload, true, &mut Out::default());
}

/// All that a state folder keeps, comparable.
fn content(store: &Store) -> Vec<u8> {
    Source::of(store).stream(Stream::new()).unwrap()
}

const POLICY: Policy = Policy { fsync: Fsync::Never, transient: false };

fn open(folder: &TempDir) -> (Disk, Store) {
    Disk::open(folder.path(), POLICY).unwrap()
}

/// As if the host had been booted anew since this snapshot was written.
fn boot_anew(snapshot: &FilePath) {
    let bytes = fs::read(snapshot).unwrap();
    let boot = boot();
    let at = bytes.windows(boot.len()).position(|part| part == boot.as_bytes()).unwrap();
    let other = [&bytes[..at], &vec![b'0'; boot.len()], &bytes[at + boot.len()..bytes.len() - 8]].concat();
    fs::write(snapshot, [&other, &frame::end(&other)[..]].concat()).unwrap();
}

#[test]
fn what_was_committed_is_there_again() {
    let folder = tempdir().unwrap();
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    let write = |store: &mut Store, line: &str| ask(store, host, MsgType::WRITE, 0, line.as_bytes());
    write(&mut store, "/b/c\x001");
    write(&mut store, "/local/domain/5/x\x001");
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"/local/domain/5\0n5\0");
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"7\x001\x002\0");
    write(&mut store, "/a\x00a");
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"/a\0n0\0r7\0r5\0");
    ask(&mut store, host, MsgType::SET_QUOTA, 0, b"5\0nodes\x0017\0");
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"@releaseDomain\0n0\0r5\0");
    disk.commit(&mut store);
    ask(&mut store, host, MsgType::CONTROL, 0, b"quota-soft\0set\0memory\x005000\0");
    disk.commit(&mut store);
    // The second life of 7, to which /a says nothing; a node that comes again as another.
    ask(&mut store, host, MsgType::RELEASE, 0, b"7\0");
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"7\x001\x002\0");
    ask(&mut store, host, MsgType::RM, 0, b"/b\0");
    write(&mut store, "/b\0new");
    disk.commit(&mut store);
    disk.commit(&mut store);
    let want = content(&store);
    drop(disk);
    assert!(Disk::open(folder.path(), POLICY).is_ok(), "twice");
    let (_disk, mut again) = open(&folder);
    assert_eq!(content(&again), want);
    assert_eq!(again.check(), Ok(()));
    assert!(Disk::open(folder.path(), POLICY).is_err(), "one daemon per folder");
    assert_eq!(again.quota.value(None, Limit::SoftMemory), 5000);
    // Nobody is introduced, and whoever comes finds what is theirs.
    assert!(!again.domains.is_introduced(5) && again.domains.life(5).is_some());
    let host = again.connect();
    ask(&mut again, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    assert!(again.domains.is_introduced(5));
    assert_eq!(content(&again), want);
}

#[test]
fn domains_do_not_survive_a_boot_of_the_host() {
    let folder = tempdir().unwrap();
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    ask(&mut store, host, MsgType::WRITE, 0, b"/local/domain/5/x\x001");
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"/local/domain/5\0n5\0");
    ask(&mut store, host, MsgType::WRITE, 0, b"/a\x001");
    disk.commit(&mut store);
    drop(disk);
    boot_anew(&folder.path().join("snapshot.1"));
    let (_disk, store) = open(&folder);
    let there = |path: &[u8]| store.tree.get(&crate::path::Path::parse(path, 0, None).unwrap()).is_some();
    assert!(there(b"/a") && there(b"/local/domain") && !there(b"/local/domain/5"));
}

/// A transient folder is taken up after a kill, and only then.
#[test]
fn what_is_transient_ends_with_its_daemon_or_host() {
    let folder = tempdir().unwrap();
    let open = || Disk::open(folder.path(), Policy { fsync: Fsync::Never, transient: true }).unwrap();
    let empty = content(&Store::new());
    let write = |(disk, store): &mut (Disk, Store)| {
        let host = store.connect();
        ask(store, host, MsgType::WRITE, 0, b"/a\x001");
        disk.commit(store);
        content(store)
    };
    let mut killed = open();
    assert_eq!(content(&killed.1), empty);
    let want = write(&mut killed);
    drop(killed);
    let told = open();
    assert_eq!(content(&told.1), want);
    told.0.close();
    let mut before = open();
    assert_eq!(content(&before.1), empty);
    write(&mut before);
    let snapshot = folder.path().join(format!("snapshot.{}", before.0.number));
    drop(before);
    boot_anew(&snapshot);
    let mut broken = open();
    assert_eq!(content(&broken.1), empty);
    write(&mut broken);
    let snapshot = folder.path().join(format!("snapshot.{}", broken.0.number));
    drop(broken);
    fs::write(snapshot, b"nonsense").unwrap();
    assert_eq!(content(&open().1), empty);
}

/// A second life that watches what the first has watched, and a third that does not.
#[test]
fn watches_are_those_of_the_present_life() {
    let folder = tempdir().unwrap();
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    let watch = |store: &mut Store| {
        ask(store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
        let guest = store.domains.get(5).unwrap().conn.unwrap();
        ask(store, guest, MsgType::WATCH, 0, b"device\0t\0");
    };
    watch(&mut store);
    disk.commit(&mut store);
    ask(&mut store, host, MsgType::RELEASE, 0, b"5\0");
    watch(&mut store);
    disk.commit(&mut store);
    drop(disk);
    let (mut disk, mut store) = open(&folder);
    assert_eq!(store.watches_of_domain(5).len(), 1);
    // Nobody has released it, but a new one is made.
    let host = store.connect();
    ask(&mut store, host, MsgType::RM, 0, b"/local/domain/5\0");
    ask(&mut store, host, MsgType::MKDIR, 0, b"/local/domain/5\0");
    disk.commit(&mut store);
    drop(disk);
    assert_eq!(store.watches_of_domain(5), []);
    assert_eq!(open(&folder).1.watches_of_domain(5), []);
}

/// A domain may have had transactions open: they are tried again, and those it begins now are others.
#[test]
fn t4_transactions_of_a_daemon_that_was_killed_end_in_eagain() {
    let folder = tempdir().unwrap();
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    disk.commit(&mut store);
    drop(disk);
    let (_disk, mut store) = open(&folder);
    let host = store.connect();
    for domid in [5, 6] {
        ask(&mut store, host, MsgType::INTRODUCE, 0, format!("{domid}\x001\x002\0").as_bytes());
    }
    let [guest, other] = [5, 6].map(|domid| store.domains.get(domid).unwrap().conn.unwrap());
    let answer = |store: &mut Store, conn, kind, tx_id, payload: &[u8]| {
        let mut out = Out::default();
        store.handle(conn, Header { kind, req_id: 0, tx_id, len: 0 }, payload, false, &mut out);
        let text = out.messages().next().map(|(_, message, _)| message[16..].to_vec()).unwrap();
        String::from_utf8(text).unwrap()
    };
    assert_eq!(answer(&mut store, guest, MsgType::WRITE, 7, b"/local/domain/5/x\x001"), "EACCES\0");
    assert_eq!(answer(&mut store, guest, MsgType::READ, 8, b"/\0"), "EACCES\0");
    let new = answer(&mut store, guest, MsgType::TRANSACTION_START, 0, b"\0");
    let new: u32 = new.trim_end_matches('\0').parse().unwrap();
    assert!(![7, 8].contains(&new));
    for tx in [7, 8, 9] {
        assert_eq!(answer(&mut store, guest, MsgType::TRANSACTION_END, tx, b"T\0"), "EAGAIN\0");
    }
    assert_eq!(answer(&mut store, guest, MsgType::TRANSACTION_END, new, b"T\0"), "OK\0");
    // As many as it may have, no more; none once it began anew; and none for a domain that was not there.
    for tx in 20..30 {
        assert_eq!(answer(&mut store, guest, MsgType::READ, tx, b"/\0"), "EACCES\0");
    }
    assert_eq!(answer(&mut store, guest, MsgType::READ, 30, b"/\0"), "ENOENT\0");
    assert_eq!(answer(&mut store, guest, MsgType::RESET_WATCHES, 0, b"\0"), "OK\0");
    assert_eq!(store.open, 0);
    for conn in [guest, other] {
        assert_eq!(answer(&mut store, conn, MsgType::TRANSACTION_END, 7, b"T\0"), "ENOENT\0");
    }
}

/// Wherever the log ends, what its whole frames say is there, and nothing else.
#[test]
fn a_torn_log_is_taken_up_to_the_tear() {
    let folder = tempdir().unwrap();
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    let mut states = vec![(0, content(&store))];
    for n in 0..5 {
        ask(&mut store, host, MsgType::WRITE, 0, format!("/n{n}/x\0{n}").as_bytes());
        disk.commit(&mut store);
        states.push((disk.log_len, content(&store)));
    }
    let log = fs::read(folder.path().join("log.1")).unwrap();
    let snapshot = fs::read(folder.path().join("snapshot.1")).unwrap();
    for end in (0..=log.len()).step_by(7).chain([log.len()]) {
        let copy = tempdir().unwrap();
        fs::write(copy.path().join("snapshot.1"), &snapshot).unwrap();
        let mut torn = log[..end].to_vec();
        // What the disk had there before.
        torn.extend_from_slice(&[0xa5; 40]);
        fs::write(copy.path().join("log.1"), torn).unwrap();
        let (_disk, again) = open(&copy);
        let (_, want) = states.iter().rev().find(|(len, _)| *len <= end as u64).unwrap();
        assert!(content(&again) == *want, "{end} bytes");
    }
}

#[test]
fn any_damage_to_a_snapshot_is_found_and_said() {
    let folder = tempdir().unwrap();
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    ask(&mut store, host, MsgType::WRITE, 0, b"/a/b\0value");
    disk.commit(&mut store);
    drop(disk);
    drop(open(&folder));
    let file = folder.path().join("snapshot.2");
    let snapshot = fs::read(&file).unwrap();
    let stream = &snapshot[..snapshot.len() - 8];
    // What it says is what is there, or it is an error: a stream without a checksum is one of an earlier version.
    fs::write(&file, stream).unwrap();
    assert!(load(folder.path(), false).is_ok());
    for at in (0..stream.len()).chain(stream.len() + 4..snapshot.len()) {
        let mut bytes = snapshot.clone();
        bytes[at] ^= 0x10;
        fs::write(&file, bytes).unwrap();
        let error = Disk::open(folder.path(), POLICY).unwrap_err();
        let text =
            "snapshot.2 is damaged: its checksum is wrong; move the folder away to begin with an empty store";
        assert_eq!(error.to_string(), text, "byte {at}");
    }
    let at = stream.windows(2).position(|two| two == b"/a").unwrap();
    let mut bytes = stream.to_vec();
    bytes[at + 1] = b'/';
    fs::write(&file, bytes).unwrap();
    let error = Disk::open(folder.path(), POLICY).unwrap_err().to_string();
    assert!(error.contains("impossible node //") && error.contains(", at byte "), "{error}");
}

#[test]
fn logs_are_replaced_by_snapshots() {
    let folder = tempdir().unwrap();
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    let value = "v".repeat(4000);
    while disk.number == 1 {
        ask(&mut store, host, MsgType::WRITE, 0, format!("/a\0{value}").as_bytes());
        disk.commit(&mut store);
    }
    ask(&mut store, host, MsgType::WRITE, 0, b"/b\0after");
    disk.commit(&mut store);
    while disk.snapshot.is_some() {
        disk.step(&mut store);
        std::thread::yield_now();
    }
    let mut names: Vec<_> = numbers(folder.path(), "log.").unwrap();
    names.extend(numbers(folder.path(), "snapshot.").unwrap());
    assert_eq!(names, [2, 2]);
    let want = content(&store);
    drop(disk);
    assert_eq!(content(&open(&folder).1), want);
    // A snapshot that was being written when the daemon died.
    fs::write(folder.path().join("new.3"), b"xenst").unwrap();
    assert_eq!(content(&open(&folder).1), want);
}

#[test]
fn a_disk_that_refuses_at_the_start_costs_nothing_that_was_there() {
    let folder = tempdir().unwrap();
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    ask(&mut store, host, MsgType::WRITE, 0, b"/a\x001");
    disk.commit(&mut store);
    let want = content(&store);
    drop(disk);
    fs::create_dir(folder.path().join("new.2")).unwrap();
    fs::write(folder.path().join(TORN), "log").unwrap();
    for _ in 0..2 {
        let (disk, store) = open(&folder);
        assert!(disk.failed.is_some() && content(&store) == want);
        assert!(folder.path().join("log.1").exists(), "the next one needs it");
        assert!(!folder.path().join(TORN).exists() && !folder.path().join(SPARE).exists());
    }
    fs::remove_dir(folder.path().join("new.2")).unwrap();
    let (mut disk, mut store) = open(&folder);
    assert!(disk.failed.is_none() && folder.path().join(SPARE).exists(), "room for the next time");
    let host = store.connect();
    ask(&mut store, host, MsgType::WRITE, 0, b"/b\x001");
    // A log that refuses has no tear.
    let len = disk.log_len;
    disk.log = File::open(folder.path().join("log.2")).unwrap();
    disk.commit(&mut store);
    assert!(disk.failed.is_some() && fs::metadata(folder.path().join("log.2")).unwrap().len() == len);
    assert!(disk.deadline().is_some(), "nobody has to ask for anything");
    disk.failed = Instant::now().checked_sub(INTERVAL);
    disk.step(&mut store);
    let want = content(&store);
    drop(disk);
    assert_eq!(content(&open(&folder).1), want);
}

/// After a live update the store is there already: it goes on without its folder, and has it again later.
#[test]
fn a_disk_that_refuses_ends_no_store() {
    let folder = tempdir().unwrap();
    drop(open(&folder));
    let mut store = Store::new();
    let host = store.connect();
    ask(&mut store, host, MsgType::WRITE, 0, b"/a\x001");
    // Where the next snapshot would be written.
    fs::create_dir(folder.path().join("new.2")).unwrap();
    let mut disk = Disk::replace(folder.path(), POLICY, &store).unwrap();
    store.keep_journal();
    assert!(disk.failed.is_some());
    ask(&mut store, host, MsgType::WRITE, 0, b"/a\x002");
    disk.commit(&mut store);
    disk.failed = Instant::now().checked_sub(INTERVAL);
    disk.commit(&mut store);
    assert!(disk.failed.is_none());
    ask(&mut store, host, MsgType::WRITE, 0, b"/b\x002");
    disk.commit(&mut store);
    let want = content(&store);
    drop(disk);
    assert_eq!(content(&open(&folder).1), want);
}

#[test]
fn xsa_483_a_limit_ends_with_its_domain() {
    let folder = tempdir().unwrap();
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    ask(&mut store, host, MsgType::SET_QUOTA, 0, b"5\0nodes\x003\0");
    disk.commit(&mut store);
    ask(&mut store, host, MsgType::RELEASE, 0, b"5\0");
    disk.commit(&mut store);
    drop(disk);
    let (_disk, store) = open(&folder);
    assert_eq!(store.quota.value(Some(5), crate::quota::Limit::Nodes), 1000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Random requests, commits between some of them, and the folder read again at the end.
    #[test]
    fn the_folder_has_what_the_store_has(
        ops in prop::collection::vec((0..7u8, 0..4u8, 0..4u8, any::<bool>()), 1..80)
    ) {
        let folder = tempdir().unwrap();
        let (mut disk, mut store) = open(&folder);
        let host = store.connect();
        let mut tx = 0;
        for (op, a, b, commit) in ops {
            let path = format!("/{a}/{b}");
            let domid = 5 + b % 2;
            let (kind, id, payload) = match op {
                0 => (MsgType::WRITE, tx, format!("{path}\0{a}{b}")),
                1 => (MsgType::RM, tx, format!("/{a}\0")),
                2 => (MsgType::RM, 0, format!("{path}\0")),
                3 => (MsgType::SET_PERMS, 0, format!("{path}\0n{domid}\0r5\0")),
                4 => (MsgType::INTRODUCE, 0, format!("{domid}\x001\x002\0")),
                5 => (MsgType::RELEASE, 0, format!("{domid}\0")),
                _ if tx == 0 => {
                    tx = 1;
                    (MsgType::TRANSACTION_START, 0, "\0".into())
                }
                _ => (MsgType::TRANSACTION_END, tx, "T\0".into()),
            };
            if kind == MsgType::TRANSACTION_START {
                let mut out = Out::default();
                let header = Header { kind, req_id: 0, tx_id: 0, len: 0 };
                store.handle(host, header, b"\0", false, &mut out);
                let reply = out.messages().next().map(|(_, message, _)| message[16..].to_vec()).unwrap();
                tx = String::from_utf8(reply).unwrap().trim_end_matches('\0').parse().unwrap();
            } else {
                ask(&mut store, host, kind, id, payload.as_bytes());
            }
            if kind == MsgType::TRANSACTION_END {
                tx = 0;
            }
            if commit {
                disk.commit(&mut store);
            }
        }
        disk.commit(&mut store);
        let want = content(&store);
        drop(disk);
        let (_disk, mut again) = open(&folder);
        prop_assert_eq!(again.check(), Ok(()));
        prop_assert!(content(&again) == want);
    }
}

/// What a guest asks for is what is written: not all that it has.
#[test]
fn one_watch_writes_one_watch() {
    let folder = tempdir().unwrap();
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    let guest = store.domains.get(5).unwrap().conn.unwrap();
    let name = |n: usize| format!("device/{n}/{}", "x".repeat(1500));
    for n in 0..100 {
        ask(&mut store, guest, MsgType::WATCH, 0, format!("{}\0t\0", name(n)).as_bytes());
    }
    disk.commit(&mut store);
    let before = disk.log_len;
    for _ in 0..10 {
        ask(&mut store, guest, MsgType::UNWATCH, 0, format!("/local/domain/5/{}\0t\0", name(3)).as_bytes());
        disk.commit(&mut store);
        ask(&mut store, guest, MsgType::WATCH, 0, format!("{}\0t\x007\0", name(3)).as_bytes());
        disk.commit(&mut store);
    }
    let written = disk.log_len - before;
    assert!((10 * 2 * 1500..10 * 2 * 1800).contains(&written), "{written}");
    ask(&mut store, guest, MsgType::UNWATCH, 0, format!("{}\0t\0", name(7)).as_bytes());
    disk.commit(&mut store);
    let want = store.watches_of_domain(5);
    drop((disk, store));
    for _ in 0..2 {
        let (mut disk, mut store) = open(&folder);
        assert_eq!(store.watches_of_domain(5), want);
        // Attached again, they are there once.
        let host = store.connect();
        ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
        disk.commit(&mut store);
        assert_eq!(store.watches_of_domain(5), want);
    }
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    let guest = store.domains.get(5).unwrap().conn.unwrap();
    ask(&mut store, guest, MsgType::RESET_WATCHES, 0, b"");
    disk.commit(&mut store);
    drop((disk, store));
    assert_eq!(open(&folder).1.watches_of_domain(5), []);
}

#[test]
fn targets_are_there_again_and_only_for_the_same_lives() {
    let folder = tempdir().unwrap();
    let introduce = |store: &mut Store, domid: u16| {
        let host = store.connect();
        ask(store, host, MsgType::INTRODUCE, 0, format!("{domid}\x001\x002\0").as_bytes());
    };
    let (mut disk, mut store) = open(&folder);
    let host = store.connect();
    [5, 6, 7].into_iter().for_each(|domid| introduce(&mut store, domid));
    ask(&mut store, host, MsgType::SET_TARGET, 0, b"5\x007\0");
    disk.commit(&mut store);
    // One that ends and begins anew, and is a target again, in one frame; one that does so afterwards.
    ask(&mut store, host, MsgType::RELEASE, 0, b"7\0");
    introduce(&mut store, 7);
    ask(&mut store, host, MsgType::SET_TARGET, 0, b"5\x007\0");
    ask(&mut store, host, MsgType::SET_TARGET, 0, b"7\x006\0");
    disk.commit(&mut store);
    ask(&mut store, host, MsgType::RELEASE, 0, b"6\0");
    introduce(&mut store, 6);
    disk.commit(&mut store);
    drop((disk, store));
    for _ in 0..2 {
        let (_disk, mut store) = open(&folder);
        assert_eq!((store.target(5), store.target(7)), (Some(7), None));
        [5, 7].into_iter().for_each(|domid| introduce(&mut store, domid));
        let caller = store.domains.caller(5);
        assert_eq!(caller.target, Some((7, store.domains.life(7).unwrap())));
        assert_eq!(store.conns[&store.domains.get(5).unwrap().conn.unwrap()].caller, caller);
    }
}
