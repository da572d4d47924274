//! Byte rings in a shared page, from the back-end's side: the console's, and any other of the same make.
//!
//! The front-end may change every byte and index at any time. Each index of its is read once, judged as a copy, and
//! refused when impossible ([`RingError::Index`]); our own indices are kept in the page as the protocol wants, but
//! never trusted from it: [`ByteRing`] holds them privately.

use xen_abi::io::console;
use xen_abi::io::ring::{BadIndex, Pieces, free, pieces, queued};

use crate::mem::{Fault, Gpa, GuestMem, SpecialPage};

/// The loads and stores that a ring page needs; offsets count from the page's start.
pub trait RingPage {
    /// Acquire load.
    ///
    /// # Errors
    /// The page is gone.
    fn load(&self, offset: usize) -> Result<u32, Fault>;
    /// Release store.
    ///
    /// # Errors
    /// The page is gone.
    fn store(&self, offset: usize, value: u32) -> Result<(), Fault>;
    /// Copies out.
    ///
    /// # Errors
    /// The page is gone.
    fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), Fault>;
    /// Copies in.
    ///
    /// # Errors
    /// The page is gone.
    fn write(&self, offset: usize, buf: &[u8]) -> Result<(), Fault>;
}

/// A special page as a ring page, at its home in guest memory.
pub struct SpecialRing<'a> {
    mem: &'a dyn GuestMem,
    base: Gpa,
}

impl<'a> SpecialRing<'a> {
    /// The page, wherever the guest has placed it.
    #[must_use]
    pub fn new(mem: &'a dyn GuestMem, page: SpecialPage) -> Self {
        Self::at(mem, page.home())
    }

    /// Any page as a ring page.
    #[must_use]
    pub fn at(mem: &'a dyn GuestMem, base: Gpa) -> Self {
        SpecialRing { mem, base }
    }
}

impl RingPage for SpecialRing<'_> {
    fn load(&self, offset: usize) -> Result<u32, Fault> {
        self.mem.load_u32(self.base.offset(offset as u64))
    }

    fn store(&self, offset: usize, value: u32) -> Result<(), Fault> {
        self.mem.store_u32(self.base.offset(offset as u64), value)
    }

    fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), Fault> {
        self.mem.read(self.base.offset(offset as u64), buf)
    }

    fn write(&self, offset: usize, buf: &[u8]) -> Result<(), Fault> {
        self.mem.write(self.base.offset(offset as u64), buf)
    }
}

/// Why a ring cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The page is gone.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The front-end has written an impossible index; nothing was copied.
    #[error(transparent)]
    Index(#[from] BadIndex),
}

/// Which end of the ring we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Consumer,
    Producer,
}

/// One direction of a byte ring of `SIZE` bytes, our end of it.
#[derive(Clone, Copy, Debug)]
pub struct ByteRing<const SIZE: u32> {
    /// Where the bytes begin.
    data: usize,
    /// Where our index is told.
    ours_at: usize,
    /// Where the front-end tells its index.
    theirs_at: usize,
    /// Our index.
    ours: u32,
    end: End,
}

/// The bytes that the guest prints.
pub type ConsoleOut = ByteRing<{ console::OUT_SIZE }>;
/// The bytes that are typed to the guest.
pub type ConsoleIn = ByteRing<{ console::IN_SIZE }>;

impl ConsoleOut {
    /// We consume what the guest prints, from the index in the page on.
    ///
    /// # Errors
    /// The page is gone.
    pub fn attach(page: &dyn RingPage) -> Result<Self, Fault> {
        Self::new(page, End::Consumer, console::OUT_RING, console::OUT_CONS, console::OUT_PROD)
    }
}

impl ConsoleIn {
    /// We produce what is typed, from the index in the page on.
    ///
    /// # Errors
    /// The page is gone.
    pub fn attach(page: &dyn RingPage) -> Result<Self, Fault> {
        Self::new(page, End::Producer, console::IN_RING, console::IN_PROD, console::IN_CONS)
    }
}

impl<const SIZE: u32> ByteRing<SIZE> {
    fn new(
        page: &dyn RingPage,
        end: End,
        data: usize,
        ours_at: usize,
        theirs_at: usize,
    ) -> Result<Self, Fault> {
        Ok(ByteRing { data, ours_at, theirs_at, ours: page.load(ours_at)?, end })
    }

    /// Bytes that wait for a consumer; room that a producer has.
    ///
    /// # Errors
    /// The page is gone or the front-end's index is impossible.
    pub fn available(&self, page: &dyn RingPage) -> Result<u32, RingError> {
        let theirs = page.load(self.theirs_at)?;
        Ok(match self.end {
            End::Consumer => queued::<SIZE>(theirs, self.ours)?,
            End::Producer => free::<SIZE>(self.ours, theirs)?,
        })
    }

    /// Takes up to `buf.len()` bytes; the number taken. The front-end wants to be notified if it is not 0.
    ///
    /// # Errors
    /// The page is gone or the front-end's index is impossible. A producer takes nothing.
    pub fn take(&mut self, page: &dyn RingPage, buf: &mut [u8]) -> Result<usize, RingError> {
        if self.end != End::Consumer {
            return Ok(0);
        }
        let (count, parts) = self.span(self.available(page)?, buf.len());
        let (head, tail) = buf.split_at_mut(parts.head);
        page.read(self.data + parts.offset, head)?;
        if let Some(tail) = tail.get_mut(..parts.tail) {
            page.read(self.data, tail)?;
        }
        self.advance(page, count)
    }

    /// Puts as many of `bytes` as there is room for; the number put. Notify the front-end if it is not 0.
    ///
    /// # Errors
    /// The page is gone or the front-end's index is impossible. A consumer puts nothing.
    pub fn put(&mut self, page: &dyn RingPage, bytes: &[u8]) -> Result<usize, RingError> {
        if self.end != End::Producer {
            return Ok(0);
        }
        let (count, parts) = self.span(self.available(page)?, bytes.len());
        let (head, tail) = bytes.split_at(parts.head);
        page.write(self.data + parts.offset, head)?;
        if let Some(tail) = tail.get(..parts.tail) {
            page.write(self.data, tail)?;
        }
        self.advance(page, count)
    }

    /// The smaller of two lengths, and where in the ring that many bytes from our index on lie.
    fn span(&self, available: u32, wanted: usize) -> (u32, Pieces) {
        let count = u32::try_from(wanted).map_or(available, |wanted| wanted.min(available));
        (count, pieces::<SIZE>(self.ours, count))
    }

    /// Moves our index on and tells it, after the bytes.
    fn advance(&mut self, page: &dyn RingPage, count: u32) -> Result<usize, RingError> {
        if count > 0 {
            self.ours = self.ours.wrapping_add(count);
            page.store(self.ours_at, self.ours)?;
        }
        Ok(count as usize)
    }
}
