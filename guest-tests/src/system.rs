//! What every Linux of the lab has, L1 and guests alike: busybox, Debian's XenStore clients, kernel modules.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cpio::Archive;
use crate::kernel::Module;

/// Busybox, and Debian's XenStore clients below `debian/` with the libraries where their loader looks.
pub fn add_userland<W: Write>(image: &mut Archive<W>, userland: &Path) -> Result<()> {
    image.copy("bin/busybox", &userland.join("bin/busybox"))?;
    image.link("bin/sh", "busybox")?;
    for tool in files_in(&userland.join("usr/bin"))? {
        if name(&tool).starts_with("xenstore") && tool.is_file() {
            image.copy(&format!("debian/bin/{}", name(&tool)), &tool)?;
        }
    }
    for library in needed_libraries(userland)? {
        image.copy(&format!("lib/x86_64-linux-gnu/{}", name(&library)), &library)?;
    }
    image.link("lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")?;
    Ok(())
}

/// Modules as `FOLDER/NAME.ko`, and `FOLDER/order` with their names as insmod wants them.
pub fn add_modules<W: Write>(image: &mut Archive<W>, folder: &str, modules: &[Module]) -> Result<()> {
    let mut order = String::new();
    for module in modules {
        image.file(&format!("{folder}/{}.ko", module.name), 0o644, &module.object)?;
        order += &format!("{}\n", module.name);
    }
    image.file(&format!("{folder}/order"), 0o644, order.as_bytes())?;
    Ok(())
}

/// The XenStore clients need the C library, its loader and Xen's own two libraries.
fn needed_libraries(userland: &Path) -> Result<Vec<PathBuf>> {
    const WANTED: [&str; 4] = ["libc.so.6", "ld-linux-x86-64.so.2", "libxenstore.so.", "libxentoolcore.so."];
    let mut libraries = Vec::new();
    for folder in ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
        let files = files_in(&userland.join(folder))?;
        libraries.extend(
            files.into_iter().filter(|path| WANTED.iter().any(|wanted| name(path).starts_with(wanted))),
        );
    }
    Ok(libraries)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The files of a folder by name; none when it is missing.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut files = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}
