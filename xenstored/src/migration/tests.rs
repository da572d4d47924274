use super::*;

fn one_of_each() -> Vec<Record<'static>> {
    let perm = |letter, domid, stale| NodePerm { letter, stale, domid };
    vec![
        Record::Global { socket: 4, evtchn: -1 },
        Record::GlobalQuota(vec![(b"nodes", 1000), (b"watches", 0)]),
        Record::Conn { id: 1, spec: ConnSpec::Socket { fd: 9 }, input: b"half", output: b"", partial: 0 },
        Record::Conn {
            id: 2,
            spec: ConnSpec::Ring { domid: 5, target: Some(7), evtchn: 0x1_0002 },
            input: b"",
            output: b"rest of a reply",
            partial: 4,
        },
        Record::Conn {
            id: 3,
            spec: ConnSpec::Ring { domid: 7, target: None, evtchn: 1 },
            input: b"",
            output: b"",
            partial: 0,
        },
        Record::Ring { conn: 2, page: 10, kick: 11, notify: 12, lifeline: -1, faulty: true, shutdown: false },
        Record::Watch { conn: 1, path: b"@releaseDomain", token: b"", depth: None },
        Record::Watch { conn: 2, path: b"device", token: b"t", depth: Some(1) },
        Record::Transaction { conn: 1, id: 77 },
        Record::Node {
            conn: 0,
            tx: 0,
            access: 0,
            perms: vec![perm(b'n', 0, false), perm(b'r', 5, true)],
            path: b"/a",
            value: b"\0\xff",
        },
        Record::Domain { domid: 5, features: 0xe, quotas: vec![(b"nodes", 5)] },
        Record::Lock { fd: 3, path: b"/run/xenstored/socket" },
        Record::Lives { generation: u64::MAX, boot: b"boot" },
        Record::Removed { path: b"/a/b" },
        Record::DomainGone { domid: 9 },
        Record::NoWatches { domid: 9 },
        Record::Setting { name: b"name", value: b"1" },
        Record::Dormant { domid: 9, path: b"x", token: b"t", depth: None },
        Record::Dormant { domid: 9, path: b"/x", token: b"", depth: Some(0) },
    ]
}

#[test]
fn every_record_survives_and_is_aligned() {
    let mut stream = Stream::new();
    for record in &one_of_each() {
        stream.put(record);
        assert_eq!(stream.bytes.len() % 8, 0, "{record:?}");
    }
    let bytes = stream.finish().unwrap();
    let mut reader = Reader::new(&bytes).unwrap();
    assert_eq!(reader.version, 2);
    for record in one_of_each() {
        assert_eq!(reader.next().unwrap(), Some(record));
    }
    assert_eq!(reader.next().unwrap(), None);
}

/// Bytes as C xenstored 4.20 writes them: version 1, lengths that include the padding.
#[test]
fn the_stream_of_c_xenstored_is_read() {
    let mut bytes = b"xenstore\0\0\0\x01\0\0\0\0".to_vec();
    let mut record = |kind: u32, body: &[u8]| {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(8), 0);
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&body);
    };
    record(1, &[3, 0, 0, 0, 5, 0, 0, 0]);
    // Domain 5 on its ring: no target, port 9, three bytes of a request, two of an event.
    record(2, b"\x01\0\0\0\0\0\0\0\x05\0\xf4\x7f\x09\0\0\0\x03\0\0\0\x02\0\0\0\x02\0\0ev");
    record(3, b"\x01\0\0\0\x07\0\x02\0device\0t\0");
    record(5, b"\0\0\0\0\0\0\0\0\x03\0\x01\0\0\0\x02\0n\0\0\0r\x01\x05\0/a\0v");
    record(0xdead, b"who knows");
    record(0, b"");
    let mut reader = Reader::new(&bytes).unwrap();
    let mut next = || reader.next().unwrap();
    assert_eq!(next(), Some(Record::Global { socket: 3, evtchn: 5 }));
    let spec = ConnSpec::Ring { domid: 5, target: None, evtchn: 9 };
    assert_eq!(next(), Some(Record::Conn { id: 1, spec, input: b"\x02\0\0", output: b"ev", partial: 0 }));
    assert_eq!(next(), Some(Record::Watch { conn: 1, path: b"device", token: b"t", depth: None }));
    let perms = vec![
        NodePerm { letter: b'n', stale: false, domid: 0 },
        NodePerm { letter: b'r', stale: true, domid: 5 },
    ];
    let node = Record::Node { conn: 0, tx: 0, access: 0, perms, path: b"/a", value: b"v" };
    assert_eq!(next(), Some(node));
    assert_eq!(next(), Some(Record::Unknown(0xdead)));
    assert_eq!(next(), None);
    // With a depth, without the padding of the document.
    let watch = b"\x01\0\0\0\x03\0\x02\0\x01\0/a\0t\0";
    let want = Record::Watch { conn: 1, path: b"/a", token: b"t", depth: Some(1) };
    assert_eq!(Record::decode(8, watch), Some(want));
}

#[test]
fn what_is_no_stream_is_refused_wherever_it_ends() {
    assert_eq!(Reader::new(b"").unwrap_err(), Malformed::Ident);
    assert_eq!(Reader::new(b"xenstore\0\0\0\x03\0\0\0\0").unwrap_err(), Malformed::Version(3));
    assert_eq!(Reader::new(b"xenstore\0\0\0\x01\0\0\0\x01").unwrap_err(), Malformed::Flags(1));
    let mut stream = Stream::new();
    one_of_each().iter().for_each(|record| stream.put(record));
    let bytes = stream.finish().unwrap();
    for end in 16..bytes.len() {
        let mut reader = Reader::new(&bytes[..end]).unwrap();
        let error = loop {
            match reader.next() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("no END in the first {end} bytes"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Malformed::Short | Malformed::Record(_)), "{end}: {error}");
    }
}
