//! Our tool beside Debian's xenstore-utils: the same commands, the same output, the same exit status.

use std::path::Path;
use std::process::{Command, Output};

use crate::host::Daemon;

/// Commands in order; every one is given to either tool, each with a store of its own.
const COMMANDS: &[&[&str]] = &[
    &["write", "/a/b/c", "hello", "/a/d", "", "/a/e", "a\\tb\\n\\x41\\101\\\\"],
    &["read", "/a/b/c", "/a/e"],
    &["read", "-p", "/a/b/c", "/a/d"],
    &["read", "-R", "/a/e"],
    &["read", "/nope"],
    &["read"],
    &["write", "-R", "/a/raw", "a\\tb"],
    &["write", "/a"],
    &["write", "/one", "1", "/bad/", "2"],
    &["exists", "/one"],
    &["exists", "/a", "/a/b"],
    &["list", "/a", "/"],
    &["list", "-p", "/a"],
    &["list", "/nope"],
    &["chmod", "-r", "/a", "r0", "b7"],
    &["chmod", "-u", "/a/b/c", "n0"],
    &["chmod", "/a", "q0"],
    &["chmod", "/nope", "n0"],
    &["chmod"],
    &["ls"],
    &["ls", "-p"],
    &["ls", "-f"],
    &["ls", "-fp", "/a"],
    &["ls", "-s", "/a", "/a/b"],
    &["ls", "/nope"],
    &["ls", "-h"],
    &["watch", "-n", "2", "/a", "@releaseDomain"],
    &["watch"],
    &["rm", "/nope/deep", "/a"],
    &["rm", "-t", "/a/b/c"],
    &["rm", "/a"],
    &["ls", "-f"],
];

fn run(program: &Path, daemon: &Daemon, args: &[&str]) -> Output {
    Command::new(program).env("XENSTORED_PATH", daemon.socket()).args(args).output().unwrap()
}

fn show(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("status {:?}\n{out}--- {err}", output.status.code())
}

#[test]
fn our_tool_does_what_debians_does() {
    let debians = Path::new("/usr/bin/xenstore");
    if !debians.exists() {
        println!("SKIP: {} is missing (package xenstore-utils)", debians.display());
        return;
    }
    let (theirs, ours) = (Daemon::start(), Daemon::start());
    for args in COMMANDS {
        let tool = env!("CARGO_BIN_EXE_xenstore");
        let theirs = show(&run(debians, &theirs, args)).replace("/usr/bin/xenstore", "xenstore");
        let ours = show(&run(Path::new(tool), &ours, args)).replace(tool, "xenstore");
        assert_eq!(ours, theirs, "xenstore {}", args.join(" "));
    }
}

#[test]
fn the_tool_answers_to_links() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        let path = folder.path().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_xenstore"), &path).unwrap();
        path
    };
    let written = run(&link("xenstore-write"), &daemon, &["/a", "1"]);
    assert!(written.status.success(), "{}", show(&written));
    assert_eq!(run(&link("xenstore-read"), &daemon, &["/a"]).stdout, b"1\n");
    let rm = link("xenstore-rm");
    let usage = show(&run(&rm, &daemon, &[])).replace(&*rm.to_string_lossy(), "PATH");
    assert_eq!(usage, "status Some(1)\n--- xenstore-rm: Usage: PATH [-h] [-s] [-t] key [...]\n");
    let control = run(&link("xenstore-control"), &daemon, &["check"]);
    assert_eq!(control.stdout, b"OK\n");
}
