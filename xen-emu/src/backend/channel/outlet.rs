//! Where a channel comes out on the host.

use crate::backend::console::pty::Pty;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use xen_emu_api::device::ChannelConnection;

/// A pty or a listening socket, for its owner only.
pub enum Outlet {
    /// Always there, whether somebody has it open or not.
    Pty(Pty),
    /// Removed when dropped.
    Socket(Socket),
}

/// A listening socket and its file.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: a file that somebody else has put there is not ours to remove.
    file: (u64, u64),
}

/// Who is at the other end now.
pub enum Peer<'a> {
    /// The pty, which never leaves.
    Pty(&'a Pty),
    /// A client of the socket.
    Client(UnixStream),
}

impl Outlet {
    /// Opens it.
    ///
    /// # Errors
    /// The host's, with the path.
    pub fn open(connection: &ChannelConnection) -> io::Result<Outlet> {
        match connection {
            ChannelConnection::Pty => Ok(Outlet::Pty(Pty::open()?)),
            ChannelConnection::Socket { path } => Socket::bind(path)
                .map(Outlet::Socket)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
        }
    }

    /// Path of the pty or the socket.
    pub fn path(&self) -> String {
        match self {
            Outlet::Pty(pty) => pty.path.clone(),
            Outlet::Socket(socket) => socket.path.display().to_string(),
        }
    }

    /// What tells of a new peer.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Outlet::Pty(_) => None,
            Outlet::Socket(socket) => Some(socket.listener.as_fd()),
        }
    }

    /// The next peer, if there is one. Non-blocking.
    pub fn accept(&self) -> Option<Peer<'_>> {
        let socket = match self {
            Outlet::Pty(pty) => return Some(Peer::Pty(pty)),
            Outlet::Socket(socket) => socket,
        };
        let accepted = socket.listener.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        match accepted {
            Ok(stream) => Some(Peer::Client(stream)),
            Err(e) => {
                if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
                    crate::log::limited!(warn, "{}: {e}", socket.path.display());
                }
                None
            }
        }
    }
}

impl Socket {
    fn bind(path: &Path) -> io::Result<Socket> {
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(io::Error::new(ErrorKind::AlreadyExists, "exists and is no socket"));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there"));
            }
            // Left by a process that died.
            Ok(_) => fs::remove_file(path)?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        let meta = fs::symlink_metadata(path)?;
        let socket = Socket { listener, path: path.to_owned(), file: (meta.dev(), meta.ino()) };
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        socket.listener.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Peer<'_> {
    /// It may leave, and another may come.
    pub fn may_leave(&self) -> bool {
        matches!(self, Peer::Client(_))
    }
}

impl AsFd for Peer<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Peer::Pty(pty) => pty.master.as_fd(),
            Peer::Client(stream) => stream.as_fd(),
        }
    }
}

impl Read for Peer<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Peer::Pty(pty) => (&*pty.master).read(buf),
            Peer::Client(stream) => stream.read(buf),
        }
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Peer::Pty(pty) => (&*pty.master).write(bytes),
            Peer::Client(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
