//! One connection of the server: what carries its bytes, and its buffers.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno as Sys;
use nix::sys::socket::{MsgFlags, send};

use super::counters::Counters;
use super::fds::{self, Came, Notify};
use super::outbox::Outbox;
use super::unsent::Kept;
use crate::DomId;
use crate::ring::{Fault, Ring};
use crate::wire::{TooLong, split};

/// What happened to a connection when it was read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("closed by the peer")]
    Closed,
    #[error("reads too slowly, its messages have no room left")]
    Overflow,
    #[error(transparent)]
    Protocol(#[from] TooLong),
    #[error(transparent)]
    Socket(#[from] Sys),
    #[error(transparent)]
    Ring(#[from] Fault),
}

/// What carries the bytes.
pub(super) enum Carrier {
    /// A client's socket.
    Socket(OwnedFd),
    /// A domain's ring.
    Ring(DomainRing),
}

/// A ring with its descriptors.
pub(super) struct DomainRing {
    pub(super) domid: DomId,
    pub(super) ring: Ring,
    pub(super) kick: OwnedFd,
    pub(super) notify: Notify,
    pub(super) lifeline: Option<OwnedFd>,
    pub(super) features: u32,
    /// It did something impossible and is not served until it reconnects or is introduced again.
    pub(super) faulty: bool,
}

/// One connection.
pub(super) struct Link {
    pub(super) carrier: Carrier,
    /// Received and not yet handled.
    pub(super) inbox: Vec<u8>,
    /// Descriptors received and not yet claimed by an INTRODUCE.
    pub(super) fds: VecDeque<OwnedFd>,
    /// Whether they are all.
    pub(super) came: Came,
    pub(super) outbox: Outbox,
    /// What of the outbox is in the state folder.
    pub(super) kept: Option<Kept>,
    /// There may be something to read from the socket.
    pub(super) readable: bool,
    /// The socket's peer hung up: what it has sent is read to the end.
    pub(super) hung_up: bool,
    /// The loop tells when there is room in the socket.
    pub(super) wants_room: bool,
    /// It got messages and was not flushed since.
    pub(super) written: bool,
    /// It did not take more messages than can be kept for it.
    pub(super) overflowed: bool,
    /// The domain must hear of what was done to its ring.
    pub(super) notify: bool,
    /// Bytes of the ring that were handled, and whose room is given back when the replies are there: a store that
    /// dies before finds the requests again.
    pub(super) handled: usize,
    /// It stands in the server's queue.
    pub(super) queued: bool,
    /// The peer will send nothing more.
    pub(super) ended: bool,
    /// Its next request has to wait for a live update.
    pub(super) held: bool,
    /// What is for it waits until what it has removed is done away with.
    pub(super) settling: bool,
    pub(super) counters: Counters,
}

impl Link {
    pub(super) fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            inbox: Vec::new(),
            fds: VecDeque::new(),
            came: Came::None,
            outbox: Outbox::default(),
            kept: None,
            readable: true,
            hung_up: false,
            wants_room: false,
            written: false,
            overflowed: false,
            notify: false,
            handled: 0,
            queued: false,
            ended: false,
            held: false,
            settling: false,
            counters: Counters::default(),
        }
    }

    pub(super) fn is_ring(&self) -> bool {
        matches!(self.carrier, Carrier::Ring(_))
    }

    /// Queues a message. Who lets events wait beyond `limit` bytes is given up: it would not know what it missed.
    pub(super) fn push(&mut self, message: &[u8], event: bool, limit: usize) {
        let over = event && self.outbox.len() + message.len() > limit;
        if over || !self.outbox.push(message, event) {
            self.overflowed = true;
        } else {
            self.counters.sent(message.len(), event);
        }
    }

    /// Whether a whole message is waiting to be handled.
    pub(super) fn has_message(&self) -> Result<bool, TooLong> {
        Ok(!self.inbox.is_empty() && split(&self.inbox)?.is_some())
    }

    /// Appends what has come to `bytes`, at most one chunk. `Ok(0)`: nothing there now, or nothing any more. What comes
    /// from a ring stays there.
    pub(super) fn receive(&mut self, chunk: &mut [u8], bytes: &mut Vec<u8>) -> Result<usize, Broken> {
        let count = match &self.carrier {
            Carrier::Ring(domain) => domain.ring.peek(bytes)?,
            Carrier::Socket(fd) => match fds::receive(fd, chunk, &mut self.fds) {
                Ok((count, came)) => {
                    self.ended = count == 0;
                    if came != Came::None {
                        self.came = came;
                    }
                    let more = count == chunk.len() || came != Came::None || self.hung_up;
                    self.readable = more && !self.ended;
                    bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
                    count
                }
                Err(Sys::EAGAIN) => {
                    self.readable = false;
                    0
                }
                Err(Sys::EINTR) => 0,
                Err(error) => return Err(error.into()),
            },
        };
        if !self.is_ring() {
            self.counters.received(count);
        }
        Ok(count)
    }

    /// Sends what the peer can take of the outbox.
    pub(super) fn flush(&mut self) -> Result<(), Broken> {
        while self.outbox.len() > 0 {
            let sent = match &self.carrier {
                Carrier::Ring(domain) => domain.ring.send(self.outbox.bytes())?,
                Carrier::Socket(fd) => send_some(fd, self.outbox.bytes())?,
            };
            if sent == 0 {
                break;
            }
            self.outbox.advance(sent);
            self.notify = true;
        }
        if let Carrier::Ring(domain) = &self.carrier
            && self.handled > 0
        {
            domain.ring.consume(std::mem::take(&mut self.handled))?;
            self.notify = true;
        }
        Ok(())
    }

    /// Tells a domain of what was done to its ring, once for all of it.
    pub(super) fn signal(&mut self) {
        if let Carrier::Ring(domain) = &self.carrier
            && std::mem::take(&mut self.notify)
        {
            domain.notify.signal();
        }
    }
}

fn send_some(fd: &OwnedFd, bytes: &[u8]) -> nix::Result<usize> {
    match send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
        Err(Sys::EAGAIN | Sys::EINTR) => Ok(0),
        sent => sent,
    }
}
