//! The run directory: `ROOT/DOMID/{launch.json, maker, lock, control.sock, console.sock, peer.sock, console.log,
//! xen-emu.log}`.
//! A domain's process holds `lock` (an flock) for its life; a directory whose lock is free belongs to a dead
//! domain. Before there is a lock, `maker` names the process that brings the domain about. `ROOT/lock` serialises creation; `ROOT/next-domid` counts, so that a domid is not reused soon.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Domids run from 1 to below DOMID_FIRST_RESERVED (public/xen.h).
const DOMIDS: u16 = 0x7ff0;
/// Longest path of a socket: `sun_path` of unix(7) without its NUL.
const SOCKET_PATH_MAX: usize = 107;
/// The longest name of a socket below the root.
const LONGEST_SOCKET: &str = "/32751/console.sock";

/// Where the core of a domain goes if nobody says: `$XLR_DUMP_DIR/NAME`, else in `/var/lib/xen/dump` for root as with xl, else in
/// `xlr/dump` below `$XDG_STATE_HOME` or `~/.local/state`.
pub fn core_path(name: &str) -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = || {
        let home = || variable("HOME").unwrap_or_else(|| PathBuf::from("/tmp")).join(".local/state");
        variable("XDG_STATE_HOME").unwrap_or_else(home).join("xlr/dump")
    };
    let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let xen = || if root { PathBuf::from("/var/lib/xen/dump") } else { state() };
    variable("XLR_DUMP_DIR").unwrap_or_else(xen).join(name)
}

/// The directory that holds one directory per domain.
#[derive(Clone, Debug)]
pub struct RunRoot(PathBuf);

/// One domain's directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    /// The domain.
    pub domid: u16,
    path: PathBuf,
}

impl RunRoot {
    /// Use `path`, created with mode 0700 where missing.
    ///
    /// # Errors
    /// With the path: the host's; a path too long for sockets; one that others own or may write to (`/tmp` is open to
    /// everybody, and who owns the directory controls the domains).
    pub fn at(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let failed = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let (length, limit) = (path.as_os_str().len(), SOCKET_PATH_MAX - LONGEST_SOCKET.len());
        if length > limit {
            let why = format!("{length} bytes are too long for sockets in it, at most {limit}");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        check_private(&path).map_err(failed)?;
        Ok(RunRoot(path))
    }

    /// `$XLR_RUN_DIR`, else `/run/xlr` for root, else `$XDG_RUNTIME_DIR/xlr`, else `/tmp/xlr-UID`.
    pub fn default_path(uid: u32) -> PathBuf {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        variable("XLR_RUN_DIR").unwrap_or_else(|| match uid {
            0 => PathBuf::from("/run/xlr"),
            _ => variable("XDG_RUNTIME_DIR")
                .map_or_else(|| PathBuf::from(format!("/tmp/xlr-{uid}")), |dir| dir.join("xlr")),
        })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Serialise what must not happen twice at once (name check and reservation); held until dropped.
    pub fn lock(&self) -> io::Result<File> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.0.join("lock"))?;
        file.lock()?;
        Ok(file)
    }

    /// Every domain directory, by domid.
    pub fn domains(&self) -> io::Result<Vec<RunDir>> {
        let mut dirs: Vec<_> = fs::read_dir(&self.0)?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .map(|domid| self.domain(domid))
            .collect();
        dirs.sort_by_key(|dir| dir.domid);
        Ok(dirs)
    }

    /// The directory of `domid`, whether it exists or not.
    pub fn domain(&self, domid: u16) -> RunDir {
        RunDir { domid, path: self.0.join(domid.to_string()) }
    }

    /// Reserve a fresh domid and make its directory, with the caller as its maker. `taken` says which domids are in use elsewhere (the store).
    /// Call under [`RunRoot::lock`].
    pub fn reserve(&self, taken: impl Fn(u16) -> bool) -> io::Result<RunDir> {
        let counter = self.0.join("next-domid");
        let first: u16 =
            fs::read_to_string(&counter).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1);
        for step in 0..DOMIDS - 1 {
            let domid = (first.max(1) - 1 + step) % (DOMIDS - 1) + 1;
            let dir = self.domain(domid);
            if taken(domid) || dir.path.exists() {
                continue;
            }
            fs::DirBuilder::new().mode(0o700).create(&dir.path)?;
            dir.set_maker(std::process::id())?;
            fs::write(&counter, (domid + 1).to_string())?;
            return Ok(dir);
        }
        Err(io::Error::other("all domids are in use"))
    }
}

impl RunDir {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the domain was launched with.
    pub fn launch(&self) -> PathBuf {
        self.path.join("launch.json")
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The console socket: a raw byte stream, first the log, then what comes; written bytes are guest input.
    pub fn console(&self) -> PathBuf {
        self.path.join("console.sock")
    }

    /// The socket that other domains' processes connect to, for channels and grants between domains.
    pub fn peer(&self) -> PathBuf {
        self.path.join("peer.sock")
    }

    /// The bounded console log.
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// What the domain's process itself logs.
    pub fn log(&self) -> PathBuf {
        self.path.join("xen-emu.log")
    }

    /// The process `pid` is the one that becomes or starts the domain.
    pub fn set_maker(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("maker"), pid.to_string())
    }

    /// Whether the process runs that was to become or to start the domain; `None` when nobody knows.
    pub fn maker_lives(&self) -> Option<bool> {
        let pid: u32 = fs::read_to_string(self.path.join("maker")).ok()?.trim().parse().ok()?;
        // A zombie has no program any more.
        match fs::read_link(format!("/proc/{pid}/exe")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Some(false),
            _ => Some(true),
        }
    }

    /// Take the life lock; the domain's process keeps the file open for its life. `None` when somebody has it.
    pub fn try_hold(&self) -> io::Result<Option<File>> {
        let path = self.path.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// A process holds this domain.
    pub fn is_alive(&self) -> bool {
        File::open(self.path.join("lock"))
            .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Whether it is this process that holds the domain's life lock, by what the kernel says (proc_locks(5)).
    pub fn is_held_by(&self, pid: i32) -> bool {
        let Ok(lock) = fs::metadata(self.path.join("lock")) else { return false };
        let (pid, inode) = (pid.to_string(), lock.ino().to_string());
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        locks.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, "FLOCK", _, "WRITE", owner, file, ..] = *fields else { return false };
            owner == pid && file.rsplit(':').next() == Some(&inode)
        })
    }

    /// Remove the directory with all in it; missing is fine.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// The directory and the name that leads to it are the caller's, and nobody else may write there; domains' own
/// directories are closed to others anyway.
fn check_private(path: &Path) -> io::Result<()> {
    let me = fs::metadata("/proc/self")?.uid();
    let (named, dir) = (fs::symlink_metadata(path)?, fs::metadata(path)?);
    let why = match [&named, &dir].into_iter().find(|meta| meta.uid() != me) {
        Some(other) => format!("belongs to user {}, not to user {me}", other.uid()),
        None if dir.mode() & 0o022 != 0 => {
            format!("others may write to it (mode {:o}), it should have mode 700", dir.mode() & 0o7777)
        }
        None => return Ok(()),
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_root_that_others_write_to_or_sockets_do_not_fit_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let said = |path: &Path| RunRoot::at(path).unwrap_err().to_string();
        let open = tmp.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o770)).unwrap();
        let why = "others may write to it (mode 770), it should have mode 700";
        assert_eq!(said(&open), format!("{}: {why}", open.display()));
        let me = fs::metadata("/proc/self").unwrap().uid();
        let (strange, owner) = if me == 0 { (open, 1) } else { (PathBuf::from("/"), 0) };
        std::os::unix::fs::chown(&strange, Some(owner), None)
            .or(if me == 0 { Err(()) } else { Ok(()) })
            .unwrap();
        let why = format!("belongs to user {owner}, not to user {me}");
        assert_eq!(said(&strange), format!("{}: {why}", strange.display()));
        let base = tmp.path().as_os_str().len() + 1;
        let fits = tmp.path().join("x".repeat(88 - base));
        let longest = RunRoot::at(&fits).unwrap().domain(DOMIDS - 1);
        fs::create_dir(longest.path()).unwrap();
        std::os::unix::net::UnixListener::bind(longest.console()).unwrap();
        let long = tmp.path().join("x".repeat(89 - base));
        let why = "89 bytes are too long for sockets in it, at most 88";
        assert_eq!(said(&long), format!("{}: {why}", long.display()));
        assert!(!long.exists());
    }

    #[test]
    fn a_maker_is_known_to_live_or_to_be_dead() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunRoot::at(tmp.path().join("xlr")).unwrap().reserve(|_| false).unwrap();
        assert_eq!(dir.maker_lives(), Some(true));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        dir.set_maker(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!(dir.maker_lives(), Some(false));
        fs::remove_file(dir.path().join("maker")).unwrap();
        assert_eq!(dir.maker_lives(), None);
    }

    #[test]
    fn domids_count_up_skip_the_taken_and_locks_tell_life() {
        let tmp = tempfile::tempdir().unwrap();
        let root = RunRoot::at(tmp.path().join("xlr")).unwrap();
        let one = root.reserve(|_| false).unwrap();
        assert_eq!(one.domid, 1);
        one.remove().unwrap();
        let three = root.reserve(|id| id == 2).unwrap();
        assert_eq!(three.domid, 3, "1 is not reused at once, 2 is taken");
        assert!(!three.is_alive());
        let life = three.try_hold().unwrap();
        assert!(life.is_some() && three.is_alive());
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(three.is_held_by(me) && !three.is_held_by(1) && !root.domain(9).is_held_by(me));
        assert!(three.try_hold().unwrap().is_none());
        drop(life);
        assert!(!three.is_alive() && !three.is_held_by(me));
        fs::write(root.path().join("next-domid"), (DOMIDS - 1).to_string()).unwrap();
        assert_eq!(root.reserve(|_| false).unwrap().domid, DOMIDS - 1);
        assert_eq!(root.reserve(|_| false).unwrap().domid, 1, "wraps");
    }
}
