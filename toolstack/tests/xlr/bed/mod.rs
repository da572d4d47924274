//! The bed a test lies in: directories, programs, the store.

mod domain;
mod store;

pub use domain::FakeDomain;
pub use store::FakeStore;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use xen_emu_api::config::Launch;
use xen_emu_api::run_dir::RunRoot;

/// Stands for the domain's program: fails when the command line asks for it, else reports `ok` as soon as somebody
/// serves the domain.
const XEN_EMU: &str = r#"#!/bin/sh
if [ "$1" = --probe ]; then
    echo '{"kvm":true,"xen_hvm":111,"backend":"kernel","reason":""}'
    exit
fi
if grep -q '"cmdline": "no-note' "$2/launch.json"; then
    eval "echo 'kernel /k: no PVH entry' >&$4"
    exit 1
fi
if grep -q '"cmdline": "die' "$2/launch.json"; then
    echo 'last words' >&2
    exit 7
fi
while [ ! -S "$2/control.sock" ]; do sleep 0.01; done
eval "echo ok >&$4"
"#;

/// Where one test happens.
pub struct Bed {
    dir: tempfile::TempDir,
    pub store: FakeStore,
}

/// What a run of xlr left.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Bed {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(programs(), dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("kernel"), "kernel").unwrap();
        let store = FakeStore::serve(&dir.path().join("store"));
        Bed { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> RunRoot {
        RunRoot::at(self.path("run")).unwrap()
    }

    /// xlr in the bed's directory, all paths its own.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/xlr"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("XLR_RUN_DIR", self.path("run")).env("XENSTORED_PATH", self.path("store"));
        command.env("XLR_XL_CONF", self.path("xl.conf"));
        command
    }

    pub fn xlr(&self, args: &[&str]) -> Ran {
        ran(self.command(args).output().unwrap())
    }

    /// A configuration file that is right, and `more`.
    pub fn config(&self, more: &str) -> &'static str {
        let text = format!("name = 'web'\ntype = 'pvh'\nkernel = 'kernel'\nmemory = 64\n{more}\n");
        fs::write(self.path("web.cfg"), text).unwrap();
        "web.cfg"
    }

    /// Serve the next domain that is created, as soon as its launch is there.
    pub fn expect_domain(&self, domid: u16) -> JoinHandle<FakeDomain> {
        let (root, store) = (self.root(), self.store.clone());
        thread::spawn(move || {
            let dir = root.domain(domid);
            wait_until(|| {
                fs::read(dir.launch()).is_ok_and(|text| serde_json::from_slice::<Launch>(&text).is_ok())
            });
            FakeDomain::start(dir, store)
        })
    }

    /// Names of all directories of domains.
    pub fn domain_dirs(&self) -> Vec<u16> {
        self.root().domains().unwrap().into_iter().map(|dir| dir.domid).collect()
    }
}

/// xlr and the domain's program side by side. Made once, before any test has a child: a file that a child of another
/// thread still has open for writing cannot be executed.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bin");
        fs::create_dir_all(&dir).unwrap();
        for name in ["xlr", "xl"] {
            let _ = fs::remove_file(dir.join(name));
            fs::hard_link(env!("CARGO_BIN_EXE_xlr"), dir.join(name)).unwrap();
        }
        let xen_emu = dir.join("xen-emu");
        fs::write(&xen_emu, XEN_EMU).unwrap();
        fs::set_permissions(xen_emu, fs::Permissions::from_mode(0o755)).unwrap();
        dir
    })
}

pub fn ran(output: Output) -> Ran {
    Ran {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub fn wait_until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "it never happens");
        thread::sleep(Duration::from_millis(2));
    }
}
