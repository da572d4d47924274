//! The rules of the ring, one test per row, against the daemon.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use xenstored::client::{Client, RingFds};
use xenstored::wire::{Errno, MsgType};

use crate::event;
use crate::guest::Guest;
use crate::host::Daemon;

const REQ_CONS: u64 = 2048;
const REQ_PROD: u64 = 2052;
const RSP_CONS: u64 = 2056;
const RSP_PROD: u64 = 2060;
const FEATURES: u64 = 2064;
const ERROR_WORD: u64 = 2072;

const READ: u32 = 2;
const WATCH: u32 = 4;
const START: u32 = 6;
const WRITE: u32 = 11;
const ERROR: u32 = 16;
const RESET_WATCHES: u32 = 21;

/// A domain with a home of its own.
fn introduced(host: &mut Client, domid: u16) -> Guest {
    let home = format!("/local/domain/{domid}");
    host.mkdir(&home).unwrap();
    host.set_perms(&home, &[format!("n{domid}").parse().unwrap()]).unwrap();
    let guest = Guest::new();
    host.introduce(domid, 1, 2, guest.fds()).unwrap();
    guest
}

fn request(kind: u32, payload: &[u8]) -> Vec<u8> {
    request_in(kind, 0, payload)
}

fn request_in(kind: u32, tx: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let header = [kind, 7, tx, len].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    [&header, payload].concat()
}

/// Sends the same request as long as the store takes some, and reads nothing. Answers how many, 2000 at most.
fn flood(guest: &mut Guest, other: &mut Guest, request: &[u8]) -> usize {
    let (mut sent, mut quiet) = (0, 0);
    while quiet < 50 && sent < 2000 {
        let room = 1024 - guest.word(REQ_PROD).wrapping_sub(guest.word(REQ_CONS)) as usize;
        if room >= request.len() {
            guest.send(request);
            (sent, quiet) = (sent + 1, 0);
        } else {
            quiet += 1;
            assert_eq!(other.request(READ, b"/nope\0").0, ERROR, "others are served");
        }
    }
    sent
}

#[test]
fn r1_indices_begin_anywhere_run_freely_and_wrap() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    for (domid, start) in (5..).zip([0, 1, 1023, 0xffff_fff0, u32::MAX, 0x7fff_ffff]) {
        let mut guest = Guest::new();
        guest.set_index(start);
        host.introduce(domid, 1, 2, guest.fds()).unwrap();
        assert_eq!(guest.word(REQ_CONS), start, "the first INTRODUCE leaves them as they are");
        for n in 0..100 {
            assert_eq!(guest.request(READ, format!("/nope/{n}\0").as_bytes()).0, ERROR);
        }
        assert_eq!(guest.word(REQ_CONS), guest.word(REQ_PROD));
        assert_eq!(guest.word(RSP_CONS), guest.word(RSP_PROD));
    }
}

#[test]
fn a_page_that_is_taken_away_stops_that_ring_and_nothing_else() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let mut guests: Vec<Guest> = (5..9).map(|domid| introduced(&mut host, domid)).collect();
    for (n, guest) in guests.iter_mut().enumerate() {
        assert_eq!(guest.request(WATCH, b"device\0t\0").0, WATCH);
        assert_eq!(guest.event(), b"device\0t\0");
        if n % 2 == 0 {
            guest.shorten_page();
        }
    }
    // One is kicked, the other one told something.
    guests[0].kick();
    for domid in 5..9 {
        host.write(&format!("/local/domain/{domid}/device/x"), "1").unwrap();
    }
    for n in [1, 3] {
        assert_eq!(guests[n].event(), b"device/x\0t\0");
        assert_eq!(guests[n].request(READ, b"device/x\0"), (READ, b"1".to_vec()));
    }
    let mut again = Guest::new();
    host.introduce(5, 1, 2, again.fds()).unwrap();
    assert_eq!(again.request(READ, b"device/x\0"), (READ, b"1".to_vec()));
    host.release(7).unwrap();
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
}

#[test]
fn r2_an_impossible_index_stops_that_ring_and_nothing_else() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    host.watch("@releaseDomain", "out").unwrap();
    event(&mut host);
    let mut good = introduced(&mut host, 5);
    for (at, value) in
        [(REQ_PROD, 1025), (REQ_CONS, 1), (REQ_PROD, u32::MAX), (RSP_PROD, 1025), (RSP_CONS, 1)]
    {
        let mut bad = introduced(&mut host, 6);
        assert_eq!(bad.request(WATCH, b"/local\0t\0").0, WATCH);
        assert_eq!(bad.event(), b"/local\0t\0");
        bad.set_word(at, bad.word(at).wrapping_add(value));
        bad.kick();
        // A response index is looked at when there is something to send.
        if at == RSP_PROD || at == RSP_CONS {
            bad.send(&request(READ, b"/nope\0"));
        }
        assert_eq!(bad.wait_for_error(), 2, "{at} + {value}");
        assert_eq!(host.control(&["check"]).unwrap(), "OK", "its watches are gone, and counted off");
        assert!(host.is_introduced(6).unwrap());
        assert_eq!(good.request(READ, b"/nope\0").0, ERROR);
        drop(bad);
        assert_eq!(event(&mut host).1, "out");
    }
}

#[test]
fn r3_what_is_larger_than_the_ring_streams_and_who_does_not_read_is_not_heard() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let (mut guest, mut other) = (introduced(&mut host, 5), introduced(&mut host, 6));
    let value = vec![b'v'; 1900];
    assert_eq!(guest.request(WRITE, &[b"big\0", &value[..]].concat()).0, WRITE);
    assert_eq!(guest.request(READ, b"big\0"), (READ, value.clone()));
    // No reply is read: the store stops reading requests, but for those it has taken in.
    let sent = flood(&mut guest, &mut other, &request(READ, b"big\0"));
    assert!(sent < 200, "{sent} requests were taken");
    let before = daemon.cpu();
    std::thread::sleep(Duration::from_millis(500));
    let used = daemon.cpu() - before;
    assert!(used < Duration::from_millis(100), "requests that have to wait keep it busy: {used:?}");
    for n in 0..sent {
        assert_eq!(guest.reply(), (READ, value.clone()), "reply {n} of {sent}");
    }
    // Events that it does not read are bounded too.
    assert_eq!(guest.request(WATCH, b"e\0t\0").0, WATCH);
    for n in 0..20_000 {
        host.write(&format!("/local/domain/5/e/{}/{n}", "x".repeat(200)), "").unwrap();
        if n % 100 == 99 {
            host.rm("/local/domain/5/e").unwrap();
        }
    }
    let report = host.control(&["memreport"]).unwrap();
    let buffers = report.lines().find_map(|line| line.strip_prefix("buffers ")).unwrap();
    assert!(buffers.parse::<usize>().unwrap() < 3 << 20, "{report}");
}

#[test]
fn xsa_325_the_death_of_a_domain_with_a_bad_ring_is_announced() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    host.watch("@releaseDomain", "out").unwrap();
    assert_eq!(event(&mut host).1, "out");
    let guest = introduced(&mut host, 5);
    guest.set_word(REQ_PROD, 5000);
    guest.kick();
    assert_eq!(guest.wait_for_error(), 2);
    drop(guest);
    assert_eq!(event(&mut host), ("@releaseDomain".into(), "out".into()));
    assert_eq!(host.read_opt("/local/domain/5").unwrap(), None);
}

/// Whatever the limit of outstanding replies is, what waits is bounded by that of memory.
#[test]
fn xsa_326_unread_replies_are_bounded_without_a_limit_of_their_own() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let (mut guest, mut other) = (introduced(&mut host, 5), introduced(&mut host, 6));
    for limit in [&b"5\0outstanding\x000\0"[..], b"5\0memory\x00400000\0"] {
        host.request(MsgType::SET_QUOTA, "", &[limit], &[]).unwrap();
    }
    let value = vec![b'v'; 1900];
    assert_eq!(guest.request(WRITE, &[b"big\0", &value[..]].concat()).0, WRITE);
    assert_eq!(guest.request(WATCH, b"e\0t\0").0, WATCH);
    assert_eq!(guest.event(), b"e\0t\0");
    let sent = flood(&mut guest, &mut other, &request(READ, b"big\0"));
    assert!((80..300).contains(&sent), "{sent} requests were taken");
    // There is room for events beside them.
    host.write("/local/domain/5/e", "").unwrap();
    for n in 0..sent {
        assert_eq!(guest.reply(), (READ, value.clone()), "reply {n} of {sent}");
    }
    assert_eq!(guest.event(), b"e\0t\0");
    assert_eq!(guest.word(ERROR_WORD), 0);
}

/// Sockets and rings: lengths that are negative elsewhere.
#[test]
fn xsa_420_a_message_that_is_too_long_ends_its_connection() {
    use std::io::{Read, Write};
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let mut guest = introduced(&mut host, 5);
    for len in [4097u32, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let header = [READ, 1, 0, len].map(u32::to_le_bytes).concat();
        let mut client = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
        client.set_read_timeout(crate::LONG).unwrap();
        client.write_all(&header).unwrap();
        assert_eq!(client.read(&mut [0; 64]).unwrap(), 0, "dropped at once, not after {len} bytes");
        guest.send(&header);
        assert_eq!(guest.wait_for_error(), 3);
        guest.reconnect();
        assert_eq!(guest.request(READ, b"/nope\0").0, ERROR);
    }
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
}

/// It begins anew while replies wait for room in its ring, and for more of its requests to be taken.
#[test]
fn xsa_425_a_domain_begins_anew_while_replies_wait() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let (mut guest, mut other) = (introduced(&mut host, 5), introduced(&mut host, 6));
    let value = vec![b'v'; 1900];
    for round in 0..4 {
        assert_eq!(guest.request(WRITE, &[b"big\0", &value[..]].concat()).0, WRITE);
        assert_eq!(guest.request(WATCH, b"big\0t\0").0, WATCH);
        assert_eq!(guest.event(), b"big\0t\0");
        assert_eq!(guest.request(START, b"\0").0, START);
        // RESET_WATCHES among those that are taken, or behind them.
        let reset = request(RESET_WATCHES, b"\0");
        if round % 2 == 0 {
            guest.send(&reset);
        }
        flood(&mut guest, &mut other, &request(READ, b"big\0"));
        assert_eq!(guest.word(RSP_PROD).wrapping_sub(guest.word(RSP_CONS)), 1024);
        assert!(guest.unread() > 1000);
        host.write("/local/domain/5/big", &value).unwrap();
        // The same page, or a new one, as after kexec.
        if round < 2 {
            host.introduce(5, 1, 2, guest.fds()).unwrap();
            guest.forget();
        } else {
            let new = Guest::new();
            host.introduce(5, 1, 3, new.fds()).unwrap();
            guest = new;
        }
        assert_eq!([REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD].map(|at| guest.word(at)), [0; 4]);
        assert_eq!(guest.request(RESET_WATCHES, b"\0"), (RESET_WATCHES, b"OK\0".to_vec()));
        assert_eq!(guest.request(READ, b"big\0"), (READ, value.clone()), "nothing of before");
        let report = host.control(&["quota", "5"]).unwrap();
        assert!(report.contains("watches          :        0"), "{report}");
        assert!(report.contains("transactions     :        0"), "{report}");
        assert_eq!(host.control(&["check"]).unwrap(), "OK");
    }
}

/// Through a ring, from which messages of this size come in several pieces.
#[test]
fn xsa_416_malformed_requests_leave_no_memory_behind() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let mut guest = introduced(&mut host, 5);
    let (mut sent, mut early) = (0, 0);
    for round in 0..2500u32 {
        // Of every kind that is a request or not, but those that end or begin something.
        let kinds = (0..32).filter(|kind| ![START, WATCH].contains(kind));
        let small: Vec<u8> = kinds.clone().flat_map(|kind| request_in(kind, round % 3, b"/")).collect();
        guest.send(&small);
        let big = request(round % 32, &[b'/'; 4096][..4096 - 64 * usize::from(round % 2 == 0)]);
        guest.send(&big);
        let nul = request_in(round % 32, 9, &[0; 500]);
        guest.send(&nul);
        for _ in 0..kinds.count() + 2 {
            guest.reply();
            sent += 1;
        }
        if round == 250 {
            early = daemon.status("VmRSS:");
        }
    }
    let now = daemon.status("VmRSS:");
    assert!(sent >= 80_000 && now <= early + 512, "{early} KiB, and {now} after {sent} requests");
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
}

#[test]
fn r4_features_are_offered_and_never_taken_back() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let guest = Guest::new();
    guest.set_word(FEATURES, 0x100);
    host.introduce(5, 1, 2, guest.fds()).unwrap();
    assert_eq!(guest.word(FEATURES), 0x10f);
    // Fewer for a domain of which that was said before.
    host.mkdir("/local/domain/7").unwrap();
    host.request(MsgType::SET_FEATURE, "7", &[b"7\x006\0"], &[]).unwrap();
    let fewer = Guest::new();
    host.introduce(7, 1, 2, fewer.fds()).unwrap();
    assert_eq!(fewer.word(FEATURES), 6);
    let late = host.request(MsgType::SET_FEATURE, "7", &[b"7\x002\0"], &[]);
    assert!(late.is_err());
}

#[test]
fn r5_a_reconnection_begins_anew() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let mut guest = introduced(&mut host, 5);
    assert_eq!(guest.request(WATCH, b"x\0t\0").0, WATCH);
    assert_eq!(guest.event(), b"x\0t\0");
    assert_eq!(guest.request(START, b"\0").0, START);
    // Half a request, and a reply that was not read.
    guest.send(&request(READ, b"/nope\0"));
    guest.send(&request(READ, b"/half/a/request\0")[..20]);
    guest.reconnect();
    let indices = [REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD].map(|at| guest.word(at));
    assert_eq!(indices, [0; 4]);
    host.write("/local/domain/5/x", "1").unwrap();
    assert_eq!(guest.request(WATCH, b"x\0t\0").0, WATCH, "the watch was gone");
    assert_eq!(guest.event(), b"x\0t\0");
    let report = host.control(&["quota", "5"]).unwrap();
    assert!(report.contains("transactions     :        0"), "{report}");
    assert_eq!(host.read("/local/domain/5/x").unwrap(), b"1", "nodes stay");
}

#[test]
fn r6_features_and_quotas_by_message() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let mut guest = introduced(&mut host, 5);
    assert_eq!(guest.request(23, b""), (23, b"15\0".to_vec()));
    assert_eq!(guest.request(23, b"5\0"), (ERROR, b"EACCES\0".to_vec()));
    assert_eq!(guest.request(25, b"nodes\0"), (ERROR, b"EACCES\0".to_vec()));
    let mut ask = |kind, payload: &[u8]| host.request(kind, "", &[payload], &[]);
    assert_eq!(ask(MsgType::GET_FEATURE, b"5\0").unwrap(), b"15\0");
    assert_eq!(ask(MsgType::GET_QUOTA, b"nodes\0").unwrap(), b"1000\0");
    ask(MsgType::SET_QUOTA, b"5\0nodes\x002\0").unwrap();
    assert_eq!(ask(MsgType::GET_QUOTA, b"5\0nodes\0").unwrap(), b"2\0");
    assert_eq!(guest.request(WRITE, b"a\x001"), (WRITE, b"OK\0".to_vec()));
    assert_eq!(guest.request(WRITE, b"b\x001"), (ERROR, b"ENOSPC\0".to_vec()));
    ask(MsgType::SET_QUOTA, b"5\0nodes\x000\0").unwrap();
    assert_eq!(guest.request(WRITE, b"b\x001"), (WRITE, b"OK\0".to_vec()));
}

#[test]
fn introduce_takes_its_descriptors_in_order_and_a_second_one_rebinds() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    host.watch("@introduceDomain", "in").unwrap();
    host.watch("@releaseDomain", "out").unwrap();
    assert_eq!((event(&mut host).1, event(&mut host).1), ("in".into(), "out".into()));
    let mut first = introduced(&mut host, 5);
    assert_eq!(event(&mut host).1, "in");
    assert_eq!(first.request(WATCH, b"x\0t\0").0, WATCH);
    assert_eq!(first.event(), b"x\0t\0");
    // Fewer than three, the wrong kind, the wrong order: refused, and what there was stays.
    let fds = first.fds();
    let page = fds.page;
    for wrong in [RingFds { page: fds.kick, kick: page, ..fds }, RingFds { notify: page, ..fds }] {
        assert_eq!(host.introduce(5, 1, 3, wrong).unwrap_err().errno(), Some(Errno::EINVAL));
    }
    for bare in [&b"5\x001\x002\0"[..], b"5\x001\0", b"5\x001\x000\0", b"x\x001\x002\0"] {
        let refused = host.request(MsgType::INTRODUCE, "5", &[bare], &[]);
        assert_eq!(refused.unwrap_err().errno(), Some(Errno::EINVAL));
    }
    let two = [fds.page, fds.kick];
    let refused = host.request(MsgType::INTRODUCE, "5", &[b"5\x001\x002\0"], &two);
    assert_eq!(refused.unwrap_err().errno(), Some(Errno::EINVAL));
    assert_eq!(first.request(READ, b"x\0").0, ERROR, "still served");

    // The second time without a life line: rings empty, watches gone, nodes there, no event.
    assert_eq!(first.request(WRITE, b"kept\x001").0, WRITE);
    let mut second = Guest::new();
    second.set_index(123);
    host.introduce(5, 1, 3, RingFds { lifeline: None, ..second.fds() }).unwrap();
    let indices = [REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD].map(|at| second.word(at));
    assert_eq!(indices, [0; 4]);
    assert_eq!(second.request(READ, b"kept\0"), (READ, b"1".to_vec()));
    host.write("/local/domain/5/x", "").unwrap();
    assert_eq!(second.request(WATCH, b"x\0t\0").0, WATCH);
    drop(first);
    assert!(host.is_introduced(5).unwrap(), "the life line of the first one is not its any more");
    host.release(5).unwrap();
    assert_eq!(event(&mut host).1, "out");
}

/// Eventfds made without EFD_NONBLOCK, whose maker waits in a read.
#[test]
fn eventfds_keep_the_flags_of_their_makers() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let (page, eventfd) = (Guest::new(), || EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
    let (kick, notify) = (eventfd(), eventfd());
    let fds = RingFds { kick: kick.as_fd(), notify: notify.as_fd(), ..page.fds() };
    host.introduce(5, 1, 2, fds).unwrap();
    assert_eq!(notify.read().unwrap(), 1, "the ring is served");
    for n in 0..10 {
        page.put_request(READ, 0, b"/nope\0");
        kick.write(1).unwrap();
        while page.word(RSP_PROD) != 23 * (n + 1) {
            assert!(notify.read().unwrap() > 0);
        }
        page.set_word(RSP_CONS, page.word(RSP_PROD));
    }
    // A full counter stops nobody.
    host.read("/").unwrap();
    if poll(&mut [PollFd::new(notify.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1) {
        notify.read().unwrap();
    }
    notify.write(u64::MAX - 1).unwrap();
    page.put_request(READ, 0, b"/nope\0");
    kick.write(1).unwrap();
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
}

#[test]
fn a_life_line_says_s_once_and_hangs_up() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    host.watch("@releaseDomain", "out").unwrap();
    event(&mut host);
    let mut guest = introduced(&mut host, 5);
    // Other bytes say nothing; s counts wherever it stands.
    guest.say(b"abc");
    guest.say(b"xsx");
    assert_eq!(event(&mut host).1, "out");
    guest.say(b"sss");
    host.resume(5).unwrap();
    guest.say(b"s");
    assert_eq!(event(&mut host).1, "out");
    assert!(host.is_introduced(5).unwrap());
    drop(guest);
    assert_eq!(event(&mut host).1, "out");
    assert!(!host.is_introduced(5).unwrap());
    assert_eq!(host.read_opt("/local/domain/5").unwrap(), None);
    assert_eq!(host.resume(5).unwrap_err().errno(), Some(Errno::ENOENT));
}

#[test]
fn v7_a_guest_that_lets_too_much_wait_learns_that_it_misses_something() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let mut guest = introduced(&mut host, 5);
    assert_eq!(host.request(MsgType::SET_QUOTA, "", &[b"5\0memory\x00200000\0"], &[]).unwrap(), b"OK\0");
    host.mkdir("/d").unwrap();
    host.set_perms("/d", &["r0".parse().unwrap()]).unwrap();
    assert_eq!(guest.request(WATCH, b"/d\0t\0").0, WATCH);
    assert_eq!(guest.event(), b"/d\0t\0");
    for n in 0..600 {
        host.write(&format!("/d/{n}/{}", "x".repeat(400)), "").unwrap();
    }
    assert_eq!(guest.wait_for_error(), 1);
    assert!(host.is_introduced(5).unwrap());
    guest.reconnect();
    assert_eq!(guest.request(WATCH, b"device/new\0t\0").0, WATCH);
    assert_eq!(guest.event(), b"device/new\0t\0");
    host.write("/local/domain/5/device/new", "").unwrap();
    assert_eq!(guest.event(), b"device/new\0t\0");
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
}
