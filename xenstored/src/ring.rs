//! The ring page of a guest: two byte rings whose indices the guest may set to anything.
//!
//! Layout and rules: `public/io/xs_wire.h`, `docs/misc/xenstore-ring.txt`. The page is a memfd, which is mapped. Whoever
//! has it may shorten it; the program must be prepared for that, see [`crate::pulled`].
//!
//! A guest kicks only if it finds, after it has moved its own index, that the store had taken or given all before. So an
//! index that is written here must be seen before the guest's is read again: sequentially consistent, both.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::pulled::Guard;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use vm_memory::volatile_memory::VolatileMemory;
use vm_memory::{Bytes, FileOffset, MmapRegion};
use xen_abi::io::ring::{BadIndex, free, pieces, queued};
use xen_abi::io::xs_wire::{
    CONNECTION, ERROR, REQ_CONS, REQ_PROD, REQ_RING, RSP_CONS, RSP_PROD, RSP_RING, SERVER_FEATURES,
    XENSTORE_CONNECTED, XENSTORE_ERROR_NONE, XENSTORE_RECONNECT, XENSTORE_RING_SIZE,
};

/// Bytes of the ring page.
pub const PAGE_SIZE: usize = 4096;

/// The protocol uses the page up to here. Behind that is what [`Ring::keep`] keeps: a mark, an index, a length, bytes.
const KEPT: usize = 2080;
const KEPT_MARK: usize = KEPT;
const KEPT_CONS: usize = KEPT + 4;
const KEPT_LEN: usize = KEPT + 8;
const KEPT_BYTES: usize = KEPT + 12;
/// `part`
const MARK: u32 = u32::from_le_bytes(*b"part");

/// Why a ring is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The guest's indices make no sense.
    #[error(transparent)]
    Index(#[from] BadIndex),
    /// The page went away.
    #[error("ring page: {0}")]
    Page(std::io::Error),
}

/// The page, mapped.
#[derive(Debug)]
struct Page {
    guard: Guard,
    region: MmapRegion,
}

impl Page {
    fn load(&self, offset: usize) -> Result<u32, Fault> {
        self.region.as_volatile_slice().load(offset, Ordering::SeqCst).map_err(memory)
    }

    fn store(&self, offset: usize, value: u32) -> Result<(), Fault> {
        self.region.as_volatile_slice().store(value, offset, Ordering::SeqCst).map_err(memory)
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        self.region.as_volatile_slice().read_slice(bytes, offset).map_err(memory)
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.region.as_volatile_slice().write_slice(bytes, offset).map_err(memory)
    }
}

fn memory(error: impl std::error::Error + Send + Sync + 'static) -> Fault {
    Fault::Page(std::io::Error::other(error))
}

/// The store's side of a ring page.
#[derive(Debug)]
pub struct Ring {
    page: Page,
    file: Arc<File>,
}

impl AsFd for Ring {
    /// The memfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Ring {
    /// Takes the memfd of a ring page over: 4096 bytes at offset 0.
    ///
    /// # Errors
    /// `InvalidInput` for a descriptor that is no memfd or too short; what mapping it says.
    pub fn new(memfd: OwnedFd) -> std::io::Result<Self> {
        let file = File::from(memfd);
        let invalid = |text| std::io::Error::new(std::io::ErrorKind::InvalidInput, text);
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_| invalid("no memfd"))?;
        if SealFlag::from_bits_retain(seals).intersects(SealFlag::F_SEAL_WRITE) {
            return Err(invalid("sealed against writing"));
        }
        if file.metadata()?.len() < PAGE_SIZE as u64 {
            return Err(invalid("shorter than 4096 bytes"));
        }
        let file = Arc::new(file);
        let region = MmapRegion::from_file(FileOffset::from_arc(Arc::clone(&file), 0), PAGE_SIZE);
        let region = region.map_err(std::io::Error::other)?;
        let guard = Guard::new(region.as_ptr().addr())?;
        let page = Page { guard, region };
        Ok(Self { page, file })
    }

    /// Finds out whether the page is there and can be written, and changes nothing.
    ///
    /// # Errors
    /// [`Fault::Page`].
    pub fn touch(&self) -> Result<(), Fault> {
        // Only the store writes this word.
        self.page.store(SERVER_FEATURES, self.page.load(SERVER_FEATURES)?)?;
        self.is_there()
    }

    fn is_there(&self) -> Result<(), Fault> {
        let pulled = self.page.guard.is_pulled();
        if pulled { Err(Fault::Page(std::io::Error::other("it was shortened"))) } else { Ok(()) }
    }

    /// Says what the store can do and that it serves the ring; with `reset` empties both rings.
    ///
    /// # Errors
    /// [`Fault::Page`].
    pub fn start(&self, features: u32, reset: bool) -> Result<(), Fault> {
        if reset {
            for index in [REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, KEPT_LEN] {
                self.page.store(index, 0)?;
            }
        }
        // Bits are only ever added: the guest may have seen those that are there.
        self.page.store(SERVER_FEATURES, self.page.load(SERVER_FEATURES)? | features)?;
        self.page.store(ERROR, XENSTORE_ERROR_NONE)?;
        self.page.store(CONNECTION, XENSTORE_CONNECTED)
    }

    /// Whether the guest asks to begin anew; [`Ring::start`] answers it.
    ///
    /// # Errors
    /// [`Fault::Page`], also if the page is found pulled away.
    pub fn wants_reconnect(&self) -> Result<bool, Fault> {
        self.is_there()?;
        Ok(self.page.load(CONNECTION)? == XENSTORE_RECONNECT)
    }

    /// Tells the guest why it is not served any more (`XENSTORE_ERROR_*`).
    ///
    /// # Errors
    /// [`Fault::Page`].
    pub fn fail(&self, error: u32) -> Result<(), Fault> {
        self.page.store(ERROR, error)
    }

    /// Whether the guest has sent anything.
    #[must_use]
    pub fn has_request(&self) -> bool {
        matches!((self.page.load(REQ_PROD), self.page.load(REQ_CONS)), (Ok(prod), Ok(cons)) if prod != cons)
    }

    /// Appends what the guest has sent to `bytes`, and leaves it where it is until [`Ring::consume`]. Answers how much
    /// that was.
    ///
    /// # Errors
    /// [`Fault::Index`], and nothing is taken.
    pub fn peek(&self, bytes: &mut Vec<u8>) -> Result<usize, Fault> {
        let (prod, cons) = (self.page.load(REQ_PROD)?, self.page.load(REQ_CONS)?);
        let waiting = queued::<XENSTORE_RING_SIZE>(prod, cons)?;
        if waiting == 0 {
            return Ok(0);
        }
        let at = pieces::<XENSTORE_RING_SIZE>(cons, waiting);
        let before = bytes.len();
        bytes.resize(before + waiting as usize, 0);
        let (head, tail) = bytes.split_at_mut(before).1.split_at_mut(at.head);
        self.page.read(REQ_RING + at.offset, head)?;
        self.page.read(REQ_RING, tail)?;
        Ok(waiting as usize)
    }

    /// Gives the room of the oldest `count` bytes back, which were peeked at.
    ///
    /// # Errors
    /// [`Fault::Page`].
    pub fn consume(&self, count: usize) -> Result<(), Fault> {
        let count = u32::try_from(count).unwrap_or(XENSTORE_RING_SIZE);
        self.page.store(REQ_CONS, self.page.load(REQ_CONS)?.wrapping_add(count))
    }

    /// Leaves the beginning of a message in the page, before the last `count` bytes of it are consumed: the page outlives
    /// a store that is killed, and the next one finds it. One that is too long is not kept.
    ///
    /// # Errors
    /// [`Fault::Page`].
    pub fn keep(&self, beginning: &[u8], count: usize) -> Result<(), Fault> {
        let len = u32::try_from(beginning.len()).ok().filter(|_| KEPT_BYTES + beginning.len() <= PAGE_SIZE);
        let count = u32::try_from(count).unwrap_or(XENSTORE_RING_SIZE);
        self.page.store(KEPT_LEN, 0)?;
        let Some(len) = len else { return Ok(()) };
        self.page.write(KEPT_BYTES, beginning)?;
        self.page.store(KEPT_MARK, MARK)?;
        self.page.store(KEPT_CONS, self.page.load(REQ_CONS)?.wrapping_add(count))?;
        self.page.store(KEPT_LEN, len)
    }

    /// The beginning of the message of which the ring has the rest, if the store before has kept one.
    ///
    /// # Errors
    /// [`Fault::Page`].
    pub fn kept(&self) -> Result<Vec<u8>, Fault> {
        let len = usize::try_from(self.page.load(KEPT_LEN)?).unwrap_or(usize::MAX);
        let valid = self.page.load(KEPT_MARK)? == MARK
            && self.page.load(KEPT_CONS)? == self.page.load(REQ_CONS)?
            && len <= PAGE_SIZE - KEPT_BYTES;
        let mut bytes = vec![0; if valid { len } else { 0 }];
        self.page.read(KEPT_BYTES, &mut bytes)?;
        Ok(bytes)
    }

    /// [`Ring::peek`] and [`Ring::consume`] at once.
    ///
    /// # Errors
    /// As [`Ring::peek`].
    pub fn receive(&self, bytes: &mut Vec<u8>) -> Result<usize, Fault> {
        let count = self.peek(bytes)?;
        self.consume(count)?;
        Ok(count)
    }

    /// The index at which the next response is put, and how many bytes there is room for.
    ///
    /// # Errors
    /// [`Fault::Index`].
    pub fn room(&self) -> Result<(u32, usize), Fault> {
        let (prod, cons) = (self.page.load(RSP_PROD)?, self.page.load(RSP_CONS)?);
        Ok((prod, free::<XENSTORE_RING_SIZE>(prod, cons)? as usize))
    }

    /// Puts as many of `bytes` into the ring as there is room for. Answers how many.
    ///
    /// # Errors
    /// [`Fault::Index`], and nothing is put.
    pub fn send(&self, bytes: &[u8]) -> Result<usize, Fault> {
        let (prod, cons) = (self.page.load(RSP_PROD)?, self.page.load(RSP_CONS)?);
        let room = free::<XENSTORE_RING_SIZE>(prod, cons)?;
        let len = room.min(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        if len == 0 {
            return Ok(0);
        }
        let at = pieces::<XENSTORE_RING_SIZE>(prod, len);
        let (head, rest) = bytes.split_at(at.head);
        self.page.write(RSP_RING + at.offset, head)?;
        self.page.write(RSP_RING, rest.get(..at.tail).unwrap_or_default())?;
        self.page.store(RSP_PROD, prod.wrapping_add(len))?;
        Ok(len as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::FileExt;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;

    fn memfd(len: u64) -> File {
        let file = File::from(memfd_create(c"ring", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        file
    }

    /// The store's side of a new page, and the guest's.
    fn page() -> (Ring, File) {
        let file = memfd(4096);
        (Ring::new(file.try_clone().unwrap().into()).unwrap(), file)
    }

    fn word(file: &File, at: usize) -> u32 {
        let mut word = [0; 4];
        file.read_exact_at(&mut word, at as u64).unwrap();
        u32::from_le_bytes(word)
    }

    fn set(file: &File, at: usize, value: u32) {
        file.write_all_at(&value.to_le_bytes(), at as u64).unwrap();
    }

    #[test]
    fn what_is_no_page_is_refused() {
        assert!(Ring::new(memfd(4095).into()).is_err());
        assert!(Ring::new(File::open("/dev/null").unwrap().into()).is_err());
    }

    #[test]
    fn r1_r2_xsa_038_impossible_indices_are_faults_and_change_nothing() {
        let (ring, file) = page();
        for (prod, cons) in [(1025, 0), (0, 1), (u32::MAX, 0), (0x8000_0000, 0), (5, 5u32.wrapping_sub(1025))]
        {
            for (at_prod, at_cons) in [(REQ_PROD, REQ_CONS), (RSP_PROD, RSP_CONS)] {
                set(&file, at_prod, prod);
                set(&file, at_cons, cons);
            }
            let mut bytes = Vec::new();
            assert!(matches!(ring.receive(&mut bytes), Err(Fault::Index(_))), "{prod:#x} {cons:#x}");
            assert!(matches!(ring.send(b"x"), Err(Fault::Index(_))), "{prod:#x} {cons:#x}");
            assert_eq!((bytes.len(), word(&file, REQ_CONS), word(&file, RSP_PROD)), (0, cons, prod));
        }
    }

    #[test]
    fn r4_r5_features_are_only_added_and_reconnection_empties_the_rings() {
        let (ring, file) = page();
        set(&file, SERVER_FEATURES, 0x10);
        set(&file, CONNECTION, 1);
        set(&file, REQ_PROD, 7);
        assert!(ring.wants_reconnect().unwrap());
        ring.fail(2).unwrap();
        assert_eq!(word(&file, ERROR), 2);
        ring.start(0xf, true).unwrap();
        let words = [SERVER_FEATURES, CONNECTION, REQ_PROD, ERROR].map(|at| word(&file, at));
        assert_eq!(words, [0x1f, 0, 0, 0]);
    }

    #[test]
    fn the_beginning_of_a_message_outlives_the_store() {
        let (ring, file) = page();
        let next = || Ring::new(file.try_clone().unwrap().into()).unwrap().kept().unwrap();
        set(&file, REQ_CONS, u32::MAX);
        assert_eq!(next(), b"");
        ring.keep(b"half", 3).unwrap();
        assert_eq!(next(), b"", "it was not consumed, so it is in the ring");
        ring.consume(3).unwrap();
        assert_eq!(next(), b"half");
        ring.consume(1).unwrap();
        assert_eq!(next(), b"", "the rest is consumed too");
        ring.keep(&[1; 2004], 0).unwrap();
        assert_eq!(next(), [1; 2004]);
        set(&file, KEPT_LEN, 2005);
        assert_eq!(next(), b"");
        ring.keep(&[1; 2005], 0).unwrap();
        assert_eq!(next(), b"");
        ring.keep(b"half", 0).unwrap();
        set(&file, REQ_CONS, 0);
        ring.keep(b"half", 0).unwrap();
        ring.start(0, true).unwrap();
        assert_eq!(next(), b"", "all begins anew");
    }

    proptest! {
        /// What goes in at one end comes out at the other, from any start index, around the wrap.
        #[test]
        fn bytes_pass_in_order(
            start in prop::sample::select(vec![0, 1, 1023, 0xffff_fff0, 0x7fff_ffff]),
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1500), 0..12),
        ) {
            let (ring, file) = page();
            for at in [REQ_PROD, REQ_CONS, RSP_PROD, RSP_CONS] {
                set(&file, at, start);
            }
            let index = |n: usize| u32::try_from(n).unwrap();
            let (mut sent, mut got, mut back) = (Vec::new(), Vec::new(), Vec::new());
            for chunk in &chunks {
                // The store sends, the guest reads it and sends it back.
                let n = ring.send(chunk).unwrap();
                prop_assert_eq!(n, chunk.len().min(1024));
                sent.extend_from_slice(&chunk[..n]);
                let mut response = vec![0; 1024];
                file.read_exact_at(&mut response, RSP_RING as u64).unwrap();
                let from = word(&file, RSP_CONS);
                for i in 0..n {
                    let at = from.wrapping_add(index(i)) as usize % 1024;
                    back.push(response[at]);
                    file.write_all_at(&[response[at]], (REQ_RING + at) as u64).unwrap();
                }
                set(&file, RSP_CONS, from.wrapping_add(index(n)));
                set(&file, REQ_PROD, from.wrapping_add(index(n)));
                prop_assert_eq!(ring.receive(&mut got).unwrap(), n);
            }
            prop_assert_eq!(&sent, &got);
            prop_assert_eq!(&sent, &back);
        }
    }
}
