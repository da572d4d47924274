//! What `xenstore-control` asks of a daemon and makes of the answers: one table for our tool and for Xen's.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use xenstored::wire::{Header, MsgType, put, split};

use crate::OURS;

/// Arguments; answers of the daemon, where a name of an error is one; the requests; status and all output. Words are
/// apart by blanks, requests by `;`, `|` is a NUL. The answer to any further request is `OK`.
const ROWS: &[(&str, &[&str], &str, &str)] = &[
    ("", &[], "", "2 Usage:\nTOOL <command> [<arg>...]\n"),
    ("check", &[], "check|", "0 OK\n"),
    ("check", &[""], "check|", "0 "),
    ("log +io -x", &[], "log|+io|-x|", "0 OK\n"),
    ("help", &["one\ntwo\n|"], "help|", "0 one\ntwo\n\n"),
    (
        "foo bar",
        &["EINVAL", "one\n|"],
        "foo|bar|;help|",
        "3 Command not supported. Valid commands are:\none\n\n",
    ),
    ("foo", &["EACCES"], "foo|", "3 Error 13 when trying to execute command.\n"),
    ("foo", &["ENOSYS"], "foo|", "3 Error 38 when trying to execute command.\n"),
    ("live-update", &[], "", "2 Missing binary specification\n"),
    ("live-update -F", &[], "", "2 Missing binary specification\n"),
    ("live-update -c", &[], "", "2 Missing command line value\n"),
    ("live-update /b -t", &[], "", "2 Missing timeout value\n"),
    ("live-update /b", &[], "live-update|-f|/b|;live-update|-s|-t|60|", "0 "),
    ("live-update -f /b", &[], "live-update|-f|/b|;live-update|-s|-t|60|", "0 "),
    (
        "live-update -c line -F -t 7 /b",
        &[],
        "live-update|-f|/b|;live-update|-c|line|;live-update|-s|-t|7|-F|",
        "0 ",
    ),
    (
        "live-update -t 9 /b",
        &["OK|", "BUSY|", "OK|"],
        "live-update|-f|/b|;live-update|-s|-t|9|;live-update|-s|-t|9|",
        "0 ",
    ),
    (
        "live-update /b",
        &["ENOENT"],
        "live-update|-f|/b|",
        "3 Setting update binary failed:\nNo such file or directory\n",
    ),
    ("live-update /b", &["bad|"], "live-update|-f|/b|", "3 Setting update binary failed:\nbad\n"),
    (
        "live-update /b",
        &["OK|", "Cannot|"],
        "live-update|-f|/b|;live-update|-s|-t|60|;live-update|-a|",
        "3 Starting live update failed:\nCannot\n",
    ),
    (
        "live-update /b",
        &["OK|", "EBUSY"],
        "live-update|-f|/b|;live-update|-s|-t|60|;live-update|-a|",
        "3 Starting live update failed:\nDevice or resource busy\n",
    ),
    (
        "live-update -t 0 /b",
        &[],
        "live-update|-f|/b|;live-update|-a|",
        "3 Starting live update failed:\nBUSY\n",
    ),
];

/// Serves one client and answers what it asked with CONTROL. READ is answered with ENOENT: Xen's tool looks for a daemon
/// that is a domain.
fn serve(listener: &UnixListener, answers: &[&str]) -> String {
    let (mut socket, _) = listener.accept().unwrap();
    let mut answers = answers.iter();
    let (mut asked, mut input) = (Vec::new(), Vec::new());
    loop {
        let mut chunk = [0; 4096];
        match socket.read(&mut chunk) {
            Ok(0) | Err(_) => return asked.join(";"),
            Ok(count) => input.extend_from_slice(&chunk[..count]),
        }
        while let Some((header, payload)) = split(&input).unwrap() {
            let Header { kind, req_id, tx_id, .. } = header;
            let taken = 16 + payload.len();
            let answer =
                if kind == MsgType::READ { "ENOENT" } else { answers.next().copied().unwrap_or("OK|") };
            if kind != MsgType::READ {
                asked.push(String::from_utf8_lossy(payload).replace('\0', "|"));
            }
            input.drain(..taken);
            let mut reply = Vec::new();
            let payload = answer.replace('|', "\0");
            if answer.starts_with('E') {
                put(&mut reply, MsgType::ERROR, req_id, tx_id, &[payload.as_bytes(), b"\0"]).unwrap();
            } else {
                put(&mut reply, kind, req_id, tx_id, &[payload.as_bytes()]).unwrap();
            }
            let _ = socket.write_all(&reply);
        }
    }
}

/// Plays the table with one tool.
fn play(tool: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    for (args, answers, requests, outcome) in ROWS {
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let answers = *answers;
        let daemon = thread::spawn(move || serve(&listener, answers));
        let output =
            Command::new(tool).env("XENSTORED_PATH", &socket).args(args.split_whitespace()).output().unwrap();
        // One that asks nothing may not even connect.
        drop(std::os::unix::net::UnixStream::connect(&socket));
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let text = text.replace(&*tool.to_string_lossy(), "TOOL");
        assert_eq!(
            format!("{} {text}", output.status.code().unwrap()),
            *outcome,
            "{} {args}",
            tool.display()
        );
        assert_eq!(daemon.join().unwrap(), *requests, "{} {args}", tool.display());
    }
}

#[test]
fn xenstore_control_as_xens() {
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("xenstore-control");
    std::os::unix::fs::symlink(OURS, &ours).unwrap();
    play(&ours);
    match xens() {
        Some(xens) => play(&xens),
        None => crate::say_skip(
            "no /usr/lib/xen-*/bin/xenstore-control that runs: apt-get install xen-utils-4.17",
        ),
    }
}

/// Xen's tool, or what the environment names instead.
fn xens() -> Option<PathBuf> {
    let named = std::env::var_os("XENSTORE_CONTROL").map(PathBuf::from);
    let folders = std::fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok).map(|entry| entry.path());
    let tools = named.into_iter().chain(folders.map(|folder| folder.join("bin/xenstore-control")));
    // Without arguments it says how it is called, if its libraries are there.
    tools
        .into_iter()
        .find(|tool| Command::new(tool).output().is_ok_and(|output| output.status.code() == Some(2)))
}
