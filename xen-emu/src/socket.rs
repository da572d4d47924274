//! What the two listening sockets of a domain (control, console) have in common.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;

/// A client's number, never used twice by one listener.
pub type ClientId = u64;

/// A Unix socket for the owner only, and the numbers of its clients.
pub struct Listener {
    socket: Rc<UnixListener>,
    last: ClientId,
}

impl Listener {
    /// Bind `path` with mode 0600. A socket left there by a dead process is replaced.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let socket = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        socket.set_nonblocking(true)?;
        Ok(Listener { socket: Rc::new(socket), last: 0 })
    }

    /// The socket, for the event loop.
    pub fn socket(&self) -> Rc<UnixListener> {
        self.socket.clone()
    }

    /// The next client that waits, non-blocking.
    pub fn accept(&mut self) -> Option<(ClientId, Rc<UnixStream>)> {
        loop {
            match self.socket.accept().and_then(|(stream, _)| stream.set_nonblocking(true).map(|()| stream)) {
                Ok(stream) => {
                    self.last += 1;
                    return Some((self.last, Rc::new(stream)));
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) => {
                    crate::log::limited!(warn, "cannot accept a client: {e}");
                    return None;
                }
            }
        }
    }
}

/// The peer has closed both directions.
pub fn hung_up(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    let ready = poll(&mut fds, PollTimeout::ZERO);
    ready.is_ok_and(|n| n > 0) && fds[0].any().unwrap_or(true)
}
