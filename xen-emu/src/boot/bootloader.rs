//! `bootloader=`: kernel and ramdisk out of the guest's disk. The looking is done by `xlr-pygrub`, a process that can do
//! nothing else; what it sends is bounded here. It happens at every build, so that a guest which has upgraded its
//! kernel gets the new one when it reboots.

use super::map;
use crate::backend::bus;
use crate::log::printable;
use crate::xenbus_setup;
use anyhow::{Context, bail};
use memmap2::MmapMut;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use xen_emu_api::bootloader::{Answer, Bootloader, Found, MAX_KERNEL, MAX_LINE, MAX_RAMDISK, Request};
use xen_emu_api::config::Launch;
use xen_emu_api::device::{Device, DiskConfig};

/// The reader, beside this program or in PATH.
const READER: &str = "xlr-pygrub";

/// What a domain is booted with.
#[derive(Debug)]
pub struct Boot {
    /// Where it comes from.
    pub kernel: Source,
    /// To be opened while this lives.
    pub ramdisk: Option<PathBuf>,
    /// For the kernel.
    pub cmdline: String,
    /// What messages call the kernel.
    pub name: PathBuf,
    /// The ramdisk from the guest's disk; gone with this.
    _file: Option<File>,
}

/// A kernel.
#[derive(Debug)]
pub enum Source {
    /// A file of the host's.
    Host(PathBuf),
    /// The guest's own, unpacked by who has read its disk. In anonymous memory, as that has large pages.
    Guest(MmapMut),
}

impl Source {
    /// The file's bytes, for who unpacks it itself.
    ///
    /// # Errors
    /// It cannot be read, or is no kernel. `name`: for messages.
    pub fn bytes(self, name: &Path) -> anyhow::Result<Box<dyn Deref<Target = [u8]>>> {
        let bytes: Box<dyn Deref<Target = [u8]>> = match self {
            Source::Host(path) => Box::new(map::map_file(&path).with_context(|| path.display().to_string())?),
            Source::Guest(image) => Box::new(image),
        };
        bzimage::kernel(&bytes).with_context(|| format!("kernel {}", name.display()))?;
        Ok(bytes)
    }
}

/// What the configuration says, or what is on the first of its disks that can be booted.
///
/// # Errors
/// One line that names the disk: nothing there, damaged, too large, or the end of the reader or of a hotplug script.
pub fn resolve(launch: &Launch) -> anyhow::Result<Boot> {
    let config = &launch.config;
    let Some(wish) = &config.bootloader else {
        let (kernel, ramdisk, cmdline) = (&config.kernel, &config.ramdisk, &config.cmdline);
        return Ok(Boot {
            kernel: Source::Host(kernel.clone()),
            ramdisk: ramdisk.clone(),
            cmdline: cmdline.clone(),
            name: kernel.clone(),
            _file: None,
        });
    };
    let mut nothing = Vec::new();
    let room = config.maxmem_mib.max(config.memory_mib) << 20;
    let disks = config.devices.iter().filter_map(|device| match device {
        Device::Disk(disk) if !disk.cdrom => Some(disk),
        _ => None,
    });
    for disk in disks {
        let look = |disk: &DiskConfig| read(&reader(), disk, wish, room);
        let seen = if disk.script.is_some() { scripted(launch, disk, look) } else { look(disk) };
        match seen.with_context(|| format!("bootloader: {}", disk.vdev))? {
            Ok(boot) => {
                let cmdline = [&boot.cmdline, &config.cmdline].map(|part| part.trim()).join(" ");
                return Ok(Boot { cmdline: cmdline.trim().to_owned(), ..boot });
            }
            Err(why) => nothing.push(format!("{}: {why}", disk.vdev)),
        }
    }
    match nothing.as_slice() {
        [] => bail!("bootloader: the domain has no disk to boot from"),
        all => bail!("bootloader: {}", all.join("; ")),
    }
}

/// Looks at a disk that a hotplug script makes.
fn scripted<T>(
    launch: &Launch,
    disk: &DiskConfig,
    look: impl FnOnce(&DiskConfig) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let store = xenbus_setup::connect(launch);
    let mut store = store.with_context(|| format!("xenstored at {}", launch.xenstored.display()))?;
    bus::with_script(&mut store, launch.domid, disk, look)?
}

fn reader() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(READER)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(READER))
}

/// A child that does not outlive its purpose.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ask the reader; the guest has `room` bytes for what it loads. `Err` within is a disk without anything to boot, and what is on it.
fn read(
    program: &Path,
    disk: &DiskConfig,
    wish: &Bootloader,
    room: u64,
) -> anyhow::Result<Result<Boot, String>> {
    let Some(image) = disk.target.clone() else { return Ok(Err("no image".to_owned())) };
    let request = Request { image, format: disk.format, wish: wish.clone() };
    let mut command = Command::new(program);
    // Its stderr is the domain's log.
    command
        .arg(serde_json::to_string(&request)?)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let missing = || format!("cannot start {}: it belongs beside xen-emu or into PATH", program.display());
    let mut child = Reaped(command.spawn().with_context(missing)?);
    let mut out = BufReader::new(child.0.stdout.take().context("no pipe")?);
    let mut line = String::new();
    out.by_ref().take(MAX_LINE).read_line(&mut line).context("its answer")?;
    if line.is_empty() {
        bail!("the reader of the disk ended without an answer ({})", child.0.wait()?);
    }
    let found = match serde_json::from_str(&line).context("its answer")? {
        Answer::Found(found) => found,
        Answer::Nothing { why } => return Ok(Err(harmless(&why))),
        Answer::Failed { why } => bail!("{}", harmless(&why)),
    };
    let boot = take(&mut out, &found, &disk.vdev, room)?;
    let status = child.0.wait()?;
    if !status.success() {
        bail!("the reader of the disk failed after its answer ({status})");
    }
    let Found { title, kernel, cmdline, .. } = found;
    tracing::info!("{}: {title:?}: {:?} {cmdline:?}", disk.vdev, kernel.path);
    Ok(Ok(boot))
}

/// Words of a disk as they may go to a terminal.
fn harmless(words: &str) -> String {
    printable(words.as_bytes())
}

/// The announced bytes into memory, no more than fit into the guest.
fn take(out: &mut impl Read, found: &Found, vdev: &str, room: u64) -> anyhow::Result<Boot> {
    let total = found.ramdisks.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.size));
    for (what, size, most) in [("kernel", found.kernel.size, MAX_KERNEL), ("ramdisk", total, MAX_RAMDISK)] {
        let most = most.min(room);
        if size > most {
            bail!("{what} of {size} bytes, at most {most} are accepted");
        }
    }
    let mut kernel = map::anonymous(usize::try_from(found.kernel.size)?).context("kernel")?;
    out.read_exact(&mut kernel).with_context(|| format!("kernel of {} bytes", found.kernel.size))?;
    let ramdisk = (!found.ramdisks.is_empty()).then(|| memory(out, "ramdisk", total)).transpose()?;
    Ok(Boot {
        kernel: Source::Guest(kernel),
        ramdisk: ramdisk.as_ref().map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))),
        cmdline: found.cmdline.clone(),
        name: PathBuf::from(format!("{vdev}:{}", harmless(&found.kernel.path))),
        _file: ramdisk,
    })
}

fn memory(out: &mut impl Read, what: &str, size: u64) -> anyhow::Result<File> {
    let mut file = File::from(memfd_create(what, MFdFlags::MFD_CLOEXEC)?);
    let got = io::copy(&mut out.take(size), &mut file).context(what.to_owned())?;
    if got != size {
        bail!("{what} of {size} bytes ends after {got}");
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use xen_emu_api::device::{DiskCache, DiskFormat};

    fn disk(vdev: &str) -> DiskConfig {
        DiskConfig {
            vdev: vdev.into(),
            devid: 51712,
            target: Some("/image".into()),
            format: DiskFormat::Raw,
            writable: true,
            cdrom: false,
            removable: false,
            discard: false,
            cache: DiskCache::None,
            sector_size: None,
            persistent: true,
            force: false,
            script: None,
            backendtype: None,
            trusted: true,
        }
    }

    /// A reader that says what `script` does.
    fn said(script: &str) -> anyhow::Result<Result<Boot, String>> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("reader");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        // Another test's fork may have the script open for writing for an instant.
        loop {
            match read(&program, &disk("xvda"), &Bootloader::default(), 1 << 30) {
                Err(e) if format!("{e:#}").contains("Text file busy") => {}
                other => return other,
            }
        }
    }

    const FOUND: &str = r#"{"answer":"found","title":"T","cmdline":"ro","kernel":{"path":"/k","size":3},"ramdisks":[{"path":"/a","size":2},{"path":"/b","size":1}]}"#;

    #[test]
    fn what_the_reader_sends_is_there_to_be_opened() {
        let boot = said(&format!("echo '{FOUND}'; printf kernrd")).unwrap().unwrap();
        assert!(matches!(&boot.kernel, Source::Guest(bytes) if bytes[..] == b"ker"[..]));
        assert_eq!(fs::read(boot.ramdisk.unwrap()).unwrap(), b"nrd");
        assert_eq!((boot.cmdline.as_str(), boot.name.to_str()), ("ro", Some("xvda:/k")));
        let nothing = said(r#"printf '%s\n' '{"answer":"nothing","why":"swap \u001b[2J"}'"#).unwrap();
        assert_eq!(nothing.unwrap_err(), "swap .[2J", "nothing that steers a terminal");
        let steering = FOUND.replace("/k", r"/\u001b]0;k");
        let boot = said(&format!("printf '%s\\n' '{steering}'; printf kernrd")).unwrap().unwrap();
        assert_eq!(boot.name.to_str(), Some("xvda:/.]0;k"));
    }

    #[test]
    fn a_reader_that_misbehaves_is_an_error_line() {
        for (script, expected) in [
            ("true".to_owned(), "ended without an answer (exit status: 0)"),
            ("kill -SYS $$".to_owned(), "ended without an answer (signal: 31"),
            ("echo nonsense".to_owned(), "its answer"),
            ("exec cat /dev/zero".to_owned(), "its answer"),
            (r#"echo '{"answer":"failed","why":"no entry"}'"#.to_owned(), "no entry"),
            (format!("echo '{FOUND}'; printf ker"), "ramdisk of 3 bytes ends after 0"),
            (format!("echo '{FOUND}'; printf kernrd; exit 3"), "failed after its answer (exit status: 3)"),
            (
                format!("echo '{}'; exec cat /dev/zero", FOUND.replace("size\":3", "size\":4294967296")),
                "kernel of 4294967296 bytes, at most 268435456 are accepted",
            ),
            (
                format!("echo '{}'; exec cat /dev/zero", FOUND.replace("size\":2", "size\":1073741824")),
                "ramdisk of 1073741825 bytes, at most 1073741824 are accepted",
            ),
        ] {
            let error = format!("{:#}", said(&script).unwrap_err());
            assert!(error.contains(expected), "{script}: {error}");
        }
        let mut launch = crate::testing::launch(1);
        launch.config.bootloader = Some(Bootloader::default());
        let none = resolve(&launch).unwrap_err().to_string();
        assert_eq!(none, "bootloader: the domain has no disk to boot from");
    }
}
