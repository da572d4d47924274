//! What the store says: messages for connections, and what its server must do.

use std::ops::Range;

use crate::DomId;
use crate::store::{Call, ConnId};
use crate::wire::{self, Errno, MsgType};

/// A change of the connections that the server carries out before it lets a reply go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve the ring that came with the request as this connection; `again` if the domain had one before.
    Serve {
        /// The connection of the domain.
        conn: ConnId,
        /// The domain.
        domid: DomId,
        /// Features to offer in the ring page.
        features: u32,
        /// The domain was introduced already: its ring is reset.
        again: bool,
    },
    /// The domain of this connection is no more: drop its ring.
    Drop(ConnId),
    /// This connection has waited (see `Store::must_wait`) and can be asked for again.
    Wake(ConnId),
}

/// Bytes that are kept for the next request.
const KEPT: usize = 256 * 1024;

/// One message in an [`Out`].
#[derive(Clone, Debug)]
struct Message {
    conn: ConnId,
    bytes: Range<usize>,
    event: bool,
}

/// Output of the store, in order. The server empties it after every request.
#[derive(Debug, Default)]
pub struct Out {
    bytes: Vec<u8>,
    messages: Vec<Message>,
    /// For the server.
    pub actions: Vec<Action>,
    /// Connections for whose messages there was no memory.
    pub lost: Vec<ConnId>,
}

impl Out {
    /// The messages: for whom, the bytes with their header, and whether it is a watch event.
    pub fn messages(&self) -> impl Iterator<Item = (ConnId, &[u8], bool)> {
        self.messages.iter().map(|message| {
            let bytes = self.bytes.get(message.bytes.clone()).unwrap_or_default();
            (message.conn, bytes, message.event)
        })
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.messages.clear();
        self.actions.clear();
        self.lost.clear();
        // What one request has told thousands must not keep its room for ever.
        self.bytes.shrink_to(KEPT);
        self.messages.shrink_to(KEPT / size_of::<Message>());
    }

    /// Forgets the messages, and keeps what the server must do.
    pub fn silence(&mut self) {
        self.bytes.clear();
        self.messages.clear();
        self.lost.clear();
    }

    /// Answers a request.
    ///
    /// # Errors
    /// `E2BIG` if the payload does not fit into a message.
    pub fn reply(&mut self, call: &Call<'_>, parts: &[&[u8]]) -> Result<(), Errno> {
        self.put(call.conn, call.header.kind, (call.header.req_id, call.header.tx_id), parts)
    }

    /// Answers a request that has nothing to answer.
    ///
    /// # Errors
    /// None; so that handlers can end with it.
    pub fn ack(&mut self, call: &Call<'_>) -> Result<(), Errno> {
        self.reply(call, &[b"OK\0"])
    }

    /// Refuses a request.
    pub fn error(&mut self, call: &Call<'_>, errno: Errno) {
        let ids = (call.header.req_id, call.header.tx_id);
        // An error's name always fits.
        let _ = self.put(call.conn, MsgType::ERROR, ids, &[errno.name().as_bytes(), b"\0"]);
    }

    /// Sends a watch event; one that does not fit into a message is dropped.
    pub fn event(&mut self, conn: ConnId, path: &str, token: &[u8]) {
        let _ = self.put(conn, MsgType::WATCH_EVENT, (0, 0), &[path.as_bytes(), b"\0", token, b"\0"]);
    }

    fn put(
        &mut self,
        conn: ConnId,
        kind: MsgType,
        (req_id, tx_id): (u32, u32),
        parts: &[&[u8]],
    ) -> Result<(), Errno> {
        let (start, most) = (self.bytes.len(), wire::HEADER_LEN + wire::PAYLOAD_MAX);
        if self.bytes.try_reserve(most).is_err() || self.messages.try_reserve(1).is_err() {
            self.lost.push(conn);
            return Err(Errno::ENOMEM);
        }
        wire::put(&mut self.bytes, kind, req_id, tx_id, parts).map_err(|_| Errno::E2BIG)?;
        let event = kind == MsgType::WATCH_EVENT;
        self.messages.push(Message { conn, bytes: start..self.bytes.len(), event });
        Ok(())
    }
}
