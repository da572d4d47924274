//! What is in the page: who is there, and a ring of bytes each way.

use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};

use crate::device::Page;

/// Bytes of a ring: less than ten messages, so that each side waits for the other again and again.
const SIZE: u32 = 512;
/// The longest message.
const LONGEST: u32 = 200;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Grants the page and opens the port.
    Server,
    /// Comes to it.
    Client,
}

impl Role {
    /// The other one.
    pub fn other(self) -> Role {
        match self {
            Role::Server => Role::Client,
            Role::Client => Role::Server,
        }
    }

    /// Where the byte is that says whether it is there.
    pub fn life(self) -> usize {
        self as usize * 4
    }

    /// What it sends as its message of that number: as long as that makes it, and unlike any other.
    pub fn message(self, number: u32) -> Vec<u8> {
        let mut seed = number.wrapping_mul(2_654_435_761) ^ (self as u32 + 1);
        let bytes = std::iter::repeat_with(|| {
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            seed.to_le_bytes()[0]
        });
        let length = 1 + number.wrapping_mul(7) % LONGEST;
        bytes.take(length as usize).collect()
    }

    /// The ring that it sends by.
    pub fn ring(self, page: &Page) -> Ring<'_> {
        let indexes = 64 * (1 + self as usize);
        Ring { page, indexes, data: 1024 * (1 + self as usize) }
    }
}

/// A ring of bytes: two free-running indexes and the bytes. A message is a byte with its length, and its bytes.
#[derive(Debug)]
pub struct Ring<'a> {
    page: &'a Page,
    indexes: usize,
    data: usize,
}

impl Ring<'_> {
    /// Sent and received so far, and the difference.
    fn indexes(&self) -> Result<(u32, u32, u32)> {
        let [sent, received] = [0, 4].map(|at| self.page.u32(self.indexes + at).load(Ordering::Acquire));
        let used = sent.wrapping_sub(received);
        ensure!(used <= SIZE, "a ring of {SIZE} bytes has {used}");
        Ok((sent, received, used))
    }

    fn at(&self, index: u32) -> &std::sync::atomic::AtomicU8 {
        self.page.u8(self.data + (index % SIZE) as usize)
    }

    /// Sends a message if there is room.
    pub fn put(&self, message: &[u8]) -> Result<bool> {
        let (sent, _, used) = self.indexes()?;
        let length = u8::try_from(message.len())?;
        if used + 1 + u32::from(length) > SIZE {
            return Ok(false);
        }
        let mut index = sent;
        for &byte in std::iter::once(&length).chain(message) {
            self.at(index).store(byte, Ordering::Relaxed);
            index = index.wrapping_add(1);
        }
        self.page.u32(self.indexes).store(index, Ordering::Release);
        Ok(true)
    }

    /// The next message, if one is there.
    pub fn take(&self) -> Result<Option<Vec<u8>>> {
        let (_, received, used) = self.indexes()?;
        if used == 0 {
            return Ok(None);
        }
        let read = |offset: u32| self.at(received.wrapping_add(offset)).load(Ordering::Relaxed);
        let length = u32::from(read(0));
        ensure!(length < used, "a message of {length} bytes in {used}");
        let message = (1..=length).map(read).collect();
        self.page.u32(self.indexes + 4).store(received.wrapping_add(1 + length), Ordering::Release);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_and_in_order() {
        let page = Page::alone();
        let ring = Role::Client.ring(&page);
        page.u32(ring.indexes).store(u32::MAX - 700, Ordering::Relaxed);
        page.u32(ring.indexes + 4).store(u32::MAX - 700, Ordering::Relaxed);
        let (mut sent, mut received) = (0, 0);
        while received < 500 {
            while ring.put(&Role::Client.message(sent)).unwrap() {
                sent += 1;
            }
            assert_ne!(sent, received, "a message that is never sent");
            assert_eq!(ring.take().unwrap().unwrap(), Role::Client.message(received));
            received += 1;
        }
        assert_ne!(Role::Client.message(3), Role::Server.message(3));
        assert!(Role::Server.ring(&page).take().unwrap().is_none(), "each way has a ring of its own");
        page.u32(ring.indexes).fetch_add(SIZE, Ordering::Relaxed);
        assert!(ring.take().is_err() && ring.put(b"x").is_err());
    }
}
