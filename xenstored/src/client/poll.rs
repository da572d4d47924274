//! For programs with an event loop: nothing here waits.

use std::time::Instant;

use super::error::Result;
use super::{Client, WatchEvent};
use crate::wire::MsgType;

/// A request that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u32);

/// What came from the store, see [`Client::step`].
#[derive(Debug)]
pub enum Incoming {
    /// A watch fired.
    Event(WatchEvent),
    /// The answer to a request.
    Reply {
        /// Which.
        id: RequestId,
        /// The payload, or why the store refused.
        reply: Result<Vec<u8>>,
    },
}

/// A request without somebody who waits for its reply.
#[derive(Debug)]
pub(super) enum Asked {
    /// [`Client::step`] tells its reply.
    Submitted { kind: MsgType, what: String },
    /// Nobody wants to know any more.
    GivenUp,
}

impl Client {
    /// Sends any request, or as much of it as the store has room for; [`Client::step`] sends the rest and tells the reply.
    ///
    /// `what` says in errors what the request was about, usually the path.
    ///
    /// # Errors
    /// `E2BIG` for a payload that fits no message, [`Error::Io`](super::Error::Io) if the daemon is gone.
    pub fn submit(&mut self, kind: MsgType, what: &str, parts: &[&[u8]]) -> Result<RequestId> {
        self.submit_in(0, kind, what, parts)
    }

    /// As [`Client::submit`], in a transaction whose number the reply to a submitted TRANSACTION_START has told.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub fn submit_in(&mut self, tx_id: u32, kind: MsgType, what: &str, parts: &[&[u8]]) -> Result<RequestId> {
        let id = self.next_id();
        self.transport.queue(kind, id, tx_id, parts)?;
        self.asked.insert(id, Asked::Submitted { kind, what: what.to_owned() });
        self.transport.flush(&[], Some(Instant::now()))?;
        Ok(RequestId(id))
    }

    /// Whether the descriptor has to be polled for writing too: a submitted request waits to be sent.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.transport.has_output()
    }

    /// Sends and receives what can be without waiting, and tells the next event or reply in the order of their arrival.
    /// `None`: poll the descriptor. What was kept aside for a waiting request comes first, so this is called until it
    /// says `None` before the descriptor is polled.
    ///
    /// # Errors
    /// [`Error::Io`](super::Error::Io) if the daemon is gone, [`Error::Protocol`](super::Error::Protocol).
    pub fn step(&mut self) -> Result<Option<Incoming>> {
        let now = Instant::now();
        self.transport.flush(&[], Some(now))?;
        while self.inbox.is_empty() {
            match self.transport.receive(Some(now))? {
                None => return Ok(None),
                Some((header, payload)) => self.keep(header, &payload)?,
            }
        }
        Ok(self.inbox.pop_front())
    }
}
