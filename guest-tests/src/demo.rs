//! `cargo lab demo`: an unmodified Debian kernel as a Xen guest, on this machine's KVM where it can, else in the lab.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use console::Term;
use serde_json::Value;
use tempfile::TempDir;

use crate::binaries::{self, Built};
use crate::cache::Cache;
use crate::guests::{Guests, Linux};
use crate::kernel::Kernel;
use crate::l1::Contents;
use crate::qemu::default_memory_mib;
use crate::run::{End, Event, Job, once, with_retry};
use crate::script::quote;

/// The guest's kernel, and L1's.
const KERNEL: &str = "6.12-cloud";
/// What `create -c` is given; the demo only says where the kernel is and what the guest's init shall do.
const CONFIG: &str = "examples/debian.cfg";
/// Seconds for a whole demonstration.
const LIMIT: u64 = 300;

/// What the guest must have shown, and what each line proves.
const PROOFS: [(&str, &str); 5] = [
    ("Hypervisor detected: Xen HVM", "the kernel found Xen"),
    ("Booting kernel on Xen PVH", "it entered by its PVH note"),
    ("guest: clocksource xen", "its clock is Xen's"),
    ("guest: console hvc0", "its console is Xen's"),
    ("reboot: Power down", "it powered itself off"),
];

/// `cargo lab demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Keep the guest and give its console to this terminal
    #[arg(long)]
    stay: bool,
    /// Use the lab even if the local KVM could do
    #[arg(long)]
    lab: bool,
}

/// Shows the boot; status 0 when the guest showed all it must and powered itself off.
pub fn run(demo: &Demo) -> Result<u8> {
    let cache = Cache::open()?;
    let built = binaries::build(&["toolstack", "xen-emu", "xenstored"], false)?;
    let shortcoming = if demo.lab { Some("asked not to".to_owned()) } else { local_kvm_lacks(&built)? };
    match &shortcoming {
        None => eprintln!("lab: this machine's KVM has KVM_XEN: the guest runs right on it"),
        Some(why) => eprintln!("lab: not on this machine's own KVM ({why}): the guest runs in the lab's"),
    }
    let mut shown = Vec::new();
    let status = match shortcoming {
        None => on_local_kvm(&cache, &built, demo.stay, &mut shown)?,
        Some(_) => in_lab(&cache, built, demo.stay, &mut shown)?,
    };
    ensure!(status == 0, "xlr create ended with status {status}");
    if demo.stay {
        return Ok(0);
    }
    let shown = String::from_utf8_lossy(&shown);
    let missing: Vec<String> = PROOFS
        .iter()
        .filter(|(line, _)| !shown.contains(line))
        .map(|(line, proof)| format!("{line:?} ({proof})"))
        .collect();
    ensure!(missing.is_empty(), "the guest never showed {}", missing.join(", "));
    eprintln!("lab: a Debian kernel came up as a Xen PVH guest without Xen, and powered itself off");
    Ok(0)
}

/// Why the local KVM cannot run the demonstration, as xen-emu says; nothing if it can.
fn local_kvm_lacks(built: &Built) -> Result<Option<String>> {
    let probe = crate::apt::run(Command::new(folder_of(built)?.join("xen-emu")).arg("--probe"))?;
    let probe: Value = serde_json::from_str(&probe).context("xen-emu --probe prints no JSON")?;
    let reason = probe["reason"].as_str().context("xen-emu --probe gives no reason")?;
    Ok((!reason.is_empty()).then(|| reason.to_owned()))
}

/// Where our programs were built.
fn folder_of(built: &Built) -> Result<&Path> {
    built.programs.first().and_then(|p| p.parent()).context("nothing was built")
}

/// The arguments after `xlr` that start the guest; the last word for a key counts.
fn create(config: &str, folder: &str, stay: bool) -> Vec<String> {
    let action = if stay { "shell" } else { "demo" };
    vec![
        "create".to_owned(),
        "-c".to_owned(),
        config.to_owned(),
        format!("kernel=\"{folder}/vmlinuz-{KERNEL}\""),
        format!("ramdisk=\"{folder}/initrd-{KERNEL}\""),
        format!("extra=\"console=hvc0 lab={action}\""),
    ]
}

fn on_local_kvm(cache: &Cache, built: &Built, stay: bool, shown: &mut Vec<u8>) -> Result<i32> {
    let house = House::open(folder_of(built)?)?;
    Linux::get(cache, KERNEL)?.write_to(house.folder.path())?;
    let config = binaries::workspace().join(CONFIG);
    let mut command = house.command("xlr");
    command.args(create(&config.to_string_lossy(), &house.folder.path().to_string_lossy(), stay));
    if stay {
        return Ok(command.status().context("cannot start xlr")?.code().unwrap_or(255));
    }
    // An open, silent stdin: its end would be the console's.
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start xlr")?;
    let stdin = child.stdin.take();
    show(child.stdout.take().context("xlr has no output")?, shown)?;
    let status = child.wait()?;
    drop(stdin);
    Ok(status.code().unwrap_or(255))
}

/// Run directory and store of a demonstration on this machine: its own, and gone with it, root's ones included.
struct House<'a> {
    programs: &'a Path,
    folder: TempDir,
    store: Option<Child>,
}

impl<'a> House<'a> {
    fn open(programs: &'a Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("xlr-demo-").tempdir()?;
        let mut house = Self { programs, folder, store: None };
        let mut store = house.command("xenstored");
        house.store = Some(store.stderr(Stdio::null()).spawn().context("cannot start xenstored")?);
        let limit = Instant::now() + Duration::from_secs(10);
        while !house.socket().exists() {
            ensure!(Instant::now() < limit, "xenstored does not serve {}", house.socket().display());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(house)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("xenstored.socket")
    }

    /// One of our programs, at home here.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.env("XLR_RUN_DIR", self.folder.path().join("run")).env("XENSTORED_PATH", self.socket());
        command
    }
}

impl Drop for House<'_> {
    fn drop(&mut self) {
        // Who leaves the console leaves the guest running; it must not outlive its run directory. Mostly it is gone already.
        let mut destroy = self.command("xlr");
        let _ = destroy.args(["destroy", "debian"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if let Some(mut store) = self.store.take() {
            let _ = store.kill();
            let _ = store.wait();
        }
    }
}

/// Copies the guest's console to ours and keeps it.
fn show(mut from: impl Read, shown: &mut Vec<u8>) -> Result<()> {
    let mut buffer = [0; 4096];
    while let count @ 1.. = from.read(&mut buffer)? {
        let bytes = buffer.get(..count).unwrap_or_default();
        shown.extend_from_slice(bytes);
        io::stdout().write_all(bytes)?;
        io::stdout().flush()?;
    }
    Ok(())
}

fn in_lab(cache: &Cache, built: Built, stay: bool, shown: &mut Vec<u8>) -> Result<i32> {
    let words: Vec<String> =
        create("/lab/debian.cfg", "/guest", stay).iter().map(|word| quote(word)).collect();
    let xlr = format!("xlr {}", words.join(" "));
    let (start, settings) = if stay {
        let (rows, columns) = Term::stdout().size();
        (format!("exec {xlr}\n"), format!("limit=0 interactive=1 rows={rows} columns={columns}\n"))
    } else {
        (format!("mkfifo /tmp/stdin\nexec {xlr} <>/tmp/stdin\n"), format!("limit={LIMIT} interactive=\n"))
    };
    let files = vec![("lab/debian.cfg".to_owned(), binaries::workspace().join(CONFIG))];
    let guests = Guests::new(cache, &[KERNEL], Vec::new())?;
    let job = Job {
        kernel: Kernel::get(cache, KERNEL)?,
        contents: Contents { programs: built.programs, guests, files, settings, start, peer: false },
        drives: Vec::new(),
        cpus: 1,
        memory_mib: default_memory_mib()?.min(3072),
        limit: LIMIT,
        interactive: stay,
        out: out_folder()?,
    };
    let mut sink = |event: Event| {
        let _ = match event {
            Event::Out(bytes) => show(bytes.as_slice(), shown),
            Event::Err(bytes) => io::stderr().write_all(&bytes).map_err(Into::into),
            Event::Line(_) => Ok(()),
        };
    };
    let end = if stay { once(cache, &job, &mut sink)? } else { with_retry(cache, &job, &mut sink)? };
    match end {
        End::Exit(status) => Ok(status),
        End::Timeout => bail!("the demonstration did not end in {LIMIT} s"),
        End::Died(reason) => bail!("L1 died: {reason}"),
    }
}

fn out_folder() -> Result<PathBuf> {
    let folder = binaries::target_folder().join("lab/demo");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(Path::new(&folder).to_owned())
}
