//! QEMU out of the cache: started by its own loader with its own libraries and firmware, nothing of it installed.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::cpio::Archive;
use crate::packages::QEMU;

/// Where Debian's packages keep libraries, relative to their root.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio"];
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];

/// The machine under L1. A virtual GIF corrupts the memory of nested guests; without nested paging nothing boots. With two CPUs the
/// emulator keeps nested paging on past a VM exit once in some 100,000 exits: L1's state ends up in the guest, or L1 dies. Two that
/// take turns on one thread do not disturb each other.
const MACHINE: &str = "-nodefaults -no-user-config -display none -no-reboot -cpu EPYC,+svm,+npt,-vgif";

/// What L1 gets if the host has it.
const MEMORY_MIB: u64 = 8192;
/// Below this no guest of the tests fits.
const LEAST_MIB: u64 = 2048;
/// Left to the host and to QEMU itself.
const HOST_MIB: u64 = 1536;

/// The command that starts L1's machine from `kernel` and `image`; channels are still to be added.
pub fn machine(
    cache: &Cache,
    kernel: &Path,
    image: &Path,
    command_line: &str,
    memory_mib: u64,
    cpus: u32,
) -> Result<Command> {
    let root = QEMU.get(cache)?;
    let mut command = program(&root, "qemu-system-x86_64")?;
    command.env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
    for folder in FIRMWARE.map(|f| root.join(f)).into_iter().filter(|f| f.is_dir()) {
        command.arg("-L").arg(folder);
    }
    let threads = if cpus == 1 { "multi" } else { "single" };
    command.arg("-accel").arg(format!("tcg,thread={threads},tb-size=512")).arg("-smp").arg(cpus.to_string());
    command.args(MACHINE.split_whitespace()).arg("-m").arg(format!("{memory_mib}M"));
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(image).arg("-append").arg(command_line);
    Ok(command)
}

/// Adds drives that L1 may write to as it likes: what it writes is gone when it ends.
pub fn add_drives(command: &mut Command, drives: &[PathBuf]) {
    for (number, drive) in drives.iter().enumerate() {
        let options = "format=raw,if=none,snapshot=on,cache=unsafe,discard=unmap";
        command.arg("-drive").arg(format!("file={},id=disk{number},{options}", drive.display()));
        command.arg("-device").arg(format!("virtio-blk-pci,drive=disk{number},serial={number}"));
    }
}

/// A program of the set, started by the set's own loader with the set's own libraries.
fn program(root: &Path, name: &str) -> Result<Command> {
    let mut command = Command::new(root.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(env::join_paths(LIBRARIES.map(|l| root.join(l)))?);
    command.arg(root.join("usr/bin").join(name));
    Ok(command)
}

/// The ELF kernel inside a bzImage with a zstd payload, for QEMU's PVH entry, which takes nothing else.
///
/// The setup header gives the payload's place (Documentation/arch/x86/boot.rst: `setup_sects` at 0x1f1, `payload_offset` at 0x248,
/// `payload_length` at 0x24c); its last four bytes are the unpacked size and no part of the stream.
pub fn unpack_kernel(cache: &Cache, image: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(image)?;
    let word = |at: usize| {
        bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(|b| u32::from_le_bytes(b) as usize)
    };
    let payload = || {
        let start = (usize::from(*bytes.get(0x1f1)?) + 1) * 512 + word(0x248)?;
        bytes.get(start..(start + word(0x24c)?).checked_sub(4)?)
    };
    let packed = to.with_extension("zst");
    fs::write(&packed, payload().with_context(|| format!("{} is no bzImage", image.display()))?)?;
    let mut zstd = program(&QEMU.get(cache)?, "zstd")?;
    crate::apt::run(zstd.args(["-q", "-d", "-f", "-o"]).arg(to).arg(&packed))?;
    Ok(())
}

/// Puts QEMU itself into an image, below `peer/`, as `/usr/bin/qemu-system-x86_64`: its own Xen emulation is what ours is measured against.
pub fn add_peer<W: Write>(image: &mut Archive<W>, cache: &Cache) -> Result<()> {
    let root = QEMU.get(cache)?;
    image.copy("peer/usr/bin/qemu-system-x86_64", &root.join("usr/bin/qemu-system-x86_64"))?;
    for folder in LIBRARIES.iter().chain(&FIRMWARE) {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_file() {
                image.copy(
                    &format!("peer/{folder}/{}", path.file_name().unwrap_or_default().to_string_lossy()),
                    &path,
                )?;
            }
        }
    }
    let firmware = FIRMWARE.map(|f| format!("-L /peer/{f}")).join(" ");
    let libraries = LIBRARIES.map(|l| format!("/peer/{l}")).join(":");
    let start = format!(
        "#!/bin/sh\nexec /peer/{0}/ld-linux-x86-64.so.2 --library-path {libraries} /peer/usr/bin/qemu-system-x86_64 {firmware} \"$@\"\n",
        LIBRARIES[0]
    );
    Ok(image.file("usr/bin/qemu-system-x86_64", 0o755, start.as_bytes())?)
}

/// The memory of L1 when the user names none: 8 GiB, less on a smaller host.
pub fn default_memory_mib() -> Result<u64> {
    let free = free_memory_mib()?;
    ensure!(
        free >= LEAST_MIB,
        "the lab needs {} MiB of free memory, this machine has {}",
        LEAST_MIB + HOST_MIB,
        free + HOST_MIB
    );
    Ok(free.min(MEMORY_MIB))
}

/// What this machine can give to L1s in all.
pub fn free_memory_mib() -> Result<u64> {
    let path = PathBuf::from("/proc/meminfo");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let available = text
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let mib = available.context("no MemAvailable in /proc/meminfo")? / 1024;
    Ok(mib.saturating_sub(HOST_MIB))
}
