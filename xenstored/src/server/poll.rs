//! epoll with typed tokens.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno as Sys;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::store::ConnId;

/// No connection.
const NOBODY: ConnId = ConnId(0);
/// Events taken from the kernel at a time.
const BATCH: usize = 256;

const HANG_UP: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLHUP).union(EpollFlags::EPOLLERR);
const CLIENT: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);

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

    /// Whether it could be waited for now: what the kernel says.
    pub(super) fn would_add(&self, fd: &OwnedFd) -> io::Result<()> {
        self.add_kick(fd, Token::Kick(NOBODY))?;
        self.remove(fd);
        Ok(())
    }

    /// Edge triggered: told once when more has come, when the peer hung up, and, if asked for, when there is room again.
    /// Nothing has to be said here as long as nobody waits for room.
    pub(super) fn add_client(&self, fd: impl AsFd, conn: ConnId) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(CLIENT, Token::Client(conn).encode()))?)
    }

    /// Whether to tell when there is room in a client's socket.
    pub(super) fn want_room(&self, fd: impl AsFd, conn: ConnId, wanted: bool) {
        let room = if wanted { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
        // Fails only for what was not added, and then nobody is told anyway.
        let _ = self.epoll.modify(fd, &mut EpollEvent::new(CLIENT | room, Token::Client(conn).encode()));
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

    /// Waits, and appends who is ready, and whether its peer hung up.
    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        ready: &mut Vec<(Token, bool)>,
    ) -> io::Result<()> {
        // Rounded up, so that the last fraction of a millisecond is slept and not spun.
        let millis = timeout.map(|timeout| timeout.as_nanos().div_ceil(1_000_000));
        let timeout = millis.map_or(EpollTimeout::NONE, |ms| {
            i32::try_from(ms).ok().and_then(|ms| ms.try_into().ok()).unwrap_or(EpollTimeout::MAX)
        });
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Err(Sys::EINTR) => 0,
            count => count?,
        };
        let ready_one =
            |event: &EpollEvent| (Token::decode(event.data()), event.events().intersects(HANG_UP));
        ready.extend(self.events.iter().take(count).map(ready_one));
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
        assert_eq!(ready, [(token, true)]);
        poller.set(&ours, token, EpollFlags::EPOLLIN);
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert_eq!(ready, [(token, true); 2]);
    }

    #[test]
    fn what_could_be_waited_for_is_not_waited_for() {
        use nix::sys::eventfd::EventFd;
        let poller = Poller::new().unwrap();
        let kick = OwnedFd::from(EventFd::new().unwrap());
        for _ in 0..2 {
            poller.would_add(&kick).unwrap();
        }
        poller.add_kick(&kick, Token::Kick(ConnId(1))).unwrap();
        assert!(poller.would_add(&kick).is_err(), "it is waited for");
        assert!(poller.would_add(&std::fs::File::open("/proc/self/exe").unwrap().into()).is_err());
    }

    #[test]
    fn a_client_is_told_of_once_per_message_and_at_its_end() {
        use std::io::Write;
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add_client(&ours, ConnId(1)).unwrap();
        let mut told = || {
            let mut ready = Vec::new();
            poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
            ready.into_iter().map(|(_, hung_up)| hung_up).collect::<Vec<_>>()
        };
        assert_eq!(told(), []);
        for _ in 0..2 {
            theirs.write_all(b"x").unwrap();
            assert_eq!((told(), told()), (vec![false], vec![]));
        }
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!((told(), told()), (vec![true], vec![]));
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
