//! Live update, end to end: the daemon becomes itself.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use xenstored::client::Client;
use xenstored::wire::{Errno, MsgType};

use crate::guest::Guest;
use crate::host::Daemon;
use crate::{LONG, event};

const BINARY: &str = env!("CARGO_BIN_EXE_xenstored");

fn update(client: &mut Client, binary: &str, options: &[&str]) -> String {
    assert_eq!(client.control(&["live-update", "-f", binary]).unwrap(), "OK");
    client.control(&[&["live-update", "-s"], options].concat()).unwrap()
}

fn raw(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(LONG).unwrap();
    stream
}

fn message(kind: MsgType, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    xenstored::wire::put(&mut message, kind, 3, 0, &[payload]).unwrap();
    message
}

fn reply(stream: &mut UnixStream) -> Vec<u8> {
    let mut header = [0; 16];
    stream.read_exact(&mut header).unwrap();
    let len = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
    let mut payload = vec![0; len as usize];
    stream.read_exact(&mut payload).unwrap();
    payload
}

#[test]
fn live_update_everything_survives() {
    let daemon = Daemon::start();
    let (mut host, mut watcher) = (daemon.client(), daemon.client());
    watcher.watch("@releaseDomain", "out").unwrap();
    watcher.watch("/a", "a").unwrap();
    assert_eq!((event(&mut watcher).1, event(&mut watcher).1), ("out".into(), "a".into()));
    host.write("/a/b", b"\0\xff").unwrap();
    assert_eq!(event(&mut watcher).0, "/a/b");
    host.mkdir("/local/domain/5").unwrap();
    host.set_perms("/local/domain/5", &["n5".parse().unwrap()]).unwrap();
    let (mut guest, mut failed) = (Guest::new(), Guest::new());
    host.introduce(5, 1, 2, guest.fds()).unwrap();
    host.introduce(6, 1, 2, failed.fds()).unwrap();
    failed.set_word(2052, 5000);
    failed.kick();
    assert_eq!(failed.wait_for_error(), 2);
    assert_eq!(guest.request(4, b"device\0t\0"), (4, b"OK\0".to_vec()));
    assert_eq!(guest.event(), b"device\0t\0");
    guest.shut_down();
    assert_eq!(event(&mut watcher).1, "out");

    // Half a request on a socket and in a ring, and replies that nobody has read.
    let mut half = raw(&daemon);
    let request = message(MsgType::WRITE, b"/half\0value");
    half.write_all(&request[..20]).unwrap();
    let write = message(MsgType::WRITE, b"device/x\0late");
    guest.send(&write[..20]);
    let mut deaf = raw(&daemon);
    host.write("/big", [b'v'; 4000]).unwrap();
    let read = message(MsgType::READ, b"/big\0");
    (0..300).for_each(|_| deaf.write_all(&read).unwrap());
    // Seen to be handled: the socket of the deaf one is full.
    assert_eq!(host.read("/big").unwrap().len(), 4000);

    for _ in 0..3 {
        assert_eq!(update(&mut host, BINARY, &[]), "OK");
        assert_eq!(host.control(&["check"]).unwrap(), "OK");
    }
    assert_eq!(std::fs::read_to_string(daemon.pid_file()).unwrap().trim(), daemon.pid().to_string());
    let command = std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    let flags = command.split(|&byte| byte == 0).filter(|arg| *arg == b"--live-update").count();
    assert_eq!(flags, 1, "arguments do not pile up");

    half.write_all(&request[20..]).unwrap();
    assert_eq!(reply(&mut half), b"OK\0");
    assert_eq!(host.read("/half").unwrap(), b"value");
    for n in 0..300 {
        assert_eq!(reply(&mut deaf).len(), 4000, "reply {n}");
    }
    guest.send(&write[20..]);
    assert_eq!(guest.reply(), (11, b"OK\0".to_vec()));
    assert_eq!(guest.event(), b"device/x\0t\0");
    assert_eq!(host.read("/local/domain/5/device/x").unwrap(), b"late");
    assert_eq!(watcher.read("/a/b").unwrap(), b"\0\xff");
    host.write("/a/c", "").unwrap();
    assert_eq!(event(&mut watcher), ("/a/c".into(), "a".into()));
    // What was announced is not announced again; life lines and faults are remembered.
    guest.shut_down();
    assert!(host.is_introduced(6).unwrap());
    failed.reconnect();
    assert_eq!(failed.request(2, b"/nope\0").0, 16);
    host.write("/a/d", "").unwrap();
    assert_eq!(event(&mut watcher).0, "/a/d");
    drop(guest);
    assert_eq!(event(&mut watcher).1, "out");
    assert!(!host.is_introduced(5).unwrap());
    let mut new = daemon.client();
    assert_eq!(new.read("/half").unwrap(), b"value");
    assert_eq!(new.control(&["check"]).unwrap(), "OK");
}

#[test]
fn live_update_what_was_set_survives() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace");
    let mut host = daemon.client();
    for command in [
        &["quota-soft", "set", "memory", "4711"][..],
        &["log", "-obj"],
        &["log", "+acc"],
        &["logfile", file.to_str().unwrap()],
        &["quota", "set", "nodes", "17"],
    ] {
        assert_eq!(host.control(command).unwrap(), "OK");
    }
    let said = |host: &mut Client| ["quota-soft", "log", "quota"].map(|what| host.control(&[what]).unwrap());
    let before = said(&mut host);
    assert_eq!(update(&mut host, BINARY, &[]), "OK");
    assert_eq!(said(&mut host), before);
    host.write("/traced", "1").unwrap();
    assert!(std::fs::read_to_string(&file).unwrap().contains(" WRITE tx 0 (/traced 1)"));
    assert_eq!(host.control(&["log", "off"]).unwrap(), "OK");
    assert_eq!(update(&mut host, BINARY, &[]), "OK");
    host.write("/not-traced", "1").unwrap();
    assert!(!std::fs::read_to_string(&file).unwrap().contains("/not-traced"));
    assert_eq!(host.control(&["log", "on"]).unwrap(), "OK");
    host.write("/traced-again", "1").unwrap();
    assert!(std::fs::read_to_string(&file).unwrap().contains("/traced-again"));
}

#[test]
fn live_update_a_binary_that_fails_leaves_the_old_one_serving() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    host.write("/a", "1").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str, mode: u32| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let refused = |host: &mut Client, path: &Path, why: &str| {
        assert_eq!(host.control(&["live-update", "-f", path.to_str().unwrap()]).unwrap(), why);
    };
    refused(&mut host, Path::new("/nope"), "File not accessible.");
    assert_eq!(host.control(&["live-update", "-v", "2"]).unwrap(), "Not in live-update session.");
    assert_eq!(host.control(&["live-update", "-f", BINARY]).unwrap(), "OK");
    assert_eq!(host.control(&["live-update", "-v", "2"]).unwrap(), "OK");
    assert_eq!(
        host.control(&["live-update", "-v", "1"]).unwrap(),
        "Only version 2 of the stream is written."
    );
    assert_eq!(host.control(&["live-update", "-a"]).unwrap(), "OK");
    refused(&mut host, &script("text", "hello", 0o644), "File not executable.");
    refused(&mut host, folder.path(), "File not executable.");
    for (path, part) in [
        ("/bin/false".into(), "does not accept the state: exit status: 1"),
        ("/bin/true".into(), "does not accept the state: exit status: 0"),
        ("/bin/echo".into(), "does not accept the state"),
        (script("no-program", "\0\0", 0o755), "cannot be tried"),
        (script("crash", "#!/bin/sh\nkill -SEGV $$\n", 0o755), "does not accept the state: signal"),
        (script("old", &format!("#!/bin/sh\nexec {BINARY} --unknown \"$@\"\n"), 0o755), "exit status: 2"),
        (
            script("other-state", &format!("#!/bin/sh\nexec {BINARY} \"$@\" < /dev/null\n"), 0o755),
            "exit status: 1\nError: live update",
        ),
    ] {
        let text = update(&mut host, path.to_str().unwrap(), &[]);
        assert!(text.contains(part), "{}: {text}", path.display());
        assert_eq!(host.read("/a").unwrap(), b"1");
        assert_eq!(host.control(&["live-update", "-a"]).unwrap(), "No live-update session active.");
    }
    // Arguments the new binary does not know are its failure too.
    assert_eq!(host.control(&["live-update", "-f", BINARY]).unwrap(), "OK");
    assert_eq!(host.control(&["live-update", "-f", BINARY]).unwrap(), "live-update session already active.");
    assert_eq!(host.control(&["live-update", "-c", "--bad --args"]).unwrap(), "OK");
    let text = host.control(&["live-update", "-s"]).unwrap();
    assert!(text.contains("exit status: 2\nerror: unexpected argument '--bad' found"), "{text}");
    let wordy = script("wordy", "#!/bin/sh\nyes 'why nöt' | head -n 1000\nexit 3\n", 0o755);
    let text = update(&mut host, wordy.to_str().unwrap(), &[]);
    assert!(text.contains("exit status: 3\n") && text.ends_with("why nöt") && text.len() > 4000, "{text}");
    assert_eq!(host.control(&["live-update", "-s"]).unwrap(), "Not in live-update session.");
    for bad in [&["live-update"][..], &["live-update", "-x"], &["live-update", "-s", "-t", "x"]] {
        assert_eq!(host.control(bad).unwrap_err().errno(), Some(Errno::EINVAL));
    }
    assert_eq!(std::fs::read_to_string(daemon.pid_file()).unwrap().trim(), daemon.pid().to_string());
    assert_eq!(update(&mut host, BINARY, &[]), "OK");
}

#[test]
fn live_update_arguments_that_cannot_be_followed_leave_the_old_one_serving() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(at("traces")).unwrap();
    let daemon = Daemon::with(&["-T", &at("traces/t")]);
    let mut host = daemon.client();
    host.write("/a", "1").unwrap();
    let with = |host: &mut Client, line: &str| {
        assert_eq!(host.control(&["live-update", "-f", BINARY]).unwrap(), "OK");
        assert_eq!(host.control(&["live-update", "-c", line]).unwrap(), "OK");
        let text = host.control(&["live-update", "-s"]).unwrap();
        assert_eq!(host.read("/a").unwrap(), b"1", "{line}");
        text
    };
    for (line, why) in [
        ("-N -T /nonexistent/d/t", "trace file /nonexistent/d/t"),
        ("-N --state-dir /proc/nope", "state folder /proc/nope"),
        ("-N -F /nonexistent/d/p", "cannot write pid file /nonexistent/d/p"),
        ("-N --trace-control bogus", "--trace-control bogus"),
    ] {
        let text = with(&mut host, line);
        assert!(text.contains("exit status: 1\nError: ") && text.contains(why), "{line}: {text}");
    }
    std::fs::remove_dir_all(at("traces")).unwrap();
    let text = update(&mut host, BINARY, &[]);
    assert!(text.contains("traces/t"), "{text}");
    assert_eq!(host.read("/a").unwrap(), b"1");
    // A trial leaves nothing behind, and is none if the arguments say so.
    let line = format!("-N --trial -F {} -T {} --state-dir {}", at("pid"), at("trace"), at("state"));
    assert_eq!(with(&mut host, &line), "OK");
    assert_eq!(std::fs::read_to_string(at("pid")).unwrap().trim(), daemon.pid().to_string());
    assert!(Path::new(&at("trace")).exists() && Path::new(&at("state")).is_dir());
    host.write("/a", "2").unwrap();
}

#[test]
fn live_update_open_transactions_are_waited_for_and_new_ones_wait() {
    let daemon = Daemon::start();
    let (mut host, mut other) = (daemon.client(), daemon.client());
    host.write("/a", "1").unwrap();
    let mut open = raw(&daemon);
    open.write_all(&message(MsgType::TRANSACTION_START, b"\0")).unwrap();
    let tx: u32 = String::from_utf8(reply(&mut open)).unwrap().trim_end_matches('\0').parse().unwrap();
    let text = update(&mut host, BINARY, &["-t", "0"]);
    assert!(text.contains("Not all transactions finished"), "{text}");
    // It goes through when the transaction ends.
    let starter = thread::spawn({
        let socket = daemon.socket();
        move || {
            let mut client = Client::connect(&socket).unwrap();
            let text = update(&mut client, BINARY, &[]);
            (text, client.read("/a").unwrap())
        }
    });
    // New ones wait as soon as the update is under way.
    let mut held = raw(&daemon);
    held.set_nonblocking(true).unwrap();
    let start = message(MsgType::TRANSACTION_START, b"\0");
    loop {
        held.write_all(&start).unwrap();
        // Long enough for an answer to be there, if there is one.
        (0..10).for_each(|_| drop(other.read("/a").unwrap()));
        match held.read(&mut [0; 64]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            got => assert!(got.unwrap() > 0),
        }
        held = raw(&daemon);
        held.set_nonblocking(true).unwrap();
    }
    held.set_nonblocking(false).unwrap();
    let mut end = message(MsgType::TRANSACTION_END, b"T\0");
    end[8..12].copy_from_slice(&tx.to_le_bytes());
    let mut write = message(MsgType::WRITE, b"/a\x002");
    write[8..12].copy_from_slice(&tx.to_le_bytes());
    open.write_all(&[write, end].concat()).unwrap();
    assert_eq!((reply(&mut open), reply(&mut open)), (b"OK\0".to_vec(), b"OK\0".to_vec()));
    assert_eq!(starter.join().unwrap(), ("OK".into(), b"2".to_vec()));
    assert!(!reply(&mut held).is_empty(), "its transaction began");
    // With force an open transaction survives as one that conflicted.
    assert_eq!(update(&mut other, BINARY, &["-t", "0", "-F"]), "OK");
    let mut end = message(MsgType::TRANSACTION_END, b"T\0");
    end[8..12].copy_from_slice(&1u32.to_le_bytes());
    held.write_all(&end).unwrap();
    assert_eq!(reply(&mut held), b"EAGAIN\0");
}

/// Clients and a guest count, each in a node of its own, while the daemon is replaced again and again.
#[test]
fn live_update_nothing_is_lost_under_load() {
    let daemon = Daemon::start();
    let stop = AtomicBool::new(false);
    let mut host = daemon.client();
    let mut guest = Guest::new();
    host.introduce(5, 1, 2, guest.fds()).unwrap();
    host.mkdir("/local/domain/5/n").unwrap();
    host.set_perms("/local/domain/5/n", &["n5".parse().unwrap()]).unwrap();
    thread::scope(|scope| {
        let stop = &stop;
        let counts: Vec<_> = (0..4)
            .map(|n| {
                let mut client = daemon.client();
                scope.spawn(move || {
                    let path = format!("/count/{n}");
                    client.watch(&path, "w").unwrap();
                    event(&mut client);
                    let mut count = 0u32;
                    while !stop.load(Ordering::Relaxed) {
                        count += 1;
                        client.write(&path, count.to_string()).unwrap();
                        assert_eq!(event(&mut client).0, path, "one event for every write");
                        assert_eq!(client.read_string(&path).unwrap(), count.to_string());
                    }
                    count
                })
            })
            .collect();
        let guest = scope.spawn(move || {
            let mut count = 0u32;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                let payload = format!("n\0{count}");
                assert_eq!(guest.request(11, payload.as_bytes()), (11, b"OK\0".to_vec()));
                assert_eq!(guest.request(2, b"n\0"), (2, count.to_string().into_bytes()));
            }
            (count, guest)
        });
        for _ in 0..5 {
            assert_eq!(update(&mut host, BINARY, &[]), "OK");
        }
        stop.store(true, Ordering::Relaxed);
        for (n, count) in counts.into_iter().enumerate() {
            let count = count.join().unwrap().to_string();
            assert_eq!(host.read_string(&format!("/count/{n}")).unwrap(), count);
        }
        let (count, _guest) = guest.join().unwrap();
        assert_eq!(host.read_string("/local/domain/5/n").unwrap(), count.to_string());
    });
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
}

/// A domain of C xenstored's stream: its ring cannot be taken over, but its watches are its own when it is introduced.
#[test]
fn live_update_watches_of_another_store_come_back_with_their_domain() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let stream = include_bytes!("../data/c-xenstored-4.20.stream");
    std::fs::write(folder.path().join("state_dump"), stream).unwrap();
    // The stream names the socket by its number.
    let script = format!("exec 3<&0 0</dev/null; exec {BINARY} -N -U --log error");
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(std::os::fd::OwnedFd::from(listener))
        .env("XENSTORED_RUNDIR", folder.path())
        .env_remove("XENSTORED_PATH")
        .spawn()
        .unwrap();
    let mut host = Client::connect(&socket).unwrap();
    host.set_timeout(LONG);
    assert!(!host.is_introduced(7).unwrap());
    let mut guest = Guest::new();
    host.introduce(7, 1, 2, guest.fds()).unwrap();
    assert_eq!(guest.event(), b"data\0g\0", "nobody knows what it missed");
    host.write("/local/domain/7/data", "new").unwrap();
    assert_eq!(guest.event(), b"data\0g\0");
    assert_eq!(guest.request(2, b"/local/domain/7\0").0, 2, "its own");
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
    child.kill().unwrap();
    child.wait().unwrap();
}
