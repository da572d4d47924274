//! The socket that clients connect to.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use calloop::generic::Generic;
use calloop::timer::{TimeoutAction, Timer};
use calloop::{Interest, LoopHandle, Mode, PostAction, RegistrationToken};
use nix::errno::Errno as Sys;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode as FileMode, umask};

use super::Server;

/// Connections accepted between two looks at the others.
const BATCH: usize = 64;
/// How long nobody is accepted after descriptors or memory ran out.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket of mode 0600 that nobody else serves. The file goes when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    _lock: Flock<File>,
}

impl Socket {
    /// Takes the lock beside `path`, replaces a socket that a dead daemon left there, and listens.
    ///
    /// # Errors
    /// `AddrInUse` if a daemon serves it; what creating the folder, the lock or the socket says.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        let lock = lock(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let before = umask(FileMode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(path: &Path) -> io::Result<Flock<File>> {
    let mut name = OsString::from(path);
    name.push(".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&name)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Sys::EWOULDBLOCK => io::Error::new(io::ErrorKind::AddrInUse, "another xenstored serves it"),
        errno => errno.into(),
    })
}

/// Accepts clients from now on.
pub(super) fn listen(handle: &LoopHandle<'static, Server>, socket: &Socket) -> io::Result<RegistrationToken> {
    let source = Generic::new(socket.listener.try_clone()?, Interest::READ, Mode::Level);
    let accept = |_, listener: &mut calloop::generic::NoIoDrop<UnixListener>, server: &mut Server| {
        for _ in 0..BATCH {
            let added = listener.accept().and_then(|(stream, _)| server.add_client(stream.into()));
            match added.map_err(|error| (error.kind(), error)) {
                Ok(()) => {}
                Err((io::ErrorKind::WouldBlock, _)) => return Ok(PostAction::Continue),
                Err((io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted, _)) => {}
                Err((_, error)) => return Ok(server.pause_listening(&error)),
            }
        }
        Ok(PostAction::Continue)
    };
    handle.insert_source(source, accept).map_err(|error| io::Error::other(error.error))
}

impl Server {
    /// Out of descriptors or memory: the pending clients wait, and the loop does not spin on them.
    fn pause_listening(&mut self, error: &io::Error) -> PostAction {
        self.log.warn(format_args!("cannot accept clients now: {error}"));
        let resume = |_: Instant, _: &mut (), server: &mut Server| {
            if let Some(token) = &server.listener {
                let _ = server.handle.enable(token);
            }
            TimeoutAction::Drop
        };
        match self.handle.insert_source(Timer::from_duration(PAUSE), resume) {
            Ok(_) => PostAction::Disable,
            Err(_) => PostAction::Continue,
        }
    }
}
