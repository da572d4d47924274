//! Our own programs and microkernels, built for the lab: static, so that L1 needs no library of the host's.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::step::step;

const HOST: &str = "x86_64-unknown-linux-gnu";
const BARE: &str = "x86_64-unknown-none";
/// Microkernels of 32 bits; `.cargo/config.toml` has what it takes to use this target without a system.
const BARE_32: &str = "i586-unknown-linux-gnu";
/// The packages L1 has programs of, with what each must yield for `/usr/bin`.
const PACKAGES: [(&str, &[&str]); 4] = [
    ("toolstack", &["xlr", "xlr-pygrub"]),
    ("xen-emu", &["xen-emu"]),
    ("xenstored", &["xenstored", "xenstore"]),
    // For guests, whose initramfs a test adds it to.
    ("channel", &["channel"]),
];
/// The package of the microkernels.
const MICROKERNELS: &str = "guest";

/// What can be built for L1, by package.
pub const ALL: [&str; 5] = ["toolstack", "xen-emu", "xenstored", "channel", MICROKERNELS];

/// What was built.
#[derive(Debug, Default)]
pub struct Built {
    /// Static programs for L1.
    pub programs: Vec<PathBuf>,
    /// Microkernels, each a guest.
    pub micro: Vec<PathBuf>,
}

/// Builds the named packages of `ALL`.
pub fn build(packages: &[&str], debug: bool) -> Result<Built> {
    if let Some(unknown) = packages.iter().find(|name| !ALL.contains(name)) {
        bail!("nothing to build is called {unknown:?}; there are {}", ALL.join(", "));
    }
    let wanted: Vec<_> = PACKAGES.into_iter().filter(|(name, _)| packages.contains(name)).collect();
    let programs =
        if wanted.is_empty() { Vec::new() } else { step("static binaries", || programs(&wanted, debug))? };
    let micro =
        if packages.contains(&MICROKERNELS) { step("microkernels", microkernels)? } else { Vec::new() };
    Ok(Built { programs, micro })
}

/// The folder of the clone this program was built from.
pub fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The clone's target folder, or the one cargo is told to use.
pub fn target_folder() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

fn programs(packages: &[(&str, &[&str])], debug: bool) -> Result<Vec<PathBuf>> {
    let compiler = Command::new("cc").arg("--version").stdout(Stdio::null()).status();
    ensure!(compiler.is_ok_and(|s| s.success()), "no C compiler to link with: apt-get install gcc libc6-dev");
    let mut command = build_command(&["--bins", "--target", HOST]);
    for (package, _) in packages {
        command.args(["-p", package]);
    }
    // With an explicit target the flags are for it alone, so that procedural macros still load.
    command.env("RUSTFLAGS", "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs");
    if !debug {
        command.arg("--release");
    }
    let built = executables(&mut command)?;
    for program in packages.iter().flat_map(|(_, programs)| *programs) {
        ensure!(built.iter().any(|path| path.ends_with(program)), "the workspace built no {program}");
    }
    Ok(built)
}

fn microkernels() -> Result<Vec<PathBuf>> {
    for target in [BARE, BARE_32] {
        install_target(target)?;
    }
    let common = ["-p", MICROKERNELS, "--release", "--target"];
    let wide = executables(&mut build_command(&[&common[..], &[BARE, "--bins"]].concat()))?;
    let narrow = [BARE_32, "--features", "bits32", "--bin", "bits32"];
    let narrow = executables(&mut build_command(&[&common[..], &narrow].concat()))?;
    Ok([wide, narrow].concat())
}

/// Has rustup fetch a target of `rust-toolchain.toml` that is not there. rustup does so by itself when it fetches the toolchain, but not for
/// a toolchain that was there before, where it may not install anything unasked (`RUSTUP_AUTO_INSTALL=0`).
fn install_target(target: &str) -> Result<()> {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--print", "target-libdir", "--target", target]).current_dir(workspace());
    let found = rustc.output().context("cannot run rustc")?;
    let folder = String::from_utf8_lossy(&found.stdout);
    if found.status.success() && Path::new(folder.trim()).is_dir() {
        return Ok(());
    }
    let added = Command::new("rustup").args(["target", "add", target]).current_dir(workspace()).status();
    ensure!(
        added.is_ok_and(|status| status.success()),
        "the Rust toolchain has no {target}: rustup target add {target}"
    );
    Ok(())
}

/// One of cargo's commands on the workspace, with a target folder of the lab's own.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args([subcommand, "--quiet"]);
    command.arg("--target-dir").arg(target_folder().join("lab")).current_dir(workspace());
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

fn build_command(args: &[&str]) -> Command {
    let mut command = cargo("build");
    command.arg("--message-format=json-render-diagnostics").args(args);
    command
}

fn executables(command: &mut Command) -> Result<Vec<PathBuf>> {
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo build failed ({})", output.status);
    let text = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages.filter_map(|m| m["executable"].as_str().map(PathBuf::from)).collect())
}
