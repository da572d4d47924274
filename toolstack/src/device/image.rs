//! Images as the host has them: where a relative name leads, and whether there is what a disk needs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use xen_emu_api::device::{DiskConfig, DiskFormat};

/// Where a script without a slash in its name is.
const SCRIPTS: &str = "/etc/xen/scripts";

/// First bytes of image formats, and where they stand.
const MAGICS: [(&str, u64, &[u8]); 6] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vhdx", 0, b"vhdxfile"),
    ("vhd", 0, b"conectix"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
];

/// A relative target is meant below /dev, as in xl, or else from the current directory.
pub fn resolve(target: &str) -> PathBuf {
    let device = Path::new("/dev").join(target);
    if Path::new(target).is_absolute() || device.exists() {
        return device;
    }
    std::path::absolute(target).unwrap_or(device)
}

/// Look whether the disk can be had; a warning is what is possible but strange.
///
/// # Errors
/// One line.
pub fn check(disk: &DiskConfig) -> Result<Option<String>, String> {
    let what = format!("Disk vdev={}", disk.vdev);
    if let Some(script) = &disk.script {
        return check_script(script).map(|()| None).map_err(|error| format!("{what}: {error}"));
    }
    let Some(path) = &disk.target else { return Ok(None) };
    let shown = path.display();
    let meta = fs::metadata(path).map_err(|error| format!("{what} failed to stat: {shown}: {error}"))?;
    if meta.is_dir() {
        return Err(format!("{what}: {shown} is a directory: an image file or a block device is needed"));
    }
    if !meta.is_file() && !meta.file_type().is_block_device() {
        return Err(format!("{what}: {shown} is neither an image file nor a block device"));
    }
    let mode = if disk.writable { "writing" } else { "reading" };
    let file = OpenOptions::new().read(true).write(disk.writable).open(path);
    let file = file.map_err(|error| format!("{what}: cannot open {shown} for {mode}: {error}"))?;
    match (disk.format, kind(&file)) {
        (DiskFormat::Qcow2, Some("qcow2")) | (DiskFormat::Raw, None) => Ok(None),
        (DiskFormat::Qcow2, other) => {
            let other = other.map_or_else(String::new, |other| format!(" but a {other} one"));
            Err(format!("{what}: {shown} is no qcow2 image{other}: check its format"))
        }
        (DiskFormat::Raw, Some(other)) => Ok(Some(format!(
            "{what}: {shown} looks like a {other} image but is used as raw; is format={other} meant?"
        ))),
    }
}

/// The format of an image by its first bytes.
fn kind(file: &File) -> Option<&'static str> {
    let has = |(_, at, magic): &(&str, u64, &[u8])| {
        let mut bytes = [0; 8];
        let found = bytes.get_mut(..magic.len()).map(|bytes| file.read_exact_at(bytes, *at));
        matches!(found, Some(Ok(()))) && bytes.starts_with(magic)
    };
    MAGICS.iter().find(|magic| has(magic)).map(|(name, ..)| *name)
}

/// A hotplug script is there and can be run.
///
/// # Errors
/// One line.
pub fn check_script(script: &str) -> Result<(), String> {
    let path = if script.contains('/') { PathBuf::from(script) } else { Path::new(SCRIPTS).join(script) };
    let failed = |error: io::Error| format!("script {}: {error}", path.display());
    match fs::metadata(&path).map_err(failed)?.is_file() {
        true => Ok(()),
        false => Err(format!("script {} is no file", path.display())),
    }
}
