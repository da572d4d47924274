//! One connection of the server: what carries its bytes, and its buffers.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use calloop::generic::Generic;
use calloop::{Dispatcher, RegistrationToken};
use nix::errno::Errno as Sys;
use nix::sys::socket::{MsgFlags, sendmsg};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::Server;
use super::outbox::Outbox;
use crate::DomId;
use crate::ring::{Fault, Ring};
use crate::wire::{TooLong, split};

/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;
/// Descriptors that INTRODUCE carries at most.
pub(super) const RING_FDS: usize = 4;

/// A source of the event loop whose interest can be changed.
pub(super) type Source = Dispatcher<'static, Generic<Rc<OwnedFd>>, Server>;

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
    Socket { fd: Rc<OwnedFd>, source: Source, token: RegistrationToken },
    /// A domain's ring.
    Ring(DomainRing),
}

/// A ring with its descriptors, registered in the event loop.
pub(super) struct DomainRing {
    pub(super) domid: DomId,
    pub(super) ring: Ring,
    pub(super) notify: OwnedFd,
    pub(super) features: u32,
    pub(super) tokens: Vec<RegistrationToken>,
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
    pub(super) outbox: Outbox,
    /// It got messages and was not flushed since.
    pub(super) written: bool,
    /// It did not take more messages than can be kept for it.
    pub(super) overflowed: bool,
    /// The domain must hear of what was done to its ring.
    pub(super) notify: bool,
    /// It stands in the server's queue.
    pub(super) queued: bool,
    /// The peer will send nothing more.
    pub(super) ended: bool,
}

impl Link {
    pub(super) fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            inbox: Vec::new(),
            fds: VecDeque::new(),
            outbox: Outbox::default(),
            written: false,
            overflowed: false,
            notify: false,
            queued: false,
            ended: false,
        }
    }

    /// Queues a message. For a guest that lets more than `limit` bytes wait, events are left out; a client on the socket
    /// is then given up, because it would not know that it missed something.
    pub(super) fn push(&mut self, message: &[u8], event: bool, limit: usize) {
        if event && self.outbox.len() + message.len() > limit {
            self.overflowed |= matches!(self.carrier, Carrier::Socket { .. });
        } else {
            self.outbox.push(message, event);
        }
    }

    /// Whether a whole message is waiting to be handled.
    pub(super) fn has_message(&self) -> Result<bool, TooLong> {
        split(&self.inbox).map(|message| message.is_some())
    }

    /// Takes in what has come, at most one chunk. `Ok(0)`: nothing there now, or nothing any more.
    pub(super) fn receive(&mut self) -> Result<usize, Broken> {
        match &self.carrier {
            Carrier::Ring(domain) => {
                let count = domain.ring.receive(&mut self.inbox)?;
                self.notify |= count > 0;
                Ok(count)
            }
            Carrier::Socket { fd, .. } => {
                let mut chunk = [0; CHUNK];
                match receive_with_fds(fd, &mut chunk, &mut self.fds) {
                    Ok(0) => {
                        self.ended = true;
                        Ok(0)
                    }
                    Ok(count) => {
                        self.inbox.extend_from_slice(chunk.get(..count).unwrap_or_default());
                        Ok(count)
                    }
                    Err(Sys::EAGAIN | Sys::EINTR) => Ok(0),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Sends what the peer can take of the outbox, and notifies a domain if its ring was touched.
    pub(super) fn flush(&mut self) -> Result<(), Broken> {
        while self.outbox.len() > 0 {
            let sent = match &self.carrier {
                Carrier::Ring(domain) => domain.ring.send(self.outbox.bytes())?,
                Carrier::Socket { fd, .. } => send(fd, self.outbox.bytes())?,
            };
            if sent == 0 {
                break;
            }
            self.outbox.advance(sent);
            self.notify = true;
        }
        if let Carrier::Ring(domain) = &self.carrier
            && std::mem::take(&mut self.notify)
        {
            // An eventfd whose counter is full has been signalled.
            let _ = nix::unistd::write(&domain.notify, &1u64.to_ne_bytes());
        }
        Ok(())
    }
}

fn receive_with_fds(fd: &OwnedFd, chunk: &mut [u8], fds: &mut VecDeque<OwnedFd>) -> nix::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RING_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(fd, &mut [IoSliceMut::new(chunk)], &mut control, flags)
        .map_err(|errno| Sys::from_raw(errno.raw_os_error()))?;
    for rights in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = rights {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) || fds.len() > RING_FDS {
        fds.clear();
    }
    Ok(message.bytes)
}

fn send(fd: &OwnedFd, bytes: &[u8]) -> nix::Result<usize> {
    match sendmsg::<()>(
        fd.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &[],
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None,
    ) {
        Err(Sys::EAGAIN | Sys::EINTR) => Ok(0),
        sent => sent,
    }
}
