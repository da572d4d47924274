//! A daemon that is killed under load: whoever misses it starts it again, once, and guests go on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xenstored::client::{Autostart, Client};

use crate::LONG;
use crate::guest::Guest;

/// As much time as anybody needs.
const PATIENCE: Duration = Duration::from_secs(60);

fn signal(daemon: &Autostart, signal: Signal) {
    let pid = std::fs::read_to_string(daemon.pid_file()).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(pid), signal).unwrap();
    // It is gone when nobody can connect any more.
    while daemon.connect().unwrap().is_some() {
        thread::sleep(Duration::from_millis(5));
    }
}

fn client(daemon: &Autostart) -> Client {
    let mut client = daemon.connect().unwrap().expect("a daemon that serves");
    client.set_timeout(LONG);
    client
}

/// What a domain's process says to a store that knows nothing.
fn announce(host: &mut Client, guest: &Guest) {
    host.mkdir("/local/domain/5").unwrap();
    host.set_perms("/local/domain/5", &["n5".parse().unwrap()]).unwrap();
    host.introduce(5, 1, 2, guest.fds()).unwrap();
}

#[test]
fn one_that_was_killed_is_started_again_by_one_of_those_who_miss_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Autostart::new(&folder.path().join("run/socket"), folder.path());
    daemon.program = PathBuf::from(env!("CARGO_BIN_EXE_xenstored"));
    let lock = folder.path().join("lock");
    assert!(!daemon.again(&lock, PATIENCE).unwrap(), "nobody has started one");
    let mut first = daemon.start().unwrap();
    while daemon.connect().unwrap().is_none() {
        thread::sleep(Duration::from_millis(5));
    }
    let mut guest = Guest::new();
    announce(&mut client(&daemon), &guest);
    assert_eq!(guest.request(4, b"control\0t\0"), (4, b"OK\0".to_vec()));
    assert_eq!(guest.event(), b"control\0t\0");
    for round in 0..5 {
        let (stop, mut open) = (AtomicBool::new(false), 0);
        thread::scope(|scope| {
            for n in 0..4 {
                let (mut loaded, stop) = (client(&daemon), &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) && loaded.write(&format!("/load/{n}"), "x").is_ok() {}
                });
            }
            for n in 0..20 + round * 7 {
                assert_eq!(guest.request(11, format!("n\0{n}").as_bytes()), (11, b"OK\0".to_vec()));
            }
            // A transaction is open, and a request has come in part when the store dies.
            guest.put_request(6, 0, b"\0");
            guest.kick();
            let (_, id) = guest.reply();
            open = String::from_utf8(id).unwrap().trim_end_matches('\0').parse().unwrap();
            guest.send(&[&2u32.to_le_bytes()[..], &[0; 8], &7u32.to_le_bytes(), b"non"].concat());
            while guest.unread() > 0 {
                thread::sleep(Duration::from_millis(1));
            }
            signal(&daemon, Signal::SIGKILL);
            stop.store(true, Ordering::Relaxed);
        });
        let started = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    started.fetch_add(daemon.again(&lock, PATIENCE).unwrap().into(), Ordering::Relaxed)
                });
            }
        });
        assert_eq!(started.into_inner(), 1);
        let mut host = client(&daemon);
        assert_eq!(host.read("/local/domain/5/n").unwrap(), (19 + round * 7).to_string().as_bytes());
        announce(&mut host, &guest);
        // The rest of the request is enough. If the one before it was still in the ring its reply comes once more.
        guest.send(b"ode\0");
        while guest.reply() != (16, b"ENOENT\0".to_vec()) {}
        guest.put_request(7, open, b"T\0");
        guest.kick();
        while guest.reply() != (16, b"EAGAIN\0".to_vec()) {}
        guest.put_request(11, 0, b"device/0\0new");
        guest.kick();
        while guest.reply() != (11, b"OK\0".to_vec()) {}
        assert_eq!(host.read("/local/domain/5/device/0").unwrap(), b"new");
        // Its watch is there: told of once, because nobody knows what it missed, and of what comes now.
        host.write("/local/domain/5/control/shutdown", "poweroff").unwrap();
        while guest.event() != b"control/shutdown\0t\0" {}
    }
    first.wait().unwrap();
    signal(&daemon, Signal::SIGTERM);
    while daemon.pid_file().exists() {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(!daemon.again(&lock, PATIENCE).unwrap(), "it was told to end");
    let mut next = daemon.start().unwrap();
    while daemon.connect().unwrap().is_none() {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(client(&daemon).read_opt("/local/domain/5").unwrap(), None, "another one begins empty");
    signal(&daemon, Signal::SIGTERM);
    next.wait().unwrap();
}
