//! The descriptors that come with INTRODUCE.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::ring::Ring;

/// A ring that can be served, made of what came with an INTRODUCE.
pub(super) struct RingSet {
    pub(super) ring: Ring,
    pub(super) kick: OwnedFd,
    pub(super) notify: OwnedFd,
    pub(super) lifeline: Option<OwnedFd>,
}

impl RingSet {
    /// Ring page, kick, notify, and the life line if there is one.
    ///
    /// # Errors
    /// If one is missing or is not what it should be.
    pub(super) fn new(mut fds: VecDeque<OwnedFd>) -> io::Result<Self> {
        let mut next = || fds.pop_front();
        let (Some(page), Some(kick), Some(notify)) = (next(), next(), next()) else {
            return Err(invalid("INTRODUCE needs ring page, kick and notify descriptors"));
        };
        let lifeline = next();
        for fd in [&kick, &notify] {
            if !is_eventfd(fd) {
                return Err(invalid("kick and notify must be eventfds"));
            }
        }
        for fd in [&kick, &notify].into_iter().chain(&lifeline) {
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self { ring: Ring::new(page)?, kick, notify, lifeline })
    }
}

/// By the name the kernel shows; where /proc is missing it is believed.
fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map_or(true, |link| link.as_os_str() == "anon_inode:[eventfd]")
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
