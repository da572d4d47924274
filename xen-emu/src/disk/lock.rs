//! Who may use an image: locks on open files, exclusive for writers and shared for readers, which end with the
//! process however it ends. Another program's locks of the same make (QEMU's) count too.

use super::{DiskError, open_file};
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a lock that no process has is waited for: the kernel finishes the requests of one that was killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens an image that is to be locked. A block device that is written to is claimed too: a file system mounted on it, its partitions and
/// whatever else stands on it have no lock of its. Unless it is to be had by `force`.
///
/// # Errors
/// There is no such image, or it is in use.
pub fn open(path: &Path, write: bool, flags: i32, force: bool) -> Result<File, DiskError> {
    let block = fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
    if force || !(write && block) {
        return open_file(path, write, flags);
    }
    let until = Instant::now() + PATIENCE;
    loop {
        match open_file(path, true, flags | libc::O_EXCL) {
            Err(DiskError::Io { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {}
            opened => return opened,
        }
        // Who has this very device as a disk is known by name.
        lock(&open_file(path, true, flags)?, path, true)?;
        if Instant::now() > until {
            let holder =
                "this host: it, or a part of it, is mounted, another disk or part of another device".into();
            return Err(DiskError::InUse { path: path.to_owned(), holder });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Locks an image for as long as the file is open.
///
/// # Errors
/// [`DiskError::InUse`] with the name of who has it.
pub fn lock(file: &File, path: &Path, write: bool) -> Result<(), DiskError> {
    let until = Instant::now() + PATIENCE;
    while !attempt(file, write).map_err(|e| DiskError::io(path, e))? {
        let holder = holder(file);
        if holder.is_some() || Instant::now() > until {
            let holder = holder.unwrap_or_else(|| "another process".into());
            return Err(DiskError::InUse { path: path.to_owned(), holder });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// False when somebody else has it.
fn attempt(file: &File, write: bool) -> io::Result<bool> {
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    let whole = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The domain, else the program, that has a lock on this file: the kernel names no owner of such locks, but each
/// process's open files tell of theirs.
fn holder(file: &File) -> Option<String> {
    let image = file.metadata().ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let mut holders = processes.filter(|process| holds(process, &image).unwrap_or(false));
    holders.next().map(|process| name(&process))
}

fn holds(process: &Path, image: &fs::Metadata) -> io::Result<bool> {
    if process.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.parse::<u32>().is_err()) {
        return Ok(false);
    }
    for fd in fs::read_dir(process.join("fd"))?.flatten() {
        let same = fs::metadata(fd.path()).is_ok_and(|m| (m.dev(), m.ino()) == (image.dev(), image.ino()));
        if same && fs::read_to_string(process.join("fdinfo").join(fd.file_name()))?.contains("\nlock:") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `domain "web"` for a domain's process, `process 12 (name)` for others.
fn name(process: &Path) -> String {
    if let Some(name) = domain(process) {
        return format!("domain {name:?}");
    }
    let pid = process.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let program = fs::read_to_string(process.join("comm")).unwrap_or_default();
    format!("process {pid} ({})", program.trim())
}

/// The name in the run directory that a domain's process was started with.
fn domain(process: &Path) -> Option<String> {
    let args = fs::read(process.join("cmdline")).ok()?;
    let mut args = args.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    args.find(|arg| arg == "--run-dir")?;
    let dir = PathBuf::from(args.next()?.as_ref());
    let launch: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("launch.json")).ok()?).ok()?;
    Some(launch.get("config")?.get("name")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn an_image_in_use_is_refused_with_its_users_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let open =
            || File::options().create(true).truncate(false).read(true).write(true).open(&path).unwrap();
        let said = |write| lock(&open(), &path, write).unwrap_err().to_string();
        let (one, two) = (open(), open());
        lock(&one, &path, false).unwrap();
        lock(&two, &path, false).unwrap();
        drop(two);
        let me = format!("is in use by process {} (", std::process::id());
        assert!(said(true).contains(&me), "{}", said(true));
        drop(one);
        fs::write(dir.path().join("launch.json"), r#"{"config": {"name": "web"}}"#).unwrap();
        let file = open();
        lock(&file, &path, true).unwrap();
        let mut args = Command::new("sh");
        args.args(["-c", "read line", "sh", "--run-dir"]).arg(dir.path()).stdin(Stdio::piped()).stdout(file);
        let mut child = args.spawn().unwrap();
        drop(args);
        // A process that has just begun its program has no command line yet.
        let cmdline = format!("/proc/{}/cmdline", child.id());
        while fs::read(&cmdline).unwrap().is_empty() {
            std::thread::yield_now();
        }
        let want = format!("{} is in use by domain \"web\"", path.display());
        assert!(said(false).starts_with(&format!("disk image {want}")), "{}", said(false));
        drop(child.stdin.take());
        child.wait().unwrap();
        lock(&open(), &path, true).unwrap();
    }
}
