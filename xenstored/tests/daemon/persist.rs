//! A state folder, and a daemon that is killed.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use xenstored::client::Client;

use crate::LONG;
use crate::guest::Guest;
use crate::host::Daemon;

#[test]
fn what_was_acknowledged_is_there_after_kill_9_under_load() {
    for fsync in ["always", "interval", "never"] {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().to_str().unwrap();
        let mut daemon = Daemon::with(&["--state-dir", state, "--fsync", fsync]);
        let mut host = daemon.client();
        host.mkdir("/local/domain/5").unwrap();
        host.set_perms("/local/domain/5", &["n5".parse().unwrap()]).unwrap();
        let mut guest = Guest::new();
        host.introduce(5, 1, 2, guest.fds()).unwrap();
        assert_eq!(guest.request(11, b"device/x\0kept").0, 11);
        assert_eq!(guest.request(4, b"device\0t\0").0, 4);
        assert_eq!(guest.event(), b"device\0t\0");
        for _ in 0..3 {
            let acknowledged: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
            thread::scope(|scope| {
                for (n, count) in acknowledged.iter().enumerate() {
                    let mut client = daemon.client();
                    // Until the daemon is gone.
                    scope.spawn(move || while count_up(&mut client, n, count) {});
                }
                while acknowledged.iter().any(|count| count.load(Ordering::Relaxed) < 20) {
                    thread::yield_now();
                }
                daemon.kill();
            });
            daemon.restart();
            let mut host = daemon.client();
            for (n, count) in acknowledged.iter().enumerate() {
                let there: u32 = host.read_string(&format!("/load/{n}")).unwrap().parse().unwrap();
                let acknowledged = count.load(Ordering::Relaxed);
                assert!(there >= acknowledged, "{fsync}: {there} of {acknowledged}");
            }
            assert_eq!(host.control(&["check"]).unwrap(), "OK");
        }
        // The domain attaches again and has what it had.
        let mut host = daemon.client();
        assert!(!host.is_introduced(5).unwrap());
        // A guest that knows nothing of it: what it asked meanwhile is answered, and its watch is there.
        guest.send(&[11u32, 9, 0, 12].map(u32::to_le_bytes).concat());
        guest.send(b"device/y\0new");
        host.introduce(5, 1, 2, guest.fds()).unwrap();
        assert_eq!(guest.event(), b"device\0t\0", "whatever it missed");
        assert_eq!(guest.reply(), (11, b"OK\0".to_vec()));
        assert_eq!(guest.event(), b"device/y\0t\0");
        assert_eq!(guest.request(2, b"device/x\0"), (2, b"kept".to_vec()));
        assert_eq!(guest.request(11, b"device/x\0again").0, 11);
        assert_eq!(guest.event(), b"device/x\0t\0");
        // A live update goes on in the same folder.
        let binary = env!("CARGO_BIN_EXE_xenstored");
        assert_eq!(host.control(&["live-update", "-f", binary]).unwrap(), "OK");
        assert_eq!(host.control(&["live-update", "-s"]).unwrap(), "OK");
        host.write("/last", "1").unwrap();
        daemon.kill();
        daemon.restart();
        let mut host = daemon.client();
        assert_eq!(host.read("/local/domain/5/device/x").unwrap(), b"again");
        assert_eq!(host.read("/last").unwrap(), b"1");
        assert!(daemon.terminate().success());
        daemon.restart();
        assert_eq!(daemon.client().read("/last").unwrap(), b"1");
    }
}

#[test]
fn counters_do_not_outlive_their_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::with(&["--state-dir", folder.path().to_str().unwrap()]);
    let mut others: Vec<Client> = (0..5).map(|_| daemon.client()).collect();
    others.iter_mut().for_each(|client| drop(client.read("/").unwrap()));
    let count = |client: &mut Client| client.directory("/tool/xenstored/connection").unwrap().len();
    assert_eq!(count(&mut daemon.client()), 6);
    daemon.kill();
    daemon.restart();
    assert_eq!(count(&mut daemon.client()), 1);
}

/// A domain with a home of its own, in which `big` is longer than a ring.
fn with_big(host: &mut Client, guest: &mut Guest) -> Vec<u8> {
    let value: Vec<u8> = (0..2000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    host.mkdir("/local/domain/5").unwrap();
    host.set_perms("/local/domain/5", &["n5".parse().unwrap()]).unwrap();
    host.write("/local/domain/5/big", &value).unwrap();
    host.introduce(5, 1, 2, guest.fds()).unwrap();
    guest.put_request(2, 0, b"big\0");
    guest.kick();
    while guest.unsent_room() > 0 {
        thread::yield_now();
    }
    value
}

#[test]
fn a_reply_of_which_a_killed_store_has_sent_a_part_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::with(&["--state-dir", folder.path().to_str().unwrap()]);
    let mut host = daemon.client();
    let mut guest = Guest::new();
    let value = with_big(&mut host, &mut guest);
    // Another one behind it, and an event that nobody has taken when the store dies; then it dies again.
    guest.put_request(4, 0, b"x\0token\0");
    guest.kick();
    while guest.unread() > 0 {
        thread::yield_now();
    }
    host.write("/local/domain/5/x", "1").unwrap();
    for _ in 0..3 {
        daemon.kill();
        daemon.restart();
        daemon.client().introduce(5, 1, 2, guest.fds()).unwrap();
    }
    assert_eq!(guest.reply(), (2, value.clone()));
    assert_eq!(guest.reply(), (4, b"OK\0".to_vec()));
    for _ in 0..2 {
        assert_eq!(guest.event(), b"x\0token\0");
    }
    for _ in 0..3 {
        assert_eq!(guest.request(2, b"big\0"), (2, value.clone()));
    }
    assert_eq!(guest.request(11, b"x\0y"), (11, b"OK\0".to_vec()));
    // One that reconnects begins anew, also with the next store.
    guest.put_request(2, 0, b"big\0");
    guest.kick();
    while guest.unsent_room() > 0 {
        thread::yield_now();
    }
    guest.reconnect();
    daemon.kill();
    daemon.restart();
    daemon.client().introduce(5, 1, 2, guest.fds()).unwrap();
    assert_eq!(guest.request(2, b"x\0"), (2, b"y".to_vec()));
}

#[test]
fn what_a_domain_has_not_read_is_not_for_the_next_one_of_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::with(&["--state-dir", folder.path().to_str().unwrap()]);
    let mut guest = Guest::new();
    with_big(&mut daemon.client(), &mut guest);
    assert!(folder.path().join("unsent.5").exists());
    daemon.kill();
    daemon.restart();
    let mut host = daemon.client();
    host.release(5).unwrap();
    host.mkdir("/local/domain/5").unwrap();
    host.set_perms("/local/domain/5", &["n5".parse().unwrap()]).unwrap();
    daemon.kill();
    daemon.restart();
    let mut next = Guest::new();
    daemon.client().introduce(5, 1, 2, next.fds()).unwrap();
    assert_eq!(next.request(2, b"nope\0"), (16, b"ENOENT\0".to_vec()));
    daemon.client().release(5).unwrap();
    assert!(!folder.path().join("unsent.5").exists());
}

fn count_up(client: &mut Client, n: usize, count: &AtomicU32) -> bool {
    client.set_timeout(LONG);
    let next = count.load(Ordering::Relaxed) + 1;
    let written = client.write(&format!("/load/{n}"), next.to_string()).is_ok();
    if written {
        count.store(next, Ordering::Relaxed);
    }
    written
}
