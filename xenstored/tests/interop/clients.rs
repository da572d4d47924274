//! Client libraries of other people against our daemon.

use std::path::Path;
use std::process::{Command, Output};

use crate::{Daemon, installed, say_skip, skip};

const PYTHON: &str = "/usr/bin/python3";

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}

fn succeeded(output: &Output) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.trim_end().ends_with("done"), "{}\n{out}{err}", output.status);
}

/// Runs a script against a daemon; `import` is what it cannot do without, from `package`.
fn python(script: &str, import: &str, package: &str) {
    if installed(PYTHON, "python3").is_none() {
        return;
    }
    if !Command::new(PYTHON).args(["-c", import]).output().unwrap().status.success() {
        skip(&format!("{script} cannot `{import}`: apt-get install {package}"));
        return;
    }
    let daemon = Daemon::start();
    let mut command = Command::new(PYTHON);
    let command = command.arg(folder().join("interop").join(script)).env("XENSTORED_PATH", daemon.socket());
    succeeded(&command.output().unwrap());
    assert_eq!(daemon.client().control(&["check"]).unwrap(), "OK");
}

#[test]
fn pyxs() {
    python("client_pyxs.py", "import pyxs", "python3-pyxs");
}

#[test]
fn libxenstore() {
    let import = "import ctypes; ctypes.CDLL('libxenstore.so.4')";
    python("client_libxenstore.py", import, "libxenstore4");
}

/// In a workspace of its own: its licence is not ours, and nothing of it is linked into our programs.
#[test]
fn xenstore_rs() {
    let package = folder().join("xenstore-rs");
    let cargo = |command: &str| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args([command, "--quiet", "--locked", "--manifest-path"]).arg(package.join("Cargo.toml"));
        cargo
    };
    if !cargo("fetch").output().unwrap().status.success() {
        say_skip(&format!("the crates of {} cannot be fetched", package.display()));
        return;
    }
    let daemon = Daemon::start();
    let mut run = cargo("run");
    run.arg("--target-dir").arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("xenstore-rs"));
    succeeded(&run.env("XENSTORED_PATH", daemon.socket()).output().unwrap());
    assert_eq!(daemon.client().control(&["check"]).unwrap(), "OK");
}
