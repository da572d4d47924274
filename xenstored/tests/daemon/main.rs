//! The daemon as a process: its socket, a guest's ring, and the tools.
#![expect(clippy::unwrap_used, reason = "a panic is the verdict of a test")]

mod guest;
mod host;
mod killed;
mod persist;
mod rings;
mod service;
mod torture;
mod update;

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use xenstored::client::{Client, Error};
use xenstored::perms::Perm;
use xenstored::wire::Errno;

use guest::Guest;
use host::Daemon;

/// Long enough for any machine; nothing is measured.
const LONG: Option<Duration> = Some(Duration::from_secs(60));

fn event(client: &mut Client) -> (String, String) {
    let event = client.next_event(LONG).unwrap().expect("an event");
    (event.path, event.token)
}

#[test]
fn one_daemon_per_path_and_nothing_left_behind() {
    let mut daemon = Daemon::start();
    let second = daemon.command().output().unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("another xenstored serves it"), "{text}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&daemon.socket().metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(daemon.pid_file()).unwrap().trim(), daemon.pid().to_string());
    assert!(daemon.terminate().success());
    assert!(!daemon.socket().exists() && !daemon.pid_file().exists());
}

#[test]
fn a_dead_daemons_socket_is_replaced() {
    let mut daemon = Daemon::start();
    daemon.kill();
    assert!(daemon.socket().exists());
    daemon.restart();
    daemon.client().write("/a", "1").unwrap();
}

#[test]
fn clients_read_write_watch_and_commit() {
    let daemon = Daemon::start();
    let (mut one, mut two) = (daemon.client(), daemon.client());
    two.watch("/a", "token").unwrap();
    assert_eq!(event(&mut two), ("/a".into(), "token".into()));
    one.write("/a/b", b"\0\xff").unwrap();
    assert_eq!(event(&mut two), ("/a/b".into(), "token".into()));
    assert_eq!(two.read("/a/b").unwrap(), b"\0\xff");
    assert_eq!(two.read_opt("/nope").unwrap(), None);
    let perms: Vec<Perm> = vec!["r0".parse().unwrap(), "b7".parse().unwrap()];
    one.set_perms("/a/b", &perms).unwrap();
    assert_eq!(one.get_perms("/a/b").unwrap(), perms);

    let mut runs = 0;
    let before = one.transaction(|tx| {
        let before = tx.read_string("/a")?;
        runs += 1;
        if runs == 1 {
            two.write("/a", "other")?;
        }
        tx.write("/a", "mine")?;
        Ok::<_, Error>(before)
    });
    assert_eq!((before.unwrap().as_str(), runs), ("other", 2));
    assert_eq!(two.read("/a").unwrap(), b"mine");
    let failed = one.transaction(|tx| tx.write("/a", "lost").and_then(|()| tx.read("/nope")));
    assert_eq!(failed.unwrap_err().errno(), Some(Errno::ENOENT));
    assert_eq!(two.read("/a").unwrap(), b"mine");
    one.rm("/a").unwrap();
    assert_eq!(one.get_domain_path(7).unwrap(), "/local/domain/7");
    assert_eq!(one.control(&["check"]).unwrap(), "OK");
}

#[test]
fn w7_a_big_directory_comes_in_parts() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    let names: Vec<String> = (0..3000).map(|n| format!("child-{n}")).collect();
    for name in &names {
        client.write(&format!("/big/{name}"), "").unwrap();
    }
    assert_eq!(client.directory("/big").unwrap(), names);
}

#[test]
fn many_clients_are_served_and_a_deaf_one_harms_nobody() {
    let daemon = Daemon::start();
    let mut deaf = daemon.client();
    deaf.watch("/", "deaf").unwrap();
    let mut clients: Vec<Client> = (0..500).map(|_| daemon.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.watch("/shared", &n.to_string()).unwrap();
        client.write(&format!("/own/{n}"), n.to_string()).unwrap();
        assert_eq!(event(client).1, n.to_string());
    }
    clients[0].write("/shared", "x").unwrap();
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(event(client), ("/shared".into(), n.to_string()));
        assert_eq!(client.read_string(&format!("/own/{n}")).unwrap(), n.to_string());
    }
}

/// 20,000, or as many as this process may have descriptors for.
#[test]
fn thousands_of_connections_are_served() {
    // The superuser may have more than was given.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, 22_000, 22_000);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    // The daemon keeps some back, and other tests run here too.
    let count = usize::try_from(hard.saturating_sub(1000)).unwrap().min(20_000);
    let daemon = Daemon::start();
    let mut host = daemon.client();
    host.write("/a", "1").unwrap();
    let mut clients: Vec<Client> = (0..count).map(|_| daemon.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.watch("/a", &n.to_string()).unwrap();
        assert_eq!(event(client), ("/a".into(), n.to_string()));
    }
    host.write("/a", "2").unwrap();
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(event(client), ("/a".into(), n.to_string()));
        assert_eq!(client.read("/a").unwrap(), b"2");
    }
    println!("{count} connections");
    drop(clients);
    let watches = |report: &str| report.lines().any(|line| line == "watches 0");
    while !watches(&host.control(&["memreport"]).unwrap()) {}
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
}

#[test]
fn a_guest_is_served_from_its_ring_until_it_dies() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    host.watch("@introduceDomain", "in").unwrap();
    host.watch("@releaseDomain", "out").unwrap();
    assert_eq!((event(&mut host).1, event(&mut host).1), ("in".into(), "out".into()));
    // As a toolstack does it: the home first, for the domain to be.
    host.mkdir("/local/domain/5").unwrap();
    host.set_perms("/local/domain/5", &["n5".parse().unwrap()]).unwrap();
    assert!(!host.is_introduced(5).unwrap());
    let mut guest = Guest::new();
    guest.set_index(0xffff_fff0);
    host.introduce(5, 1, 2, guest.fds()).unwrap();
    assert!(host.is_introduced(5).unwrap());
    assert_eq!(event(&mut host).1, "in");
    assert_eq!(guest.connection(), 0);

    assert_eq!(guest.request(11, b"device/x\0value"), (11, b"OK\0".to_vec()));
    assert_eq!(host.read("/local/domain/5/device/x").unwrap(), b"value");
    assert_eq!(guest.request(2, b"/tool\0"), (16, b"EACCES\0".to_vec()));
    assert_eq!(guest.request(8, b"6\x001\x001\0"), (16, b"EACCES\0".to_vec()));
    assert_eq!(guest.request(4, b"device\0t\0"), (4, b"OK\0".to_vec()));
    assert_eq!(guest.event(), b"device\0t\0");
    host.write("/local/domain/5/device/y", "1").unwrap();
    assert_eq!(guest.event(), b"device/y\0t\0");
    // R3: larger than the ring, both ways.
    let big = [b"device/big\0".to_vec(), vec![b'v'; 1900]].concat();
    assert_eq!(guest.request(11, &big).0, 11);
    assert_eq!(guest.event(), b"device/big\0t\0");
    assert_eq!(guest.request(2, b"device/big\0"), (2, vec![b'v'; 1900]));

    guest.shut_down();
    assert_eq!(event(&mut host), ("@releaseDomain".into(), "out".into()));
    guest.shut_down();
    host.resume(5).unwrap();
    guest.shut_down();
    assert_eq!(event(&mut host).1, "out");
    assert!(host.is_introduced(5).unwrap());
    drop(guest);
    assert_eq!(event(&mut host).1, "out");
    assert!(!host.is_introduced(5).unwrap());
    assert_eq!(host.read_opt("/local/domain/5").unwrap(), None);
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
}

#[test]
fn introduce_refuses_what_is_no_ring() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let good = Guest::new();
    let refused = |host: &mut Client, fds| {
        assert_eq!(host.introduce(5, 1, 2, fds).unwrap_err().errno(), Some(Errno::EINVAL));
    };
    let short = Guest::with_page(4095);
    refused(&mut host, short.fds());
    let fds = good.fds();
    refused(&mut host, xenstored::client::RingFds { page: fds.kick, ..fds });
    refused(&mut host, xenstored::client::RingFds { kick: fds.page, ..fds });
    refused(&mut host, xenstored::client::RingFds { notify: fds.page, ..fds });
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let (datagram, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
    for lifeline in [file.as_fd(), datagram.as_fd(), fds.kick] {
        refused(&mut host, xenstored::client::RingFds { lifeline: Some(lifeline), ..fds });
    }
    let bare = host.request(xenstored::wire::MsgType::INTRODUCE, "5", &[b"5\x001\x002\0"], &[]);
    assert_eq!(bare.unwrap_err().errno(), Some(Errno::EINVAL));
    assert_eq!(host.introduce(0, 1, 2, fds).unwrap_err().errno(), Some(Errno::EINVAL));
    assert_eq!(host.introduce(5, 1, 0, fds).unwrap_err().errno(), Some(Errno::EINVAL));
    host.introduce(5, 1, 2, fds).unwrap();
}

/// Too many descriptors came, and requests behind them before anything was read: the kernel says nothing more.
#[test]
fn requests_behind_too_many_descriptors_are_answered() {
    use nix::sys::signal::{Signal, kill};
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::{IoSlice, Read, Write};
    use std::os::fd::AsRawFd;
    let daemon = Daemon::start();
    let pid = nix::unistd::Pid::from_raw(daemon.pid().try_into().unwrap());
    let message = |kind, payload: &[u8]| {
        let mut message = Vec::new();
        xenstored::wire::put(&mut message, kind, 1, 0, &[payload]).unwrap();
        message
    };
    let introduce = message(xenstored::wire::MsgType::INTRODUCE, b"5\x001\x002\0");
    let read = message(xenstored::wire::MsgType::READ, b"/tool\0");
    for count in [5, 40] {
        let mut client = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
        client.set_read_timeout(LONG).unwrap();
        client.write_all(&read).unwrap();
        client.read_exact(&mut [0; 16]).unwrap();
        kill(pid, Signal::SIGSTOP).unwrap();
        let fds = vec![client.as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&fds)];
        let slice = [IoSlice::new(&introduce)];
        sendmsg::<()>(client.as_raw_fd(), &slice, &rights, MsgFlags::empty(), None).unwrap();
        client.write_all(&[&*read, &*read].concat()).unwrap();
        kill(pid, Signal::SIGCONT).unwrap();
        let mut replies = [0; 16 + 7 + 2 * 16];
        client.read_exact(&mut replies).unwrap();
        assert_eq!(&replies[16..23], b"EINVAL\0");
    }
}

/// Over a socket and over a ring.
#[test]
fn w3_messages_come_in_any_pieces_and_are_answered_in_order() {
    use std::io::{Read, Write};
    use xenstored::wire::{MsgType, put, split};
    const MESSAGES: u32 = 60;
    let daemon = Daemon::start();
    let mut host = daemon.client();
    host.mkdir("/local/domain/5").unwrap();
    host.set_perms("/local/domain/5", &["n5".parse().unwrap()]).unwrap();
    let mut guest = Guest::new();
    host.introduce(5, 1, 2, guest.fds()).unwrap();
    let mut client = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    client.set_read_timeout(LONG).unwrap();
    // Every third is a write, whose value the next one reads; then one that fails.
    let path = "/local/domain/5/x\0";
    let (mut bytes, mut want) = (Vec::new(), Vec::new());
    for n in 0..MESSAGES {
        let value = format!("{n}-{}", "v".repeat(n as usize * 7));
        let (kind, payload) = match n % 3 {
            0 => (MsgType::WRITE, format!("{path}{value}")),
            1 => (MsgType::READ, path.to_owned()),
            _ => (MsgType::READ, format!("/local/domain/5/none/{n}\0")),
        };
        put(&mut bytes, kind, n, 0, &[payload.as_bytes()]).unwrap();
        let before = format!("{}-{}", n.wrapping_sub(1), "v".repeat(n.saturating_sub(1) as usize * 7));
        want.push(match n % 3 {
            0 => (11, n, b"OK\0".to_vec()),
            1 => (2, n, before.into_bytes()),
            _ => (16, n, b"ENOENT\0".to_vec()),
        });
    }
    let take = |input: &mut Vec<u8>| {
        let (header, payload) = split(input).unwrap()?;
        let reply = (header.kind.0, header.req_id, payload.to_vec());
        input.drain(..16 + reply.2.len());
        Some(reply)
    };
    for piece in [1, 2, 15, 16, 17, 1000, bytes.len()] {
        for some in bytes.chunks(piece) {
            client.write_all(some).unwrap();
        }
        let (mut input, mut replies) = (Vec::new(), Vec::new());
        while replies.len() < want.len() {
            let mut some = [0; 4096];
            let count = client.read(&mut some).unwrap();
            input.extend_from_slice(&some[..count]);
            replies.extend(std::iter::from_fn(|| take(&mut input)));
        }
        assert_eq!((replies, input.len()), (want.clone(), 0), "in pieces of {piece}");
        // The ring holds fewer requests and replies than these.
        let mut rest = bytes.as_slice();
        let mut replies = Vec::new();
        while replies.len() < want.len() {
            let (now, later) = rest.split_at(rest.len().min(piece).min(guest.room()));
            guest.send(now);
            rest = later;
            if rest.is_empty() || guest.room() == 0 {
                replies.push(guest.whole_reply());
            }
        }
        assert_eq!(replies, want, "in pieces of {piece} through the ring");
    }
}

/// What was asked for before the nonsense is done, and answered.
#[test]
fn w2_replies_go_out_before_a_connection_is_given_up() {
    use std::io::{Read, Write};
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let mut guest = Guest::new();
    host.introduce(5, 1, 2, guest.fds()).unwrap();
    let bad = [[11u32, 0, 0, 5000].map(u32::to_le_bytes).concat(), vec![0; 50]].concat();
    let mut burst = Vec::new();
    for n in ["1", "2"] {
        let payload = format!("/local/domain/5/x\0{n}");
        let kind = xenstored::wire::MsgType::READ;
        xenstored::wire::put(&mut burst, kind, 0, 0, &[payload.as_bytes()]).unwrap();
    }
    burst.extend_from_slice(&bad);
    guest.send(&burst);
    assert_eq!(guest.wait_for_error(), 3);
    assert_eq!((guest.reply(), guest.reply()), ((16, b"EINVAL\0".to_vec()), (16, b"EINVAL\0".to_vec())));
    let mut client = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    client.set_read_timeout(LONG).unwrap();
    client.write_all(&burst).unwrap();
    let mut replies = Vec::new();
    // The kernel says so where something was not read.
    let _ = client.read_to_end(&mut replies);
    assert_eq!(replies.len(), 2 * (16 + 7));
}

#[test]
fn r2_w2_a_hostile_ring_is_ignored_until_it_begins_anew() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    host.watch("@releaseDomain", "out").unwrap();
    event(&mut host);
    let mut guest = Guest::new();
    host.introduce(5, 1, 2, guest.fds()).unwrap();
    guest.set_word(2052, 5000);
    guest.kick();
    assert_eq!(guest.wait_for_error(), 2);
    assert!(host.is_introduced(5).unwrap());
    // R5: it asks to reconnect.
    guest.reconnect();
    assert_eq!(guest.request(2, b"/nope\0").0, 16);
    guest.send(&[&2u32.to_le_bytes()[..], &[0; 8], &5000u32.to_le_bytes()].concat());
    assert_eq!(guest.wait_for_error(), 3);
    // Introduced again it is served again, with a page of its own.
    let mut again = Guest::new();
    again.set_index(77);
    host.introduce(5, 1, 3, again.fds()).unwrap();
    assert_eq!(again.request(2, b"/nope\0").0, 16);
    // The life line of the first introduction is not this domain's any more.
    drop(guest);
    assert!(host.is_introduced(5).unwrap());
    host.release(5).unwrap();
    assert_eq!(event(&mut host).1, "out");
    assert_eq!(host.release(5).unwrap_err().errno(), Some(Errno::ENOENT));
}
