//! Programs that nobody here wrote, beside ours or against our daemon. One that is not installed is a SKIP line that
//! says what to install, or a failure where `XLR_INTEROP_REQUIRED` is set.
#![expect(clippy::unwrap_used, reason = "a panic is the verdict of a test")]

mod clients;
mod control;
mod random;
mod tools;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use xenstored::client::Client;

/// Our tool.
const OURS: &str = env!("CARGO_BIN_EXE_xenstore");

/// A daemon in a folder of its own.
struct Daemon {
    folder: TempDir,
    child: Child,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenstored"));
        command.env_remove("XENSTORED_PATH").env("XENSTORED_RUNDIR", folder.path());
        command.args(["-N", "--no-counters", "--log", "error", "--ready-fd", "1"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { folder, child }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn client(&self) -> Client {
        Client::connect(self.socket()).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of a package, or a line that says what is missing.
fn installed(path: &'static str, package: &str) -> Option<&'static Path> {
    let found = Path::new(path).exists().then(|| Path::new(path));
    if found.is_none() {
        skip(&format!("{path} is missing: apt-get install {package}"));
    }
    found
}

/// A test does without a package that is missing; where none may be, it fails.
fn skip(why: &str) {
    assert!(std::env::var_os("XLR_INTEROP_REQUIRED").is_none(), "XLR_INTEROP_REQUIRED is set, but {why}");
    say_skip(why);
}

/// Not by the macro, whose output the test harness keeps to itself.
fn say_skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP: {why}");
}
