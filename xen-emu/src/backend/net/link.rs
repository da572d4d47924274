//! The other end of a queue: where packets of the guest go, and where those for it come from.

use super::proto::checksum::Sum;
use super::proto::offload::{Accepts, VnetHeader};
use crate::backend::device::DeviceError;
use smallvec::SmallVec;
use std::io;
use std::os::fd::BorrowedFd;
use vm_memory::VolatileSlice;

/// Guest memory, or memory of ours in its place.
pub type Slice<'a> = VolatileSlice<'a>;

/// The pieces of a packet, one behind the other: as many as any has, or else a vector.
pub type Slices<'a> = SmallVec<[Slice<'a>; 20]>;

/// A queue of packets. Nothing here blocks; [`io::ErrorKind::WouldBlock`] says that [`Link::fd`] is not ready.
pub trait Link: Send {
    /// Readable when there may be a packet, writable when one may be sent.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Sends a packet: its first bytes, which are not changed, and the others where they are in guest memory.
    ///
    /// # Errors
    /// It was not sent, and will not be unless the caller tries again.
    fn send(&mut self, header: &VnetHeader, head: &mut [u8], rest: &[Slice<'_>]) -> io::Result<()>;

    /// Takes a packet, which fills the slices in order; its length. There has to be room for [`Link::longest`] bytes.
    ///
    /// # Errors
    /// There is none, or (`UnexpectedEof`) there will be none any more.
    fn receive(&mut self, header: &mut VnetHeader, into: &[Slice<'_>]) -> io::Result<usize>;

    /// Longest packet that may come.
    fn longest(&self) -> usize;

    /// Whether `header` means something to the other end. Without, packets have complete checksums and are not
    /// segmented by anybody.
    fn offloads(&self) -> bool;

    /// Sends what was held back; whether something still is, and [`Link::fd`] has to become writable.
    fn flush(&mut self) -> bool {
        false
    }
}

/// What a vif is attached to: makes the links of its queues.
pub trait Attachment: Send {
    /// One link for each queue of a frontend that takes this.
    ///
    /// # Errors
    /// The host refuses.
    fn links(&mut self, queues: usize, accepts: Accepts) -> Result<Vec<Box<dyn Link>>, DeviceError>;

    /// Takes the links back when the frontend is gone.
    fn release(&mut self, links: Vec<Box<dyn Link>>);

    /// Most queues.
    fn queues(&self) -> u32;

    /// As [`Link::offloads`].
    fn offloads(&self) -> bool;

    /// MTU of what it is attached to, if that has one.
    fn mtu(&self) -> Option<u16>;
}

/// Copies slices one behind the other into `buf`; how many bytes were there.
pub fn gather(slices: &[Slice<'_>], buf: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        let room = buf.get_mut(done..).unwrap_or_default();
        done += slice.copy_to(room);
    }
    done
}

/// Fills `slices` in order with `bytes`; how many fitted.
pub fn scatter(bytes: &[u8], slices: &[Slice<'_>]) -> usize {
    let mut done = 0;
    for slice in slices {
        let part = bytes.get(done..).unwrap_or_default();
        let part = part.get(..slice.len()).unwrap_or(part);
        slice.copy_from(part);
        done += part.len();
    }
    done
}

/// The slices without their first `skip` bytes.
pub fn behind<'a>(slices: &[Slice<'a>], mut skip: usize) -> Slices<'a> {
    let rest = |slice: &Slice<'a>| {
        let here = skip.min(slice.len());
        skip -= here;
        slice.offset(here).ok().filter(|rest| !rest.is_empty())
    };
    slices.iter().filter_map(rest).collect()
}

/// The checksum over all of `head` and `rest`.
pub fn checksum(head: &[u8], rest: &[Slice<'_>]) -> [u8; 2] {
    let mut sum = Sum::default();
    sum.add(head);
    let mut copy = [0; 2048];
    for slice in rest {
        let mut from = 0;
        while let Ok(part) = slice.offset(from)
            && !part.is_empty()
        {
            let n = part.copy_to(&mut copy);
            sum.add(copy.get(..n).unwrap_or_default());
            from += n;
        }
    }
    sum.field()
}
