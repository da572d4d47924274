//! epoll with typed tokens.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno as Sys;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::store::ConnId;

/// Events taken from the kernel at a time.
const BATCH: usize = 256;

/// Whose descriptor is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// Clients wait to be accepted.
    Listener,
    /// SIGTERM, SIGINT, SIGHUP.
    Signal,
    /// The trial run of a new binary says something, or ended.
    Trial,
    /// A client's socket.
    Client(ConnId),
    /// A domain's kick.
    Kick(ConnId),
    /// A domain's life line.
    Lifeline(ConnId),
}

impl Token {
    fn encode(self) -> u64 {
        let (tag, id) = match self {
            Self::Listener => (0, 0),
            Self::Signal => (1, 0),
            Self::Trial => (2, 0),
            Self::Client(conn) => (3, conn.0),
            Self::Kick(conn) => (4, conn.0),
            Self::Lifeline(conn) => (5, conn.0),
        };
        tag | id << 3
    }

    fn decode(word: u64) -> Self {
        let conn = ConnId(word >> 3);
        match word & 7 {
            0 => Self::Listener,
            1 => Self::Signal,
            2 => Self::Trial,
            3 => Self::Client(conn),
            4 => Self::Kick(conn),
            _ => Self::Lifeline(conn),
        }
    }
}

/// What the loop waits for.
pub(super) struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, events: vec![EpollEvent::empty(); BATCH] })
    }

    /// Level triggered: told as long as there is something to read.
    pub(super) fn add(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.encode()))?)
    }

    /// Edge triggered: told once for every signal of an eventfd, which so need not be read.
    pub(super) fn add_kick(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token.encode()))?)
    }

    /// Waits for something else from now on. For nothing: a hang-up, which is always told, is told once.
    pub(super) fn set(&self, fd: impl AsFd, token: Token, flags: EpollFlags) {
        let flags = if flags.is_empty() { EpollFlags::EPOLLET } else { flags };
        // Fails only for what was not added, and then nobody is told anyway.
        let _ = self.epoll.modify(fd, &mut EpollEvent::new(flags, token.encode()));
    }

    /// Forgets a descriptor. Closing it would not do where somebody else has it too.
    pub(super) fn remove(&self, fd: &OwnedFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Waits, and appends who is ready.
    pub(super) fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()> {
        // Rounded up, so that the last fraction of a millisecond is slept and not spun.
        let millis = timeout.map(|timeout| timeout.as_nanos().div_ceil(1_000_000));
        let timeout = millis.map_or(EpollTimeout::NONE, |ms| {
            i32::try_from(ms).ok().and_then(|ms| ms.try_into().ok()).unwrap_or(EpollTimeout::MAX)
        });
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Err(Sys::EINTR) => 0,
            count => count?,
        };
        ready.extend(self.events.iter().take(count).map(|event| Token::decode(event.data())));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hang_up_is_told_once_to_who_waits_for_nothing() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        let token = Token::Client(ConnId(1));
        poller.add(&ours, token).unwrap();
        poller.set(&ours, token, EpollFlags::empty());
        drop(theirs);
        let mut ready = Vec::new();
        for _ in 0..3 {
            poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        }
        assert_eq!(ready, [token]);
        poller.set(&ours, token, EpollFlags::EPOLLIN);
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert_eq!(ready, [token; 2]);
    }

    #[test]
    fn tokens_survive_the_kernel() {
        let conn = ConnId(u64::MAX >> 3);
        for token in [
            Token::Listener,
            Token::Signal,
            Token::Trial,
            Token::Client(conn),
            Token::Kick(ConnId(1)),
            Token::Lifeline(conn),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
