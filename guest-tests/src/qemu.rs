//! QEMU out of the cache: started by its own loader with its own libraries and firmware, nothing of it installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::packages::QEMU;

/// Where Debian's packages keep libraries, relative to their root.
const LIBRARIES: [&str; 3] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio"];
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];

/// The machine under L1. A virtual GIF corrupts the memory of nested guests; without nested paging nothing boots.
const MACHINE: &str = "-nodefaults -no-user-config -display none -no-reboot \
    -accel tcg,thread=multi,tb-size=512 -cpu EPYC,+svm,+npt,-vgif -smp 2";

/// What L1 gets if the host has it.
const MEMORY_MIB: u64 = 8192;
/// Below this no guest of the tests fits.
const LEAST_MIB: u64 = 2048;
/// Left to the host and to QEMU itself.
const HOST_MIB: u64 = 1536;

/// The command that starts L1's machine from `kernel` and `image`; channels are still to be added.
pub fn machine(cache: &Cache, kernel: &Path, image: &Path, command_line: &str, memory_mib: u64) -> Result<Command> {
    let root = QEMU.get(cache)?;
    let mut command = Command::new(root.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(env::join_paths(LIBRARIES.map(|l| root.join(l)))?);
    command.arg(root.join("usr/bin/qemu-system-x86_64")).env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
    for folder in FIRMWARE.map(|f| root.join(f)).into_iter().filter(|f| f.is_dir()) {
        command.arg("-L").arg(folder);
    }
    command.args(MACHINE.split_whitespace()).arg("-m").arg(format!("{memory_mib}M"));
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(image).arg("-append").arg(command_line);
    Ok(command)
}

/// The memory of L1 when the user names none: 8 GiB, less on a smaller host.
pub fn default_memory_mib() -> Result<u64> {
    let path = PathBuf::from("/proc/meminfo");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let available = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let mib = available.context("no MemAvailable in /proc/meminfo")? / 1024;
    let free = mib.saturating_sub(HOST_MIB);
    ensure!(free >= LEAST_MIB, "the lab needs {} MiB of free memory, this machine has {mib}", LEAST_MIB + HOST_MIB);
    Ok(free.min(MEMORY_MIB))
}
