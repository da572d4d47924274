//! The client library: waiting and polling, on the daemon and on a scripted one.
#![expect(clippy::unwrap_used, reason = "a panic is the verdict of a test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;
use xenstored::client::{Batch, Client, Error, Incoming};
use xenstored::wire::{Errno, MsgType, put, split};

struct Daemon(TempDir, Child);

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenstored"));
        command.env_remove("XENSTORED_PATH").env("XENSTORED_RUNDIR", folder.path());
        command.args(["-N", "--log", "error", "--ready-fd", "1"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        Self(folder, child)
    }

    fn client(&self) -> Client {
        Client::connect(self.0.path().join("socket")).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.1.kill();
        let _ = self.1.wait();
    }
}

/// The next thing that comes, with the descriptor polled as an event loop does it.
fn next(client: &mut Client) -> Incoming {
    loop {
        if let Some(incoming) = client.step().unwrap() {
            return incoming;
        }
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, client.wants_write());
        assert_eq!(poll(&mut [PollFd::new(client.as_fd(), flags)], PollTimeout::from(60_000u16)), Ok(1));
    }
}

#[test]
fn a_polling_client_never_waits_and_loses_nothing() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    assert!(client.step().unwrap().is_none());
    client.watch("/a", "token").unwrap();
    // Far more than the buffers of a socket: the rest is sent while replies come.
    let value = [b'v'; 3000];
    let writes: Vec<_> = (0..2000)
        .map(|n| {
            let path = format!("/a/{}", n % 10);
            client.submit(MsgType::WRITE, &path, &[path.as_bytes(), b"\0", &value]).unwrap()
        })
        .collect();
    assert!(client.wants_write());
    let wrong = client.submit(MsgType::READ, "/nope", &[b"/nope\0"]).unwrap();
    let (mut replies, mut events) = (Vec::new(), 0);
    while replies.last() != Some(&wrong) {
        match next(&mut client) {
            Incoming::Event(event) => {
                assert_eq!(event.token, "token");
                events += 1;
            }
            Incoming::Reply { id, reply } => {
                let errno = reply.err().and_then(|error| error.errno());
                assert_eq!(errno, (id == wrong).then_some(Errno::ENOENT));
                replies.push(id);
            }
        }
    }
    assert!(events > 10, "{events}");
    assert_eq!(replies, [writes, vec![wrong]].concat());
    assert!(!client.wants_write());
    // A submitted transaction, and a waiting request in between.
    client.submit(MsgType::TRANSACTION_START, "", &[b"\0"]).unwrap();
    assert_eq!(client.read("/a/1").unwrap(), value);
    let tx = loop {
        if let Incoming::Reply { reply, .. } = next(&mut client) {
            break String::from_utf8(reply.unwrap()).unwrap().trim_end_matches('\0').parse().unwrap();
        }
    };
    client.submit_in(tx, MsgType::WRITE, "/a/1", &[b"/a/1\0inside"]).unwrap();
    assert_eq!(client.read("/a/1").unwrap(), value);
    client.submit_in(tx, MsgType::TRANSACTION_END, "", &[b"T\0"]).unwrap();
    assert_eq!(client.read("/a/1").unwrap(), b"inside");
}

#[test]
fn a_batch_larger_than_every_buffer_does_not_wedge() {
    let daemon = Daemon::start();
    let (mut client, mut batch) = (daemon.client(), Batch::default());
    client.watch("/b", &"t".repeat(1000)).unwrap();
    for n in 0..1000 {
        batch.write(&format!("/b/{n}"), [b'x'; 3900]);
        batch.rm(&format!("/nope/{n}"));
    }
    client.run(&batch).unwrap();
    assert_eq!(client.directory("/b").unwrap().len(), 1000);
    let mut events = 0;
    while client.next_event(Some(Duration::ZERO)).unwrap().is_some() {
        events += 1;
    }
    assert_eq!(events, 1001);
    batch.write("/b/long", [0; 4096]);
    assert_eq!(client.run(&batch).unwrap_err().errno(), Some(Errno::E2BIG));
    assert_eq!(client.directory("/b").unwrap().len(), 1000);
}

#[test]
fn newer_requests() {
    let daemon = Daemon::start();
    let (mut client, mut other) = (daemon.client(), daemon.client());
    assert_ne!(client.features(None).unwrap(), 0);
    client.mkdir("/local/domain/5").unwrap();
    client.set_features(5, 0).unwrap();
    assert_eq!(client.features(Some(5)).unwrap(), 0);
    let names = client.quotas().unwrap();
    assert!(names.iter().any(|name| name == "nodes"), "{names:?}");
    client.set_quota(None, "nodes", 77).unwrap();
    assert_eq!(client.quota(None, "nodes").unwrap(), 77);
    assert_eq!(client.quota(None, "nope").unwrap_err().errno(), Some(Errno::EINVAL));
    client.watch_to_depth("/d", "t", 1).unwrap();
    other.write("/d/x/deep", "").unwrap();
    other.write("/d/y", "").unwrap();
    let mut paths = Vec::new();
    while paths.last().is_none_or(|path| path != "/d/y") {
        paths.push(client.next_event(Some(Duration::from_secs(60))).unwrap().unwrap().path);
    }
    assert!(!paths.contains(&"/d/x/deep".to_owned()), "{paths:?}");
    client.reset_watches().unwrap();
    assert_eq!(client.unwatch("/d", "t").unwrap_err().errno(), Some(Errno::ENOENT));
}

/// A daemon that answers the second request first and the first one never, until the client has given up.
#[test]
fn a_late_reply_is_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let daemon = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut input = Vec::new();
        let mut ids = Vec::new();
        while ids.len() < 2 {
            let mut chunk = [0; 64];
            let got = socket.read(&mut chunk).unwrap();
            input.extend_from_slice(&chunk[..got]);
            while let Some((header, payload)) = split(&input).unwrap() {
                ids.push(header.req_id);
                let taken = 16 + payload.len();
                input.drain(..taken);
            }
        }
        let mut replies = Vec::new();
        for (id, value) in ids.into_iter().zip(["late", "right"]) {
            put(&mut replies, MsgType::READ, id, 0, &[value.as_bytes()]).unwrap();
        }
        put(&mut replies, MsgType::READ, 99, 0, &[b"nobody asked"]).unwrap();
        socket.write_all(&replies).unwrap();
        socket
    });
    let mut client = Client::connect(folder.path().join("socket")).unwrap();
    client.set_timeout(Some(Duration::from_millis(1)));
    assert!(matches!(client.read("/a"), Err(Error::Timeout)));
    client.set_timeout(None);
    assert_eq!(client.read("/a").unwrap(), b"right");
    assert!(matches!(client.step(), Err(Error::Protocol(_))));
    drop(daemon.join().unwrap());
    assert!(matches!(client.read("/a"), Err(Error::Io(_))));
}
