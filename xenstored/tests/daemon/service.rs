//! The daemon as a service: how it is started, told things and watched, and what it does when descriptors run out.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xenstored::client::{Batch, RingFds};
use xenstored::wire::{Errno, MsgType};

use crate::guest::Guest;
use crate::host::Daemon;
use crate::{LONG, event};

const BINARY: &str = env!("CARGO_BIN_EXE_xenstored");

/// Until what the daemon does by itself is done.
fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it does not come about");
}

#[test]
fn control_log_says_what_c_xenstored_says() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let help = host.control(&["help"]).unwrap();
    let names = help.lines().map(|line| line.split(' ').next().unwrap()).filter(|name| !name.is_empty());
    let known =
        ["check", "log", "live-update", "logfile", "memreport", "print", "quota", "quota-soft", "help"];
    assert_eq!(names.collect::<Vec<_>>(), known);
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
    assert_eq!(host.control(&["print", "a line"]).unwrap(), "OK");
    let settings = host.control(&["log"]).unwrap();
    assert!(settings.starts_with("Log switch settings:\nobj     : on\n"), "{settings}");
    assert_eq!(host.control(&["log", "+acc"]).unwrap(), "OK");
    assert!(host.control(&["log"]).unwrap().contains("acc     : on\n"));
    assert!(host.control(&["quota"]).unwrap().starts_with("Quota settings:\nnodes            :     1000 "));
    assert_eq!(host.control(&["quota", "set", "nodes", "17"]).unwrap(), "OK");
    assert!(host.control(&["quota"]).unwrap().contains("nodes            :       17 "));
    assert!(
        host.control(&["quota-soft"]).unwrap().starts_with("Quota settings:\nmemory           :  2097152 ")
    );
    assert_eq!(host.control(&["quota-soft", "set", "memory", "5"]).unwrap(), "OK");
    assert!(host.control(&["quota-soft"]).unwrap().contains(":        5 "));
    for wrong in [
        &["nope"][..],
        &[],
        &["check", "x"],
        &["help", "x"],
        &["print"],
        &["print", "a", "b"],
        &["log", "maybe"],
        &["log", "+nope"],
        &["log", "on", "off"],
        &["logfile"],
        &["memreport", "a", "b"],
        &["quota", "set", "nope", "1"],
        &["quota", "set", "nodes", "x"],
        &["quota", "x"],
        &["quota", "max", "-x"],
        &["quota-soft", "set", "nodes", "1"],
    ] {
        assert_eq!(host.control(wrong).unwrap_err().errno(), Some(Errno::EINVAL), "{wrong:?}");
    }
    assert_eq!(host.control(&["quota", "5"]).unwrap_err().errno(), Some(Errno::ENOENT));
}

#[test]
fn limits_are_set_by_c_xenstoreds_options() {
    let folder = tempfile::tempdir().unwrap();
    let command = |options: &[&str]| {
        let mut command = Command::new(BINARY);
        command.env_remove("XENSTORED_PATH").env("XENSTORED_RUNDIR", folder.path());
        command.args(["--log", "warn", "--ready-fd", "1"]).args(options);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    for wrong in
        [&["-Q", "nope=1"][..], &["-Q", "nodes"], &["-q", "nodes=1"], &["-w", "memory=1"], &["-E", "x"]]
    {
        assert_eq!(command(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
    assert!(command(&["-H"]).output().unwrap().status.success());
    // Of what is given twice the last counts. The last line has no effect, in C xenstored 4.20 neither.
    let options = "-E 10 -N -S 12 -W 13 -t 14 -A 15 -M 16 -Q transaction-nodes=17 --quota outstanding=18 \
                   -Q memory=19 -q memory=2 -q memory=20 -w watch-event=30 -K -N -E 11 -Q memory=19 \
                   -V -D -P -I -R -L --event 7 --priv-domid=0 --master-domid 0";
    let mut daemon = command(&options.split_whitespace().collect::<Vec<_>>()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut host = xenstored::client::Client::connect(folder.path().join("socket")).unwrap();
    let values = |text: String| -> Vec<(String, u32)> {
        let words = |line: &str| {
            let (name, rest) = line.split_once(':').unwrap();
            (name.trim().to_owned(), rest.split_whitespace().next().unwrap().parse().unwrap())
        };
        text.lines().skip(1).map(words).collect()
    };
    let names =
        "nodes watches outstanding memory transactions transaction-nodes node-permissions path-max node-size";
    let want = names.split(' ').map(str::to_owned).zip([11, 13, 18, 19, 14, 17, 15, 16, 12]);
    assert_eq!(values(host.control(&["quota"]).unwrap()), want.collect::<Vec<_>>());
    assert_eq!(values(host.control(&["quota-soft"]).unwrap()), [("memory".to_owned(), 20)]);
    daemon.kill().unwrap();
    let mut log = String::new();
    daemon.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(log.matches("without effect").count(), 10, "{log}");
    daemon.wait().unwrap();
}

#[test]
fn what_domains_used_at_most_is_remembered() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    host.mkdir("/local/domain/5").unwrap();
    host.set_perms("/local/domain/5", &["n5".parse().unwrap()]).unwrap();
    let mut guest = Guest::new();
    host.introduce(5, 1, 2, guest.fds()).unwrap();
    for n in 0..3 {
        assert_eq!(guest.request(11, format!("n{n}\0").as_bytes()).0, 11);
    }
    assert_eq!(guest.request(13, b"n0\0").0, 13);
    let line = |text: &str, name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let text = host.control(&["quota", "5"]).unwrap();
    assert!(text.starts_with("Domain 5:\n"), "{text}");
    assert_eq!(text.lines().count(), 10, "{text}");
    host.write("/of/the/host", "").unwrap();
    let own = host.control(&["quota", "0"]).unwrap();
    // /, /tool, /tool/xenstored, /local, /local/domain, and those three at least.
    let nodes = own.lines().nth(1).unwrap().split_whitespace().nth(2).unwrap().parse::<usize>().unwrap();
    assert!(nodes >= 8, "{own}");
    assert_eq!(line(&text, "nodes"), "nodes            :        3 (max        4)");
    assert_eq!(line(&host.control(&["quota", "max"]).unwrap(), "nodes"), "nodes            :        4");
    assert_eq!(line(&host.control(&["quota", "max", "-r"]).unwrap(), "nodes"), "nodes            :        4");
    assert_eq!(line(&host.control(&["quota", "max"]).unwrap(), "nodes"), "nodes            :        0");
}

#[test]
fn connections_and_domains_are_counted_in_the_report_and_in_nodes() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let mut guest = Guest::new();
    host.introduce(5, 1, 2, guest.fds()).unwrap();
    assert_eq!(guest.request(2, b"/nope\0").0, 16);
    let node = host.read_string("/tool/xenstored/domain/5").unwrap();
    // A header and six bytes in; a header, `EACCES` and its NUL out.
    assert_eq!(node, "requests 1 events 0 in 22 out 23");
    let mut other = daemon.client();
    let clients = |names: &[String]| names.len() == 2;
    assert!(!clients(&other.directory("/tool/xenstored/connection").unwrap()), "looked at a moment ago");
    until(|| clients(&other.directory("/tool/xenstored/connection").unwrap()));
    assert!(other.read_string("/tool/xenstored/total").unwrap().starts_with("requests "));
    drop(guest);
    until(|| host.directory("/tool/xenstored/domain").is_ok_and(|names| names.is_empty()));
    let report = host.control(&["memreport"]).unwrap();
    for part in ["connections ", "watches ", "buffers ", "total requests ", "connection "] {
        assert!(report.contains(part), "{report}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report");
    assert_eq!(host.control(&["memreport", file.to_str().unwrap()]).unwrap(), "OK");
    assert!(std::fs::read_to_string(file).unwrap().contains("total requests "));
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
}

/// Whoever empties the store and looks at once finds its memory given back; who says that nothing more comes is answered.
#[test]
fn a_removal_is_answered_when_its_memory_is_free() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let resident = || daemon.status("VmRSS:");
    let before = resident();
    let mut batch = Batch::default();
    (0..20_000).for_each(|n| batch.write(&format!("/big/{}/{n}", n / 100), [b'v'; 400]));
    host.run(&batch).unwrap();
    let full = resident();
    host.rm("/big").unwrap();
    let after = resident();
    assert!(after.saturating_sub(before) < (full - before) / 4, "{before} KiB, then {full}, then {after}");
    host.write("/big", "again").unwrap();
    let mut other = UnixStream::connect(daemon.socket()).unwrap();
    let mut request = Vec::new();
    xenstored::wire::put(&mut request, MsgType::RM, 0, 0, &[b"/big\0"]).unwrap();
    other.write_all(&[&*request, &*request].concat()).unwrap();
    other.shutdown(std::net::Shutdown::Write).unwrap();
    let mut replies = Vec::new();
    other.read_to_end(&mut replies).unwrap();
    assert_eq!((replies.len(), &replies[16..19], &replies[35..]), (38, &b"OK\0"[..], &b"OK\0"[..]));
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
}

/// A log on a full disk, and one whose reader is gone. A report into a pipe that nobody reads.
#[test]
fn a_log_that_cannot_be_written_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (gone, stderr) = UnixStream::pair().unwrap();
    drop(gone);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    for stderr in [Stdio::from(OwnedFd::from(stderr)), Stdio::from(full)] {
        let mut child = Command::new(BINARY)
            .args(["-N", "--log", "info", "--ready-fd", "1"])
            .env("XENSTORED_RUNDIR", folder.path())
            .env_remove("XENSTORED_PATH")
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut host = xenstored::client::Client::connect(folder.path().join("socket")).unwrap();
        assert_eq!(host.control(&["print", &"a long line ".repeat(300)]).unwrap(), "OK");
        let pipe = folder.path().join("pipe");
        let _ = nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU);
        let refused = host.control(&["memreport", pipe.to_str().unwrap()]);
        assert_eq!(refused.unwrap_err().errno(), Some(Errno::EIO));
        assert_eq!(host.control(&["check"]).unwrap(), "OK");
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn a_refused_start_leaves_nothing_and_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("file"), "precious").unwrap();
    let _foreign = UnixListener::bind(at("foreign")).unwrap();
    drop(UnixListener::bind(at("dead")).unwrap());
    let listing = || {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = listing();
    let long = "x".repeat(120);
    for (socket, options, why) in [
        ("file", &[][..], "there is something that is no socket"),
        ("foreign", &[], "another daemon serves it"),
        (&long, &[], "cannot serve"),
        ("new", &["--state-dir", at("file").to_str().unwrap()], "state folder"),
        ("new", &["--pid-file", "/nope/nope"], "cannot write pid file"),
    ] {
        let mut command = Command::new(BINARY);
        command.env_remove("XENSTORED_RUNDIR").env("XENSTORED_PATH", at(socket)).args(options);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && text.contains(why), "{socket}: {text}");
        assert_eq!(listing(), before, "{socket}");
    }
    assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "precious");
    UnixStream::connect(at("foreign")).unwrap();
    let mut daemon = Command::new(BINARY);
    daemon.args(["--ready-fd", "1", "--socket"]).arg(at("dead")).stdout(Stdio::piped());
    let mut daemon = daemon.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!((&*line, at("dead.lock").exists()), ("ready\n", true));
    kill(Pid::from_raw(daemon.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    assert!(!at("dead").exists() && !at("dead.lock").exists());
}

/// It answers ENOMEM, keeps what it has, and goes on when there is memory again.
#[test]
fn when_memory_runs_out_requests_fail_and_the_daemon_goes_on() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let state = tempfile::tempdir().unwrap();
    for options in [&[][..], &["--state-dir", state.path().to_str().unwrap(), "--fsync", "never"]] {
        let daemon = Daemon::with(options);
        let (mut host, mut other, mut deaf) = (daemon.client(), daemon.client(), daemon.client());
        deaf.watch("/", "deaf").unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap().to_owned();
        let used = line.trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024;
        let pid = Pid::from_raw(daemon.pid().try_into().unwrap());
        let most = Some(used + (24 << 20));
        prlimit(pid, Resource::As, Rlimit { current: most, maximum: None }).unwrap();
        let fill = |host: &mut xenstored::client::Client, run: u32| {
            let mut written = 0;
            loop {
                match host.write(&format!("/fill/{run}/{}/{written}", written / 100), [b'v'; 1000]) {
                    Ok(()) => written += 1,
                    Err(error) => break assert_eq!(error.errno(), Some(Errno::ENOMEM), "{written}"),
                }
            }
            assert!(written > 1000, "{written}");
        };
        fill(&mut host, 0);
        assert_eq!(other.read("/fill/0/0/0").unwrap().len(), 1000);
        assert_eq!(other.watch("/x", "t").unwrap_err().errno(), Some(Errno::ENOMEM));
        assert_eq!(other.transaction(|tx| tx.read("/tool")).unwrap_err().errno(), Some(Errno::ENOMEM));
        assert!(other.directory("/fill/0").unwrap().len() > 10);
        other.rm("/fill/0").unwrap();
        until(|| host.write("/again", "1").is_ok());
        // In one transaction, which is spoiled then.
        let mut done = 0;
        let spoiled = host.transaction(|tx| {
            loop {
                tx.write(&format!("/tx/{}/{done}", done / 100), [b'v'; 1000])?;
                done += 1;
            }
        });
        let spoiled: Result<(), xenstored::client::Error> = spoiled;
        assert_eq!(spoiled.unwrap_err().errno(), Some(Errno::ENOMEM), "{done}");
        assert_eq!(other.read_opt("/tx").unwrap(), None);
        until(|| host.write("/again", "2").is_ok());
        fill(&mut host, 1);
        host.rm("/fill/1").unwrap();
        until(|| host.write("/again", "3").is_ok());
        assert_eq!(host.control(&["check"]).unwrap(), "OK");
    }
}

#[test]
fn memory_of_clients_and_their_watches_is_given_back() {
    let daemon = Daemon::start();
    let mut host = daemon.client();
    let resident = || daemon.status("VmRSS:");
    let before = resident();
    let mut others: Vec<_> = (0..20).map(|_| daemon.client()).collect();
    for (n, other) in others.iter_mut().enumerate() {
        for watch in 0..500 {
            other.watch(&format!("/{n}/{watch}/{}", "x".repeat(500)), &"t".repeat(500)).unwrap();
            other.next_event(LONG).unwrap();
        }
    }
    let full = resident();
    assert!(full > before + 10_000, "{before} KiB, then {full}");
    // Something new lies above what goes.
    host.write("/above", "x").unwrap();
    drop(others);
    until(|| resident().saturating_sub(before) < (full - before) / 3);
}

#[test]
fn control_log_sighup_opens_the_trace_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (file, moved) = (folder.path().join("trace"), folder.path().join("trace.1"));
    let daemon = Daemon::with(&["--trace-file", file.to_str().unwrap(), "--trace-control", "-obj"]);
    let mut host = daemon.client();
    host.write("/first", "1").unwrap();
    std::fs::rename(&file, &moved).unwrap();
    kill(Pid::from_raw(daemon.pid().try_into().unwrap()), Signal::SIGHUP).unwrap();
    until(|| file.exists());
    host.write("/second", "1").unwrap();
    let (old, new) = (std::fs::read_to_string(moved).unwrap(), std::fs::read_to_string(&file).unwrap());
    assert!(old.contains(" WRITE tx 0 (/first 1)") && old.contains("io: OUT "), "{old}");
    assert!(!old.contains("obj: "), "{old}");
    assert!(new.contains(" WRITE tx 0 (/second 1)"), "{new}");
    // Off, elsewhere, on.
    assert_eq!(host.control(&["log", "off"]).unwrap(), "OK");
    host.write("/third", "1").unwrap();
    let other = folder.path().join("other");
    assert_eq!(host.control(&["logfile", other.to_str().unwrap()]).unwrap(), "OK");
    host.write("/fourth", "1").unwrap();
    assert!(!std::fs::read_to_string(&file).unwrap().contains("/third"));
    assert!(std::fs::read_to_string(other).unwrap().contains("/fourth"));
    assert_eq!(host.control(&["logfile", "/nope/nope"]).unwrap_err().errno(), Some(Errno::EIO));
}

#[test]
fn a_service_manager_opens_the_socket_and_hears_when_it_is_ready() {
    let folder = tempfile::tempdir().unwrap();
    let (path, notify) = (folder.path().join("activated"), folder.path().join("notify"));
    let listener = UnixListener::bind(&path).unwrap();
    let notified = UnixDatagram::bind(&notify).unwrap();
    notified.set_read_timeout(LONG).unwrap();
    // The shell is what a service manager does between fork and exec.
    let script =
        format!("exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec {BINARY} -N --log error");
    let mut child = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .env("XENSTORED_RUNDIR", folder.path().join("unused"))
        .env("NOTIFY_SOCKET", &notify)
        .spawn()
        .unwrap();
    let mut text = [0; 64];
    let len = notified.recv(&mut text).unwrap();
    assert_eq!(&text[..len], b"READY=1");
    let mut client = xenstored::client::Client::connect(&path).unwrap();
    client.write("/a", "1").unwrap();
    // It goes on after a live update, which passes no sockets of that kind.
    assert_eq!(client.control(&["live-update", "-f", BINARY]).unwrap(), "OK");
    assert_eq!(client.control(&["live-update", "-s"]).unwrap(), "OK");
    assert_eq!(client.read("/a").unwrap(), b"1");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(path.exists(), "the socket is the service manager's");
}

#[test]
fn w9_very_few_descriptors_are_enough_for_some() {
    for limit in [24, 64] {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("ulimit -n {limit}; exec {BINARY} -N --log error --ready-fd 1");
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script])
            .env("XENSTORED_RUNDIR", folder.path())
            .env_remove("XENSTORED_PATH")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut host = xenstored::client::Client::connect(folder.path().join("socket")).unwrap();
        host.set_timeout(LONG);
        let guest = Guest::new();
        host.introduce(5, 1, 2, guest.fds()).unwrap();
        assert_eq!(host.control(&["check"]).unwrap(), "OK");
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

/// A daemon that may have so many descriptors, and its log.
fn limited(limit: u32, folder: &std::path::Path) -> std::process::Child {
    let script = format!("ulimit -n {limit}; exec {BINARY} -N --ready-fd 1 2>$XENSTORED_RUNDIR/log");
    let mut child = Command::new("/bin/sh")
        .args(["-c", &script])
        .env("XENSTORED_RUNDIR", folder)
        .env_remove("XENSTORED_PATH")
        .env_remove("XENSTORED_LOG")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    child
}

#[test]
fn w9_clients_leave_descriptors_for_domains_and_the_first_without_any_is_told_enospc() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = limited(64, folder.path());
    let path = folder.path().join("socket");
    let mut host = xenstored::client::Client::connect(&path).unwrap();
    host.set_timeout(LONG);
    let _clients: Vec<_> = (0..100).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let guests: Vec<Guest> = (0..16).map(|_| Guest::new()).collect();
    let introduced: Vec<_> =
        (1..).zip(&guests).map(|(domid, guest)| host.introduce(domid, 1, 2, guest.fds())).collect();
    let first = introduced.iter().position(Result::is_err).unwrap();
    assert!(first >= 4, "a quarter of 64 is enough for four: {first}");
    assert!(introduced[first..].iter().all(|done| done.as_ref().unwrap_err().errno() == Some(Errno::ENOSPC)));
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    let line = format!("INTRODUCE of domain {} refused: descriptors are used up", first + 1);
    assert!(log.contains(&line), "{log}");
    // There is room again when one has gone.
    host.release(1).unwrap();
    host.introduce(17, 1, 2, guests[0].fds()).unwrap();
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_log_says_whose_introduce_was_refused_and_for_which_descriptor_and_who_is_above_the_soft_quota() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = limited(1024, folder.path());
    let mut host = xenstored::client::Client::connect(folder.path().join("socket")).unwrap();
    host.set_timeout(LONG);
    let plain = tempfile::tempfile().unwrap();
    let (guest, short) = (Guest::new(), Guest::with_page(100));
    let fds = || guest.fds();
    let life = plain.as_fd();
    for (domid, fds) in [
        (3, RingFds { page: plain.as_fd(), ..fds() }),
        (4, RingFds { kick: plain.as_fd(), ..fds() }),
        (5, RingFds { lifeline: Some(life), ..fds() }),
        (6, RingFds { page: short.fds().page, ..fds() }),
    ] {
        assert_eq!(host.introduce(domid, 1, 2, fds).unwrap_err().errno(), Some(Errno::EINVAL));
    }
    let mut guest = Guest::new();
    host.mkdir("/local/domain/9").unwrap();
    host.set_perms("/local/domain/9", &["n9".parse().unwrap()]).unwrap();
    host.introduce(9, 1, 2, guest.fds()).unwrap();
    assert_eq!(host.control(&["quota-soft", "set", "memory", "1000"]).unwrap(), "OK");
    let value = [&b"x\0"[..], &[b'v'; 1500]].concat();
    assert_eq!(guest.request(11, &value).0, 11);
    assert_eq!(guest.request(2, b"nope\0").0, 16);
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    for line in [
        "INTRODUCE of domain 3 refused: ring page: no memfd",
        "INTRODUCE of domain 4 refused: kick and notify must be eventfds",
        "INTRODUCE of domain 5 refused: the life line must be a stream socket",
        "INTRODUCE of domain 6 refused: ring page: shorter than 4096 bytes",
        "domain 9 uses ",
        " 0 of them unread messages: above its soft quota of 1000",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn live_update_arguments_without_effect_are_said_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = limited(1024, folder.path());
    let socket = folder.path().join("socket");
    let mut host = xenstored::client::Client::connect(&socket).unwrap();
    host.set_timeout(LONG);
    for args in [
        &["-f", BINARY][..],
        &["-c", "-N -Q nodes=7 -Q watches=128 -q memory=9 --socket /nonexistent/other"],
        &["-s"],
    ] {
        assert_eq!(host.control(&[&["live-update"], args].concat()).unwrap(), "OK");
    }
    host.read("/").unwrap();
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    for line in [
        "nodes 7 of the arguments is left out: 1000 goes on".to_owned(),
        "soft-memory 9 of the arguments is left out: 2097152 goes on".to_owned(),
        format!("--socket /nonexistent/other is left out: it goes on serving {}", socket.display()),
        format!("goes on serving {}", socket.display()),
    ] {
        assert!(log.contains(&line), "{line}: {log}");
    }
    assert!(!log.contains("watches"), "{log}");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn looking_at_the_counters_tells_no_watch_and_is_in_no_transactions_way() {
    let daemon = Daemon::start();
    let (mut host, mut other) = (daemon.client(), daemon.client());
    host.read("/").unwrap();
    other.directory("/tool/xenstored").unwrap();
    for path in ["/", "/tool", "/tool/xenstored/total"] {
        host.watch(path, "t").unwrap();
        event(&mut host);
    }
    let mut others = Vec::new();
    host.transaction(|host| {
        assert!(others.is_empty(), "it is run again");
        let before = host.directory("/tool/xenstored/connection")?;
        host.read("/tool/xenstored/total")?;
        host.write("/a", "1")?;
        others.push(daemon.client());
        // So long they stay as they are.
        std::thread::sleep(Duration::from_millis(5100));
        assert_ne!(other.directory("/tool/xenstored/connection")?, before);
        xenstored::client::Result::Ok(())
    })
    .unwrap();
    assert_eq!(event(&mut host), ("/a".to_owned(), "t".to_owned()), "the first one it hears of");
}

#[test]
fn what_many_transactions_took_is_given_back() {
    let daemon = Daemon::start();
    let (before, many) = (daemon.status("VmRSS:"), 100_000);
    let mut host = daemon.client();
    for _ in 0..many {
        host.request(MsgType::TRANSACTION_START, "", &[b"\0"], &[]).unwrap();
    }
    let most = daemon.status("VmRSS:");
    drop(host);
    let began = std::time::Instant::now();
    while daemon.status("VmRSS:") > before + (most - before) / 4 {
        assert!(began.elapsed() < Duration::from_secs(20), "{before} {most} {}", daemon.status("VmRSS:"));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// With few descriptors: clients wait until others leave, domains still come, and nothing spins.
#[test]
fn w9_clients_beyond_the_descriptors_wait_and_nothing_spins() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("ulimit -n 128; exec {BINARY} -N --log error --ready-fd 1");
    let mut child = Command::new("/bin/sh")
        .args(["-c", &script])
        .env("XENSTORED_RUNDIR", folder.path())
        .env_remove("XENSTORED_PATH")
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let path = folder.path().join("socket");
    let mut request = Vec::new();
    xenstored::wire::put(&mut request, MsgType::READ, 0, 0, &[b"/tool\0"]).unwrap();
    let mut clients: Vec<UnixStream> = (0..150)
        .map(|_| {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(&request).unwrap();
            client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            client
        })
        .collect();
    let mut served = |client: &mut UnixStream| match client.read(&mut [0; 64]) {
        Ok(count) => count > 0,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            false
        }
    };
    let mut waiting = clients.split_off(40);
    assert!(clients.iter_mut().all(&mut served));
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(1));
    // One tick is 10 ms: a loop that spins would take a hundred.
    assert!(ticks() - before < 30, "it spins");
    drop(clients);
    let mut rest = 0;
    while !waiting.is_empty() {
        let mut client = waiting.remove(0);
        client.set_read_timeout(LONG).unwrap();
        assert!(served(&mut client), "{rest} were served");
        rest += 1;
    }
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    child.wait().unwrap();
}
