//! The console's pseudo-terminal, for `screen` and for tools that know only `console/tty`.

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ttyname;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A raw pty of mode 0600.
pub struct Pty {
    /// Our end, non-blocking.
    pub master: Arc<File>,
    /// Kept open so that the last reader's leaving is not an end.
    _slave: OwnedFd,
    /// `/dev/pts/N`
    pub path: String,
}

impl Pty {
    /// A new one.
    pub fn open() -> io::Result<Pty> {
        let pty = openpty(None, None)?;
        let mut mode = tcgetattr(&pty.slave)?;
        cfmakeraw(&mut mode);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &mode)?;
        fchmod(&pty.slave, Mode::from_bits_truncate(0o600))?;
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        let path = ttyname(&pty.slave)?.display().to_string();
        Ok(Pty { master: Arc::new(File::from(pty.master)), _slave: pty.slave, path })
    }
}
