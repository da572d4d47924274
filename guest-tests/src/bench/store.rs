//! `cargo lab bench store`: our xenstored beside the C one of Debian 13, on this machine itself. The load generator is
//! `xenstored/benches/peers`; C xenstored runs on a stand-in for Xen's libraries, `bench/xenshim.c`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::binaries;
use crate::cache::Cache;
use crate::packages::{XEN_LIBRARIES, XENSTORED};
use crate::step::step;

/// A daemon that does not serve after so long never will.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon under load, ended with this.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures and prints; the figures of all rounds are left in `target/lab/bench/store.json`.
pub fn run(cache: &Cache, rounds: u32, seconds: u32) -> Result<u8> {
    let built = binaries::build(&["xenstored"], false)?;
    let ours =
        built.programs.iter().find(|path| path.ends_with("xenstored")).context("no xenstored was built")?;
    let folder = tempfile::tempdir()?;
    let (own, peer) = (folder.path().join("xlr"), folder.path().join("c"));
    let mut command = Command::new(ours);
    command.args(["-N", "--log", "error"]);
    let _ours = start(command, &own)?;
    let _peer = start(c_xenstored(cache, &peer)?, &peer)?;
    let out = binaries::target_folder().join("lab/bench");
    fs::create_dir_all(&out)?;
    let mut load = binaries::cargo("bench");
    load.args(["-p", "xenstored", "--bench", "peers", "--"]);
    load.arg("--rounds").arg(rounds.to_string()).arg("--seconds").arg(seconds.to_string());
    load.arg("--floor").arg("--json").arg(out.join("store.json"));
    load.arg(format!("xlr={}/socket", own.display()));
    load.arg(format!("c-4.20={0}/socket,{0}", peer.display()));
    let status = load.status().context("cannot run cargo bench")?;
    Ok(u8::from(!status.success()))
}

/// Starts a daemon in a folder of its own and waits until it serves.
fn start(mut command: Command, folder: &Path) -> Result<Daemon> {
    fs::create_dir_all(folder)?;
    let socket = folder.join("socket");
    command.env("XENSTORED_RUNDIR", folder).env("XENSTORED_PATH", &socket).stdin(Stdio::null());
    let mut daemon = Daemon(command.spawn().with_context(|| format!("cannot start {command:?}"))?);
    let limit = Instant::now() + PATIENCE;
    while !socket.exists() {
        if let Some(status) = daemon.0.try_wait()? {
            bail!("{command:?} ended ({status})");
        }
        ensure!(Instant::now() < limit, "{command:?} does not serve");
        sleep(Duration::from_millis(20));
    }
    Ok(daemon)
}

/// The daemon of Debian 13 with its own loader and libraries, but ours for those that need Xen.
fn c_xenstored(cache: &Cache, folder: &Path) -> Result<Command> {
    let (program, libraries) = (XENSTORED.get(cache)?, XEN_LIBRARIES.get(cache)?);
    let libraries = libraries.join("usr/lib/x86_64-linux-gnu");
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(&libraries);
    command.arg(program.join("usr/lib/xen-4.20/bin/xenstored")).arg("-N");
    fs::create_dir_all(folder)?;
    command.env("LD_PRELOAD", shim(folder)?).env("XENSHIM_DIR", folder);
    Ok(command)
}

fn shim(folder: &Path) -> Result<PathBuf> {
    let library = folder.join("xenshim.so");
    let source = binaries::workspace().join("guest-tests/bench/xenshim.c");
    step("stand-in for Xen's libraries", || {
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source).arg("-ldl");
        ensure!(cc.status().context("no C compiler")?.success(), "{cc:?} failed");
        Ok(())
    })?;
    Ok(library)
}
