//! The rules of messages: headers, arguments, errors, privileges.

use xenstored::out::Out;
use xenstored::store::Store;
use xenstored::wire::{Header, MsgType, split};

use crate::script::{Player, play};

/// The requests that only the host may make, with arguments that would be good.
const PRIVILEGED: [&str; 10] = [
    "control help",
    "introduce 6 1 1",
    "release 6",
    "is_domain_introduced 5",
    "resume 5",
    "set_target 5 0",
    "set_feature 6 1",
    "get_quota nodes",
    "set_quota nodes 1",
    "get_feature 5",
];

#[test]
fn w1_the_header_is_echoed() {
    let mut store = Store::new();
    let conn = store.connect();
    for (kind, tx_id, payload, want, text) in [
        (MsgType::READ, 0, &b"/tool\0"[..], MsgType::READ, &b""[..]),
        (MsgType::WRITE, 0, b"/a\x001", MsgType::WRITE, b"OK\0"),
        (MsgType::READ, 77, b"/a\0", MsgType::ERROR, b"ENOENT\0"),
        (MsgType(4_000_000_000), 5, b"", MsgType::ERROR, b"ENOSYS\0"),
    ] {
        let mut out = Out::default();
        let header = Header { kind, req_id: 0xdead_beef, tx_id, len: 0 };
        store.handle(conn, header, payload, false, &mut out);
        let (_, message, event) = out.messages().next().unwrap();
        let (reply, payload) = split(message).unwrap().unwrap();
        assert_eq!((reply.kind, reply.req_id, reply.tx_id, event), (want, 0xdead_beef, tx_id, false));
        assert_eq!(payload, text);
        assert_eq!(message.len(), 16 + text.len());
    }
}

/// The row Types: what may be asked, what is only answered, what is neither.
#[test]
fn types_have_their_numbers() {
    let names = "CONTROL DIRECTORY READ GET_PERMS WATCH UNWATCH TRANSACTION_START TRANSACTION_END INTRODUCE RELEASE \
                 GET_DOMAIN_PATH WRITE MKDIR RM SET_PERMS WATCH_EVENT ERROR IS_DOMAIN_INTRODUCED RESUME SET_TARGET - \
                 RESET_WATCHES DIRECTORY_PART GET_FEATURE SET_FEATURE GET_QUOTA SET_QUOTA";
    let mut player = Player::new();
    for (number, name) in (0..).zip(names.split_whitespace()) {
        assert_eq!(MsgType(number).name(), Some(name).filter(|name| *name != "-"), "{number}");
        // Without arguments every request is answered, if only that some are missing.
        let no_request = ["-", "WATCH_EVENT", "ERROR"].contains(&name);
        assert_eq!(player.step(&format!("0 {number}")) == "ENOSYS", no_request, "{name}");
    }
    assert_eq!((MsgType(27).name(), player.step("0 27 x")), (None, "ENOSYS".into()));
}

#[test]
fn w2_a_payload_of_4096_bytes_is_legal() {
    play(
        "0 write /a {v*4093}
         0 read /a => {v*4093}",
    );
}

#[test]
fn w4_what_is_no_request_is_refused_and_the_connection_stays() {
    play(
        "0 20 /a => ENOSYS
         0 watch_event a => ENOSYS
         0 error a => ENOSYS
         0 27 a => ENOSYS
         0 999 a => ENOSYS
         0.9 999 a => ENOSYS
         0 read /tool => ''",
    );
}

#[test]
fn w5_every_error_has_a_name_that_clients_know() {
    const KNOWN: [&str; 16] = [
        "EINVAL",
        "EACCES",
        "EEXIST",
        "EISDIR",
        "ENOENT",
        "ENOMEM",
        "ENOSPC",
        "EIO",
        "ENOTEMPTY",
        "ENOSYS",
        "EROFS",
        "EBUSY",
        "EAGAIN",
        "EISCONN",
        "E2BIG",
        "EPERM",
    ];
    let mut player = Player::new();
    player.step("5 get_feature ''");
    for kind in 0..40 {
        for payload in [&b""[..], b"\0", b"/", b"/x\0y\0z\0", b"a\0\0", b"@\0", &[0xff; 4096], &[0; 4096]] {
            for (who, tx) in [("0", 0), ("0", 9), ("5", 0), ("5", 9)] {
                let reply = player.request(who, MsgType(kind), tx, payload);
                let word = reply.split(" ! ").next().unwrap();
                let error = word.starts_with('E') && word.bytes().all(|byte| byte.is_ascii_uppercase());
                assert!(!error || KNOWN.contains(&word), "{kind} {payload:?} => {reply}");
            }
        }
        assert_eq!(player.store().check(), Ok(()), "after {kind}");
    }
}

#[test]
fn w6_arguments_end_with_nul() {
    let mut player = Player::new();
    assert_eq!(player.request("0", MsgType::WRITE, 0, b"/a\0x\0y\0"), "OK");
    assert_eq!(player.request("0", MsgType::WRITE, 0, b"/raw\0\xff"), "OK");
    assert_eq!(player.request("0", MsgType::READ, 0, b"/a\0"), "x|y");
    for kind in [
        MsgType::READ,
        MsgType::DIRECTORY,
        MsgType::MKDIR,
        MsgType::RM,
        MsgType::GET_PERMS,
        MsgType::GET_DOMAIN_PATH,
        MsgType::IS_DOMAIN_INTRODUCED,
        MsgType::RELEASE,
        MsgType::RESUME,
    ] {
        for payload in [&b""[..], b"/a", b"/a\0/b\0", b"/a\0\0", b"\0/a"] {
            assert_eq!(player.request("0", kind, 0, payload), "EINVAL", "{kind:?} {payload:?}");
        }
    }
    player.step("5 get_feature ''");
    player.step("6 get_feature ''");
    // What follows the last argument is refused, taken for the value, or, where C xenstored does so, passed over.
    for (kind, payload, wanted) in [
        (MsgType::WRITE, &b"/a"[..], "EINVAL"),
        (MsgType::WRITE, b"", "EINVAL"),
        (MsgType::WRITE, b"/w\x001", "OK"),
        (MsgType::SET_PERMS, b"/a\0n0", "EINVAL"),
        (MsgType::SET_PERMS, b"/a\0", "EINVAL"),
        (MsgType::SET_PERMS, b"/w\0n0\0r5\0r6", "OK"),
        (MsgType::WATCH, b"/a\0t", "EINVAL"),
        (MsgType::WATCH, b"/a\0", "EINVAL"),
        (MsgType::WATCH, b"/w\0t\0part", "OK"),
        (MsgType::UNWATCH, b"/a\0t", "EINVAL"),
        (MsgType::UNWATCH, b"/w\0t\0x\0", "EINVAL"),
        (MsgType::UNWATCH, b"/w\0t\0part", "OK"),
        (MsgType::WATCH, b"/w\0t\x001\0x\0", "EINVAL"),
        (MsgType::WATCH, b"/w\0t\x001\0part", "OK"),
        (MsgType::DIRECTORY_PART, b"/a\x000", "EINVAL"),
        (MsgType::SET_TARGET, b"5\x006\x007\0", "OK"),
        (MsgType::INTRODUCE, b"7\0-1\x001\0x\0", "OK"),
    ] {
        let reply = player.request("0", kind, 0, payload);
        assert_eq!(reply.split(" ! ").next(), Some(wanted), "{kind:?} {payload:?}");
    }
    assert_eq!(player.step("0 get_perms /w"), "n0|r5");
}

#[test]
fn w7_a_reply_that_does_not_fit_is_e2big() {
    let mut player = Player::new();
    for n in 0..100 {
        assert_eq!(player.step(&format!("0 write /d/{n:050} 1")), "OK");
    }
    assert_eq!(player.step("0 directory /d"), "E2BIG");
    assert!(player.step("0 directory_part /d 0").contains('|'));
    // A guest's domid takes more room than that of the host, whose list the new node inherits.
    player.step("20000 get_feature ''");
    player.step("0 set_quota node-size 0");
    assert_eq!(player.step(&format!("0 set_perms / b0 {} r1", "r32752 ".repeat(584))), "OK");
    assert_eq!(player.step("0 get_perms /").split('|').count(), 586);
    assert_eq!(player.step("20000 mkdir /guest"), "OK");
    assert_eq!(player.step("20000 get_perms /guest"), "E2BIG");
}

#[test]
fn w8_privileged_requests_of_guests_are_eacces() {
    let mut player = Player::new();
    for request in PRIVILEGED {
        assert_eq!(player.step(&format!("5 {request}")), "EACCES", "{request}");
        assert_ne!(player.step(&format!("0 {request}")), "EACCES", "{request}");
        player.step("0 introduce 5 1 1");
    }
    play("5 get_feature '' => 15");
}

#[test]
fn w9_clients_on_the_socket_are_the_host_without_quotas() {
    play(
        "0 set_quota watches 1
         0 set_quota transactions 1
         0 set_quota nodes 1
         x watch /a 1 => OK ! x /a 1
         x watch /a 2 => OK ! x /a 2
         x transaction_start => 1
         x transaction_start => 2
         x write own 1
         0 read /local/domain/0/own => 1
         x write /a/b/c/d/e {v*4000} => OK ! x /a/b/c/d/e 1 ! x /a/b/c/d/e 2
         x get_perms /a => n0",
    );
}
