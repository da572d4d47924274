use super::*;

use crate::migration::Reader;
use crate::wire::{Header, MsgType};

/// Sends a request as the connection; answers the payloads of all that comes of it.
fn ask(store: &mut Store, conn: ConnId, kind: MsgType, tx_id: u32, payload: &[u8]) -> Vec<String> {
    let mut out = Out::default();
    let header = Header { kind, req_id: 0, tx_id, len: 0 };
    store.handle(conn, header, payload, true, &mut out);
    out.messages().map(|(_, message, _)| String::from_utf8_lossy(&message[16..]).into_owned()).collect()
}

fn through_records(store: &Store, conns: &[(ConnId, ConnSpec)]) -> (Store, Vec<ConnId>) {
    let mut stream = Stream::new();
    for (id, (conn, spec)) in (1..).zip(conns) {
        stream.put(&Record::Conn { id, spec: *spec, input: b"", output: b"", partial: 0 });
        store.dump_conn(*conn, id, &mut stream);
    }
    store.dump(&mut stream);
    let bytes = stream.finish().unwrap();
    let mut reader = Reader::new(&bytes).unwrap();
    let mut import = Import::new();
    while let Some(record) = reader.next().unwrap() {
        import.take(&record).unwrap_or_else(|| panic!("{record:?}"));
    }
    let conns = (1..).take(conns.len()).map(|id| import.conn(id).unwrap()).collect();
    (import.finish(), conns)
}

/// C xenstored has longer paths for domain 0.
#[test]
fn what_is_too_long_for_a_path_is_left_out() {
    let long = format!("/{}", "x".repeat(3072));
    let below = format!("{long}/below");
    let mut import = Import::new();
    let perms = || vec![NodePerm { letter: b'n', stale: false, domid: 0 }];
    let spec = ConnSpec::Socket { fd: 3 };
    import.take(&Record::Conn { id: 1, spec, input: b"", output: b"", partial: 0 }).unwrap();
    for path in [&*long, &below, "/short"] {
        let path = path.as_bytes();
        import.take(&Record::Watch { conn: 1, path, token: b"t", depth: None }).unwrap();
        import
            .take(&Record::Node { conn: 0, tx: 0, access: 0, perms: perms(), path, value: b"v" })
            .unwrap_or_else(|| panic!("{} bytes", path.len()));
    }
    let mut store = import.finish();
    let host = store.connect();
    assert_eq!(ask(&mut store, host, MsgType::DIRECTORY, 0, b"/\0"), ["tool\0short\0"]);
    assert_eq!((store.watches.count(), store.check()), (1, Ok(())));
}

#[test]
fn a_store_survives_as_records() {
    let mut store = Store::new();
    let host = store.connect();
    for line in ["/b\x001", "/a\x002", "/a/z\x003", "/local/domain/5/x\x004"] {
        ask(&mut store, host, MsgType::WRITE, 0, line.as_bytes());
    }
    // An entry for a domain that is no more, one that will be, one for all.
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"7\x001\x002\0");
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"9\x001\x002\0");
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"/a\0n0\0r5\0r7\0r32757\0");
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"/local/domain/5\0n5\0");
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"/local/domain/5/x\0n5\0");
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"@releaseDomain\0n0\0r5\0");
    ask(&mut store, host, MsgType::RELEASE, 0, b"7\0");
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"7\x001\x002\0");
    ask(&mut store, host, MsgType::SET_QUOTA, 0, b"5\0nodes\x003\0");
    ask(&mut store, host, MsgType::SET_QUOTA, 0, b"watches\x007\0");
    ask(&mut store, host, MsgType::SET_TARGET, 0, b"9\x005\0");
    let guest = |store: &Store, domid| store.domains.get(domid).and_then(|domain| domain.conn).unwrap();
    let [five, seven, nine] = [5, 7, 9].map(|domid| guest(&store, domid));
    ask(&mut store, five, MsgType::WATCH, 0, b"x\0t\x001\0");
    let tx = ask(&mut store, host, MsgType::TRANSACTION_START, 0, b"\0").remove(0);
    let tx: u32 = tx.trim_end_matches('\0').parse().unwrap();

    let ring = |domid, target| ConnSpec::Ring { domid, target, evtchn: 1 };
    let socket = ConnSpec::Socket { fd: 3 };
    let conns = [(host, socket), (five, ring(5, None)), (seven, ring(7, None)), (nine, ring(9, Some(5)))];
    let (mut store, conns) = through_records(&store, &conns);
    let [host, five, seven, nine] = conns[..] else { panic!("{conns:?}") };
    assert_eq!(store.check(), Ok(()));
    assert_eq!(ask(&mut store, host, MsgType::DIRECTORY, 0, b"/\0"), ["tool\0b\0a\0local\0"]);
    assert_eq!(ask(&mut store, host, MsgType::READ, 0, b"/a/z\0"), ["3"]);
    assert_eq!(ask(&mut store, host, MsgType::GET_PERMS, 0, b"/a\0"), ["n0\0r5\0r7\0r32757\0"]);
    assert_eq!(ask(&mut store, host, MsgType::GET_PERMS, 0, b"@releaseDomain\0"), ["n0\0r5\0"]);
    assert_eq!(ask(&mut store, five, MsgType::READ, 0, b"/a\0"), ["2"]);
    // The right was given to the domain before.
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"/a\0n0\0r7\0");
    assert_eq!(ask(&mut store, seven, MsgType::READ, 0, b"/a\0"), ["2"]);
    assert_eq!(ask(&mut store, nine, MsgType::READ, 0, b"/local/domain/5/x\0"), ["4"]);
    assert_eq!(ask(&mut store, five, MsgType::MKDIR, 0, b"y\0"), ["OK\0"]);
    assert_eq!(ask(&mut store, five, MsgType::MKDIR, 0, b"w\0"), ["ENOSPC\0"]);
    assert_eq!(ask(&mut store, host, MsgType::GET_QUOTA, 0, b"watches\0"), ["7\0"]);
    assert_eq!(ask(&mut store, host, MsgType::WRITE, 0, b"/local/domain/5/x/y/z\0"), ["OK\0"]);
    let mut told = ask(&mut store, host, MsgType::WRITE, 0, b"/local/domain/5/x/y\0");
    told.sort();
    assert_eq!(told, ["OK\0", "x/y\0t\0"]);
    // It is still known, and tried again.
    assert_eq!(ask(&mut store, host, MsgType::WRITE, tx, b"/a\0lost"), ["OK\0"]);
    assert_eq!(ask(&mut store, host, MsgType::TRANSACTION_END, tx, b"T\0"), ["EAGAIN\0"]);
    assert_eq!(ask(&mut store, host, MsgType::READ, 0, b"/a\0"), ["2"]);
}

/// Of a ring without its descriptors, such as C xenstored's, only the domain is left.
#[test]
fn a_domain_whose_ring_is_lost_can_be_introduced_again() {
    let mut store = Store::new();
    let host = store.connect();
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    let guest = |store: &Store| store.domains.get(5).and_then(|domain| domain.conn);
    let lost = guest(&store).unwrap();
    store.disconnect(lost);
    assert_eq!(ask(&mut store, host, MsgType::IS_DOMAIN_INTRODUCED, 0, b"5\0"), ["F\0"]);
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    let found = guest(&store).unwrap();
    assert_eq!(ask(&mut store, found, MsgType::GET_DOMAIN_PATH, 0, b"5\0"), ["/local/domain/5\0"]);
}

/// On Xen domain 0 has a ring: what refers to its connection makes sense.
#[test]
fn the_ring_of_domain_0_is_no_mistake() {
    let spec = ConnSpec::Ring { domid: 0, target: None, evtchn: 1 };
    let mut import = Import::new();
    for record in [
        Record::Conn { id: 1, spec, input: b"", output: b"", partial: 0 },
        Record::Watch { conn: 1, path: b"device", token: b"t", depth: None },
        Record::Transaction { conn: 1, id: 7 },
    ] {
        assert_eq!(import.take(&record), Some(()), "{record:?}");
    }
    let conn = import.conn(1).unwrap();
    let mut store = import.finish();
    store.disconnect(conn);
    assert_eq!(store.check(), Ok(()));
}

/// A domain may have more than the default allows.
#[test]
fn watches_survive_whatever_the_limits() {
    let mut store = Store::new();
    let host = store.connect();
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    ask(&mut store, host, MsgType::SET_QUOTA, 0, b"5\0watches\x00200\0");
    let guest = store.domains.get(5).and_then(|domain| domain.conn).unwrap();
    for n in 0..200 {
        assert_eq!(ask(&mut store, guest, MsgType::WATCH, 0, format!("n{n}\0t\0").as_bytes())[0], "OK\0");
    }
    let spec = ConnSpec::Ring { domid: 5, target: None, evtchn: 1 };
    let (mut store, conns) = through_records(&store, &[(guest, spec)]);
    assert_eq!(ask(&mut store, conns[0], MsgType::UNWATCH, 0, b"n199\0t\0"), ["OK\0"]);
    assert_eq!(ask(&mut store, conns[0], MsgType::WATCH, 0, b"n199\0t\0")[0], "OK\0");
    assert_eq!(ask(&mut store, conns[0], MsgType::WATCH, 0, b"more\0t\0"), ["ENOSPC\0"]);
    assert_eq!(ask(&mut store, conns[0], MsgType::READ, 0, b"/tool\0"), ["EACCES\0"], "still a guest");
}

#[test]
fn xsa_322_a_target_is_one_life_of_a_domain() {
    let mut store = Store::new();
    let host = store.connect();
    for domid in [5, 9] {
        ask(&mut store, host, MsgType::INTRODUCE, 0, format!("{domid}\x001\x002\0").as_bytes());
    }
    ask(&mut store, host, MsgType::SET_TARGET, 0, b"9\x005\0");
    assert_eq!(store.target(9), Some(5));
    ask(&mut store, host, MsgType::RELEASE, 0, b"5\0");
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0");
    assert_eq!(store.target(9), None, "a live update gives it no rights of the new one");
}

#[test]
fn a323_rights_of_a_dead_domain_stay_dead() {
    let mut store = Store::new();
    let host = store.connect();
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"7\x001\x002\0");
    ask(&mut store, host, MsgType::WRITE, 0, b"/a\x001");
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"/a\0n0\0r7\0");
    ask(&mut store, host, MsgType::RELEASE, 0, b"7\0");
    ask(&mut store, host, MsgType::INTRODUCE, 0, b"7\x001\x002\0");
    let guest = store.domains.get(7).and_then(|domain| domain.conn).unwrap();
    let spec = ConnSpec::Ring { domid: 7, target: None, evtchn: 1 };
    let (mut store, conns) = through_records(&store, &[(guest, spec)]);
    assert_eq!(ask(&mut store, conns[0], MsgType::READ, 0, b"/a\0"), ["EACCES\0"]);
}

#[test]
fn records_that_make_no_sense_are_refused() {
    let perms = vec![NodePerm { letter: b'n', stale: false, domid: 0 }];
    let node = |path, perms| Record::Node { conn: 0, tx: 0, access: 0, perms, path, value: b"" };
    let bad_perm = vec![NodePerm { letter: b'x', stale: false, domid: 0 }];
    for record in [
        node(b"/a/b", perms.clone()),
        node(b"a", bad_perm),
        node(b"/a", Vec::new()),
        node(b"/a/", perms),
        Record::Watch { conn: 3, path: b"/a", token: b"", depth: None },
        Record::Transaction { conn: 3, id: 1 },
    ] {
        assert_eq!(Import::new().take(&record), None, "{record:?}");
    }
}
