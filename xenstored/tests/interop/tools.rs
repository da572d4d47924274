//! Our tool beside Debian's xenstore-utils, each with a store of its own: the same commands must give the same output,
//! the same complaints and the same exit status, byte by byte, on terminals of any width too.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::pty::{Winsize, openpty};

use crate::random::Random;
use crate::{Daemon, OURS, installed};

const DEBIANS: &str = "/usr/bin/xenstore";

/// Commands in order, words apart by blanks; `''` is an empty word, `_` in a word a blank.
const COMMANDS: &[&str] = &[
    "",
    "nope",
    "write /a/b/c hello /a/d '' /a/e a\\tb\\n\\x41\\101\\\\ /a/f \\x4\\xzz\\18\\777\\q\\",
    "write /a/long vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv",
    "write /a/wide/name-that-is-long-enough-to-fill-a-terminal-of-forty-columns_x 1",
    "write /a/wide/name-that-is-long-enough-to-fill-a-terminal-of-forty-columns 1",
    "read /a/b/c /a/e /a/f",
    "read -p /a/b/c /a/d",
    "read -R /a/e",
    "read -pR /a/e /a/d",
    "read --raw --prefix /a/e",
    "read /a/d /nope",
    "read",
    "read -h",
    "read -f /a",
    "read -q /a",
    "read --no-such /a",
    "read --r /a",
    "read --pre /a",
    "read --raw=1 /a",
    "read -s /a -- -p",
    "write -R /a/raw a\\tb",
    "write /a",
    "write /minus -1",
    "write -- /minus -1",
    "write /one 1 /bad/ 2",
    "write rel/x 1",
    "exists /one",
    "exists /a /a/b",
    "exists",
    "exists -p /a",
    "list /a /",
    "list -p /a /a/wide",
    "list /nope",
    "chmod -r /a r0 b7",
    "chmod -u /a/b/c n0",
    "chmod -ru /a/b b0 r12x",
    "chmod /a n0x1 w",
    "chmod /a q0",
    "chmod /a ''",
    "chmod /a r70000",
    "chmod /a r-1",
    "chmod /nope n0",
    "chmod -u rel/x n0",
    "chmod /a",
    "chmod",
    "ls",
    "ls /a",
    "ls -p",
    "ls -f",
    "ls -fp /a",
    "ls --flat --prefix /a",
    "ls -s /a /a/b",
    "ls /a /nope",
    "ls -h",
    "ls -n 1",
    "watch -n 2 /a @releaseDomain",
    "watch -n1 /nope",
    "watch -n 0 /a",
    "watch -n x /a",
    "watch -n",
    "watch --number",
    "watch --num=1 /a",
    "watch -n 1 //",
    "watch -n 1 /a /a",
    "watch",
    "rm /nope/deep /a",
    "rm -t /a/b/c",
    "rm --tidy rel/x",
    "rm /",
    "rm /a",
    "ls -f",
];

/// Terminals that every listing is shown on; none first.
const WIDTHS: [Option<u16>; 10] =
    [None, Some(0), Some(2), Some(9), Some(11), Some(20), Some(40), Some(62), Some(80), Some(200)];

fn run(program: &Path, daemon: &Daemon, args: &[String], width: Option<u16>) -> Output {
    let mut command = Command::new(program);
    command.env("XENSTORED_PATH", daemon.socket()).args(args).stdin(Stdio::null()).stderr(Stdio::piped());
    let Some(ws_col) = width else { return command.output().unwrap() };
    let terminal = openpty(&Winsize { ws_row: 24, ws_col, ws_xpixel: 0, ws_ypixel: 0 }, None).unwrap();
    let child = command.stdout(terminal.slave).spawn().unwrap();
    // The other end is open in `command` still; without it the last reader's end says so by an error.
    drop(command);
    let mut stdout = Vec::new();
    let _ = File::from(terminal.master).read_to_end(&mut stdout);
    Output { stdout, ..child.wait_with_output().unwrap() }
}

/// A line of a listing about the daemon itself: what it counts need not be the same in two daemons.
fn is_count(line: &str) -> bool {
    let folder = |name: &str| line.trim_start().trim_start_matches("/tool/xenstored/").starts_with(name);
    line.contains(" = \"requests ") || folder("connection = ") || folder("domain = ")
}

fn show(output: &Output, program: &Path) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let out: String = out.split_inclusive('\n').filter(|line| !is_count(line)).collect();
    format!("status {:?}\n{out}--- {err}", output.status.code())
        .replace(&*program.to_string_lossy(), "xenstore")
}

/// Whether Debian's tool is there, and the one that ours takes after: 4.20's has other usage lines.
fn comparable() -> bool {
    let Some(tool) = installed(DEBIANS, "xenstore-utils") else { return false };
    let usage = Command::new(tool).args(["read", "-h"]).output().unwrap();
    let known = String::from_utf8_lossy(&usage.stderr).contains("[-s]");
    if !known {
        crate::say_skip(&format!("{DEBIANS} is not of Xen 4.17"));
    }
    known
}

/// Gives a command to either tool.
fn compare(stores: &(Daemon, Daemon), args: &[String], width: Option<u16>) {
    let (debians, ours) = (Path::new(DEBIANS), Path::new(OURS));
    let theirs = show(&run(debians, &stores.0, args, width), debians);
    let ours = show(&run(ours, &stores.1, args, width), ours);
    assert_eq!(ours, theirs, "xenstore {args:?}, width {width:?}");
}

#[test]
fn our_tool_does_what_debians_does() {
    if !comparable() {
        return;
    }
    let stores = (Daemon::start(), Daemon::start());
    for line in COMMANDS {
        let word = |word: &str| if word == "''" { String::new() } else { word.replace('_', " ") };
        let args: Vec<String> = line.split_whitespace().map(word).collect();
        let widths = if line.starts_with("ls") && line.contains(" /a") { &WIDTHS[..] } else { &WIDTHS[..1] };
        widths.iter().for_each(|width| compare(&stores, &args, *width));
    }
}

/// Modes, options and words put together by chance, from a fixed seed. An empty path is left to `COMMANDS`: Debian's
/// chmod takes it for success.
#[test]
fn our_tool_does_what_debians_does_whatever_it_is_told() {
    const MODES: [&str; 8] = ["read", "write", "list", "ls", "rm", "exists", "chmod", "watch"];
    const PATHS: [&str; 14] = [
        "/a",
        "/a/b",
        "/a/b/c",
        "/x/y/z",
        "a/b",
        "rel",
        "/a/",
        "//a",
        "/a b",
        "/nope/x",
        "@releaseDomain",
        "@x",
        "/",
        "/tool",
    ];
    const VALUES: [&str; 10] =
        ["", "1", "a\\tb", "\\x41\\x4", "\\7\\779", "\\", "é", "sp ace", "\"q\"", "\\r\\n"];
    const PERMS: [&str; 9] = ["n0", "r0", "b7", "w3", "x0", "r99999", "rr", "n 3", "b07x"];
    const OPTIONS: [&str; 16] = [
        "-h",
        "-f",
        "-p",
        "-s",
        "-t",
        "-u",
        "-r",
        "-R",
        "-q",
        "-fp",
        "-n",
        "--help",
        "--flat",
        "--re",
        "--number=2",
        "--",
    ];
    if !comparable() {
        return;
    }
    let stores = (Daemon::start(), Daemon::start());
    let mut random = Random::new(1);
    for _ in 0..400 {
        let mode = random.pick(&MODES);
        // A watch without a number would wait for ever.
        let mut args = if mode == "watch" { vec![mode, "-n1"] } else { vec![mode] };
        let options: &[&str] = if mode == "watch" { &OPTIONS[..10] } else { &OPTIONS };
        (0..random.below(3)).for_each(|_| args.push(random.pick(options)));
        // A listing of all shows what the daemons count, cut where a terminal ends.
        let (least, paths) = if mode == "ls" { (1, &PATHS[..12]) } else { (0, &PATHS[..]) };
        for at in 0..random.below(5).max(least) {
            args.push(random.pick(match (mode, at) {
                ("write", at) if at % 2 == 1 => &VALUES[..],
                ("chmod", 1..) => &PERMS,
                _ => paths,
            }));
        }
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let width = if mode == "ls" { random.pick(&WIDTHS) } else { None };
        compare(&stores, &args, width);
    }
}

#[test]
fn the_tool_answers_to_links() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        let path = folder.path().join(name);
        std::os::unix::fs::symlink(OURS, &path).unwrap();
        path
    };
    let run = |name: &str, args: &[&str]| {
        let (path, args) = (link(name), args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        let output = run(&path, &daemon, &args, None);
        show(&output, &path)
    };
    assert_eq!(run("xenstore-write", &["/a", "1"]), "status Some(0)\n--- ");
    assert_eq!(run("xenstore-read", &["/a"]), "status Some(0)\n1\n--- ");
    let usage = "status Some(1)\n--- xenstore-rm: Usage: xenstore [-h] [-s] [-t] key [...]\n";
    assert_eq!(run("xenstore-rm", &[]), usage);
    assert_eq!(
        run("xenstore-ls", &["-q", "/tool"]),
        "status Some(0)\nxenstored = \"\"\n--- xenstore: invalid option -- 'q'\n"
    );
    assert_eq!(run("xenstore-control", &["check"]), "status Some(0)\nOK\n--- ");
}
