//! The thread of a connected channel: bytes between the guest's rings and the peer.

use super::outlet::{Outlet, Peer};
use super::{Carried, KEEP};
use crate::backend::console::ring::Ring;
use crate::socket::hung_up;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use xen_domain::ring::RingError;

/// Input that waits for the guest; more stays with the peer.
const INPUT_MAX: usize = 64 << 10;
/// Output that waits for a client; more stays in the ring.
const OUTPUT_MAX: usize = 64 << 10;

/// One connected channel.
pub struct Link {
    ring: Ring,
    kick: File,
    notify: File,
    outlet: Arc<Outlet>,
    carried: Arc<Carried>,
    stop: Arc<EventFd>,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
}

/// What is known of the peer.
struct Talk<'a> {
    peer: Peer<'a>,
    /// It will not write any more.
    silent: bool,
}

impl Link {
    /// Between `ring` and `outlet`, until `stop` is signalled.
    ///
    /// # Errors
    /// The kick eventfd is none.
    pub fn new(
        ring: Ring,
        (kick, notify): (File, File),
        (outlet, carried): (Arc<Outlet>, Arc<Carried>),
        stop: Arc<EventFd>,
    ) -> io::Result<Link> {
        fcntl(&kick, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok(Link {
            ring,
            kick,
            notify,
            outlet,
            carried,
            stop,
            input: VecDeque::new(),
            output: VecDeque::new(),
        })
    }

    /// Until it is told to stop.
    ///
    /// # Errors
    /// The guest has broken its rings.
    pub fn run(mut self) -> Result<(), RingError> {
        let outlet = self.outlet.clone();
        let mut talk = None;
        loop {
            if talk.is_none() {
                talk = outlet.accept().map(|peer| Talk { peer, silent: false });
            }
            let more = self.step(&mut talk)?;
            if self.wait(&outlet, talk.as_ref(), more) {
                return Ok(());
            }
        }
    }

    /// Sleeps until there may be something to do, not at all if there is; whether that is to stop.
    fn wait(&self, outlet: &Outlet, talk: Option<&Talk<'_>>, more: bool) -> bool {
        let mut fds = vec![
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.kick.as_fd(), PollFlags::POLLIN),
        ];
        match talk {
            Some(Talk { peer, silent }) => {
                let mut on = PollFlags::empty();
                on.set(PollFlags::POLLIN, !silent && self.input.len() < INPUT_MAX);
                on.set(PollFlags::POLLOUT, !self.output.is_empty());
                fds.push(PollFd::new(peer.as_fd(), on));
            }
            None => fds.extend(outlet.listener().map(|fd| PollFd::new(fd, PollFlags::POLLIN))),
        }
        // Interrupted is as good as ready.
        let _ = poll(&mut fds, if more { PollTimeout::ZERO } else { PollTimeout::NONE });
        let stop = fds.first().and_then(PollFd::any).unwrap_or(false);
        // The count says nothing: every step looks at the rings.
        let _ = (&self.kick).read(&mut [0; 8]);
        stop
    }

    /// Moves what can be moved; whether there may be more.
    fn step(&mut self, talk: &mut Option<Talk<'_>>) -> Result<bool, RingError> {
        let mut gone = false;
        if let Some(talk) = talk {
            gone = self.listen(talk) | self.speak(talk);
            gone |= talk.peer.may_leave() && hung_up(talk.peer.as_fd());
        }
        if gone {
            // What was meant for it is nobody else's.
            *talk = None;
            self.output.clear();
        }
        let (put, taken) = (self.put()?, self.take(talk.as_ref())?);
        if put || taken {
            // Full only if the guest has 2^64 - 2 notifications to take.
            let _ = self.notify.write(&1u64.to_ne_bytes());
        }
        Ok(taken)
    }

    /// From the peer; whether it has left.
    fn listen(&mut self, talk: &mut Talk<'_>) -> bool {
        let mut chunk = [0; 4096];
        while !talk.silent && self.input.len() < INPUT_MAX {
            match talk.peer.read(&mut chunk) {
                // It may still want to read the answer.
                Ok(0) => talk.silent = true,
                Ok(n) => self.input.extend(chunk.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return e.kind() != ErrorKind::WouldBlock && talk.peer.may_leave(),
            }
        }
        false
    }

    /// To the peer; whether it has left.
    fn speak(&mut self, talk: &mut Talk<'_>) -> bool {
        while !self.output.is_empty() {
            match talk.peer.write(self.output.as_slices().0) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return e.kind() != ErrorKind::WouldBlock && talk.peer.may_leave(),
            }
        }
        false
    }

    /// To the guest.
    fn put(&mut self) -> Result<bool, RingError> {
        let mut any = false;
        while !self.input.is_empty() {
            match self.ring.put(self.input.as_slices().0)? {
                0 => break,
                n => {
                    self.input.drain(..n);
                    self.carried.to_guest.fetch_add(n as u64, Ordering::Relaxed);
                }
            }
            any = true;
        }
        Ok(any)
    }

    /// From the guest. A client that does not read holds it back, a pty and nobody do not: the oldest output goes.
    fn take(&mut self, talk: Option<&Talk<'_>>) -> Result<bool, RingError> {
        let held = talk.is_some_and(|talk| talk.peer.may_leave());
        let room = if held { OUTPUT_MAX.saturating_sub(self.output.len()) } else { OUTPUT_MAX };
        let mut bytes = Vec::new();
        let taken = self.ring.take(&mut bytes, room)?;
        self.carried.from_guest.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.output.extend(&bytes);
        if !held {
            self.output.drain(..self.output.len().saturating_sub(KEEP));
        }
        Ok(taken > 0)
    }
}
