//! The socket that clients connect to.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno as Sys;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::epoll::EpollFlags;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{Mode as FileMode, umask};

use super::Server;
use super::poll::Token;
use crate::room;

/// Connections accepted between two looks at the others.
const BATCH: usize = 64;
/// Bytes that a client takes, with the beginning of a request.
const CLIENT: usize = 8 * 1024;
/// Bytes that must be left for a client to be accepted.
const NARROW: usize = 1024 * 1024;
/// How long nobody is accepted after descriptors or memory ran out.
const PAUSE: Duration = Duration::from_millis(100);
/// The first descriptor of socket activation.
const LISTEN_FDS_START: RawFd = 3;
/// Descriptors that clients cannot take: for domains. No more than a quarter of all.
const RESERVE: u64 = 64;
/// The daemon's own: socket, locks, logs, state folder, a live update.
const OWN: u64 = 16;

/// A listening socket of mode 0600 that nobody else serves. The files go when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    /// The path and its lock; none for a socket that somebody else made, who then cares for both.
    own: Option<(PathBuf, Lock)>,
}

/// The locked file beside a socket. It goes when this is dropped.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: Flock<File>,
}

impl Socket {
    /// Takes the lock beside `path`, replaces a socket that a dead daemon left there, and listens.
    ///
    /// # Errors
    /// `AddrInUse` if a daemon serves it, another's without a lock too; `AlreadyExists` if there is no socket but something
    /// else; what creating the folder, the lock or the socket says.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        if UnixAddr::new(path).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path of a socket cannot be empty or longer than 107 bytes",
            ));
        }
        let lock = Lock::beside(path)?;
        remove_dead(path)?;
        let before = umask(FileMode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, own: Some((path.to_owned(), lock)) })
    }

    /// The socket that a service manager passed, as `sd_listen_fds` describes it; none if there is none.
    ///
    /// # Errors
    /// If it is no listening socket.
    pub fn activated() -> io::Result<Option<Self>> {
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        let ours = number("LISTEN_PID") == Some(std::process::id());
        if !ours || number("LISTEN_FDS").is_none_or(|count| count == 0) {
            return Ok(None);
        }
        let fd = super::fds::adopt(&[LISTEN_FDS_START])?.pop();
        fd.map(|fd| Self::inherited(fd, None)).transpose()
    }

    /// Serves a socket that is listening already: one of socket activation, or one of the program before a live
    /// update, then with path and lock.
    ///
    /// # Errors
    /// If it is no listening socket, or somebody else has the lock.
    pub fn inherited(fd: OwnedFd, own: Option<(PathBuf, OwnedFd)>) -> io::Result<Self> {
        if !nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::AcceptConn)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening socket"));
        }
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        let locked = |(path, file): (PathBuf, OwnedFd)| {
            let lock = Lock { path: lock_path(&path), file: lock(File::from(file))? };
            io::Result::Ok((path, lock))
        };
        let own = own.map(locked).transpose()?;
        Ok(Self { listener, own })
    }

    /// Where clients connect; none if it is nowhere in the file system.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let address = self.listener.local_addr().ok()?;
        address.as_pathname().map(Path::to_owned)
    }

    /// Path and lock, if they are this daemon's.
    pub(super) fn own(&self) -> Option<(&Path, BorrowedFd<'_>)> {
        self.own.as_ref().map(|(path, lock)| (&**path, lock.file.as_fd()))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.own {
            let _ = fs::remove_file(path);
        }
    }
}

impl Lock {
    fn beside(socket: &Path) -> io::Result<Self> {
        let path = lock_path(socket);
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            let file = lock(file)?;
            // A daemon that ended in between has taken this file away.
            let inode = file.metadata()?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == inode) {
                return Ok(Self { path, file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn lock_path(socket: &Path) -> PathBuf {
    let mut name = OsString::from(socket);
    name.push(".lock");
    name.into()
}

/// Takes a socket away at which nobody listens any more.
fn remove_dead(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket"));
        }
        Ok(_) if somebody_listens(path)? => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon serves it"));
        }
        _ => {}
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Never waits for somebody who does not accept.
fn somebody_listens(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(Sys::ECONNREFUSED | Sys::ENOENT) => Ok(false),
        Ok(()) | Err(Sys::EAGAIN) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn lock(file: File) -> io::Result<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Sys::EWOULDBLOCK => io::Error::new(io::ErrorKind::AddrInUse, "another xenstored serves it"),
        errno => errno.into(),
    })
}

/// Why nobody is accepted at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// The system refused; tried again then.
    Until(Instant),
    /// Only the reserve is left; goes on when a client leaves.
    Full,
}

/// How many descriptors clients and domains may have together.
pub(super) fn descriptor_limit() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(soft.saturating_sub(RESERVE.min(soft / 4) + OWN).max(1)).unwrap_or(usize::MAX)
}

impl Server {
    /// Accepts clients, a bounded number.
    pub(super) fn accept(&mut self) {
        for _ in 0..BATCH {
            if self.links.len() + 3 * self.rings >= self.descriptor_limit {
                return self.pause_listening(Pause::Full, &"descriptors are used up");
            }
            // Who could free something must still come in when the store takes no more.
            if self.store.is_short(CLIENT) && !room::is_there(NARROW) {
                return self.pause_listening(Pause::Until(Instant::now() + PAUSE), &"memory runs out");
            }
            let accepted =
                self.socket.listener.accept().and_then(|(stream, _)| self.add_client(stream.into()));
            match accepted.map_err(|error| (error.kind(), error)) {
                Ok(()) => {}
                Err((io::ErrorKind::WouldBlock, _)) => return,
                Err((io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted, _)) => {}
                Err((_, error)) => return self.pause_listening(Pause::Until(Instant::now() + PAUSE), &error),
            }
        }
    }

    /// The pending clients wait, and the loop does not spin on them.
    fn pause_listening(&mut self, pause: Pause, why: &dyn std::fmt::Display) {
        self.log.warn(format_args!("cannot accept clients now: {why}"));
        self.paused = Some(pause);
        self.poller.set(&self.socket, Token::Listener, EpollFlags::empty());
    }

    /// Accepts again if the reason not to is over.
    pub(super) fn resume_listening(&mut self) {
        let over = match self.paused {
            None => return,
            Some(Pause::Until(then)) => Instant::now() >= then,
            Some(Pause::Full) => self.links.len() + 3 * self.rings < self.descriptor_limit,
        };
        if over {
            self.paused = None;
            self.poller.set(&self.socket, Token::Listener, EpollFlags::EPOLLIN);
        }
    }
}
