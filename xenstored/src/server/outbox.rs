//! Messages that a connection has not taken yet.

use std::collections::{HashSet, VecDeque};

use crate::wire::{HEADER_LEN, MsgType, split};

/// Unsent bytes from which on an event that is queued already is not queued again.
const CROWDED: usize = 16 * 1024;

/// Unsent messages of one connection, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// Bytes at the front that are sent.
    sent: usize,
    /// Length of every message that is not sent entirely, and whether it is an event.
    messages: VecDeque<(usize, bool)>,
    /// Bytes of the first message that are sent.
    partial: usize,
    /// The first message is the rest of one that was sent elsewhere, and has no header.
    headless: bool,
    replies: usize,
    events: HashSet<Box<[u8]>>,
}

impl Outbox {
    /// Queues a message with its header. An event that is in the queue already is left out when it is crowded;
    /// special events are always queued. `false` if there is no memory for it.
    #[must_use]
    pub(super) fn push(&mut self, message: &[u8], event: bool) -> bool {
        let room = self.bytes.try_reserve(message.len()).and_then(|()| self.messages.try_reserve(1));
        if room.is_err() || self.events.try_reserve(1).is_err() {
            return false;
        }
        let special = message.get(HEADER_LEN) == Some(&b'@');
        if event && !special && self.len() > CROWDED && !self.events.insert(message.into()) {
            return true;
        }
        self.push_raw(message, event);
        true
    }

    fn push_raw(&mut self, message: &[u8], event: bool) {
        self.replies += usize::from(!event);
        self.messages.push_back((message.len(), event));
        self.bytes.extend_from_slice(message);
    }

    /// Messages that were queued elsewhere; the first `partial` bytes are the rest of one.
    pub(super) fn resumed(bytes: Vec<u8>, partial: usize) -> Self {
        let mut outbox = Self::default();
        let mut rest = bytes.as_slice();
        if let Some((first, others)) = rest.split_at_checked(partial).filter(|_| partial > 0) {
            outbox.push_raw(first, false);
            outbox.headless = true;
            rest = others;
        }
        while let Ok(Some((header, payload))) = split(rest) {
            let Some((message, others)) = rest.split_at_checked(HEADER_LEN + payload.len()) else { break };
            if !outbox.push(message, header.kind == MsgType::WATCH_EVENT) {
                break;
            }
            rest = others;
        }
        outbox
    }

    /// How many bytes of a message are left that was sent in part.
    pub(super) fn rest_of_first(&self) -> usize {
        let first = self.messages.front().filter(|_| self.headless || self.partial > 0);
        first.map_or(0, |(len, _)| len - self.partial)
    }

    /// The unsent bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    /// How many bytes are unsent.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Bytes that it keeps room for.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// How many replies are not sent entirely.
    pub(super) fn replies(&self) -> usize {
        self.replies
    }

    /// `count` bytes are sent.
    pub(super) fn advance(&mut self, count: usize) {
        let mut done = self.partial + count;
        let mut start = self.sent - self.partial;
        while let Some(&(len, event)) = self.messages.front().filter(|(len, _)| *len <= done) {
            if event && !self.events.is_empty() {
                self.events.remove(self.bytes.get(start..start + len).unwrap_or_default());
            }
            self.replies -= usize::from(!event);
            self.messages.pop_front();
            self.headless = false;
            start += len;
            done -= len;
        }
        self.partial = done;
        self.sent += count;
        if self.sent == self.bytes.len() {
            // One big reply must not keep its room for ever.
            if self.bytes.capacity() > 4 * CROWDED {
                (self.bytes, self.messages, self.events) = <_>::default();
            }
            self.bytes.clear();
            self.sent = 0;
        } else if start >= self.bytes.len() / 2 {
            self.bytes.drain(..start);
            self.sent -= start;
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &str) -> Vec<u8> {
        let mut message = vec![0; HEADER_LEN];
        message.extend_from_slice(payload.as_bytes());
        message
    }

    #[test]
    fn a_queue_goes_on_elsewhere_in_the_middle_of_a_message() {
        let mut outbox = Outbox::default();
        for kind in [MsgType::READ, MsgType::WATCH_EVENT, MsgType::WRITE] {
            let mut message = Vec::new();
            crate::wire::put(&mut message, kind, 1, 2, &[b"payload"]).unwrap();
            assert!(outbox.push(&message, kind == MsgType::WATCH_EVENT));
        }
        for sent in [0, 1, 22, 1, 22, 1] {
            outbox.advance(sent);
            let mut resumed = Outbox::resumed(outbox.bytes().to_vec(), outbox.rest_of_first());
            assert_eq!(resumed.bytes(), outbox.bytes());
            assert_eq!(resumed.rest_of_first(), outbox.rest_of_first());
            resumed.advance(resumed.len());
            assert_eq!((resumed.len(), resumed.replies(), resumed.messages.len()), (0, 0, 0));
        }
    }

    #[test]
    fn v7_crowded_events_are_collapsed_until_they_are_sent() {
        let mut outbox = Outbox::default();
        assert!(outbox.push(&vec![1; CROWDED + 1], false));
        for _ in 0..3 {
            assert!(outbox.push(&message("/a"), true));
            assert!(outbox.push(&message("@releaseDomain"), true));
        }
        assert_eq!(outbox.len(), CROWDED + 1 + 18 + 3 * 30);
        assert_eq!(outbox.replies(), 1);
        outbox.advance(CROWDED);
        assert_eq!((outbox.replies(), outbox.bytes()[0]), (1, 1));
        outbox.advance(1 + 17);
        assert!(outbox.push(&vec![1; CROWDED + 1], false));
        assert!(outbox.push(&message("/a"), true));
        assert_eq!(outbox.len(), 1 + 3 * 30 + CROWDED + 1, "still in the queue");
        outbox.advance(1);
        assert!(outbox.push(&message("/a"), true));
        assert_eq!(outbox.len(), 3 * 30 + CROWDED + 1 + 18, "was sent");
        outbox.advance(outbox.len());
        assert_eq!((outbox.len(), outbox.replies(), outbox.bytes.len()), (0, 0, 0));
    }
}
