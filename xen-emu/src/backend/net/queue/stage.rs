//! A packet for the guest that was received and is not announced yet, and where its parts are meanwhile.

use super::Cx;
use super::window::Window;
use crate::backend::net::counters::count;
use crate::backend::net::link::{Slice, Slices};
use crate::backend::net::proto::PAGE;
use crate::backend::net::proto::offload::VnetHeader;
use crate::backend::net::proto::spread::{Announce, chunks};
use smallvec::SmallVec;
use vm_memory::{MmapRegion, VolatileMemory};

/// Pages that the longest packet fills.
pub const CHUNKS: usize = 17;

/// Where the chunks of a packet are put when it is received: some in the guest's pages, the others in a buffer of ours,
/// chunk n at n pages from its start.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The first chunks, which are in the guest's pages.
    pub placed: usize,
    /// Requests left out behind the first.
    pub skipped: usize,
}

impl Layout {
    /// All in the buffer.
    pub const BUFFER: Layout = Layout { placed: 0, skipped: 0 };

    /// The request in whose page a chunk is.
    pub fn slot(self, chunk: usize) -> usize {
        if chunk == 0 { 0 } else { chunk + self.skipped }
    }
}

/// A buffer for one packet.
pub struct Buffer(MmapRegion);

impl Buffer {
    /// For the longest packet.
    pub fn new() -> Option<Buffer> {
        MmapRegion::new(CHUNKS * PAGE).ok().map(Buffer)
    }

    /// A chunk of it.
    pub fn chunk(&self, chunk: usize) -> Option<Slice<'_>> {
        self.0.get_slice(chunk * PAGE, PAGE).ok()
    }

    /// All from a chunk on; none behind the last.
    pub fn from(&self, chunk: usize) -> Option<Slice<'_>> {
        let start = chunk * PAGE;
        self.0.get_slice(start, (CHUNKS * PAGE).checked_sub(start)?).ok().filter(|slice| !slice.is_empty())
    }
}

/// The packet.
pub struct Staged {
    /// As it came with it.
    pub header: VnetHeader,
    /// Bytes.
    pub size: usize,
    /// Where they are.
    pub layout: Layout,
    /// What is to be said of it.
    pub announce: Announce,
}

impl Staged {
    /// A chunk, as long as it is.
    fn chunk<'a>(&self, cx: &'a Cx, window: &Window, buffer: &'a Buffer, n: usize) -> Option<Slice<'a>> {
        let page =
            if n < self.layout.placed { window.page(cx, self.layout.slot(n)) } else { buffer.chunk(n) };
        page?.subslice(0, self.size.saturating_sub(n * PAGE).min(PAGE)).ok()
    }

    /// All of it, in order.
    pub fn pieces<'a>(&self, cx: &'a Cx, window: &Window, buffer: &'a Buffer) -> Slices<'a> {
        (0..chunks(self.size)).filter_map(|n| self.chunk(cx, window, buffer, n)).collect()
    }

    /// Copies all that is in the guest's pages into the buffer.
    pub fn unplace(&mut self, cx: &Cx, window: &Window, buffer: &Buffer) {
        for n in 0..self.layout.placed {
            if let (Some(from), Some(to)) = (self.chunk(cx, window, buffer, n), buffer.chunk(n)) {
                from.copy_to_volatile_slice(to);
            }
        }
        self.layout = Layout::BUFFER;
    }

    /// Copies to its place what is not there yet.
    pub fn place(&self, cx: &Cx, window: &Window, buffer: &Buffer) {
        let right = Layout { placed: chunks(self.size), skipped: self.announce.extras() };
        let wrong = |n: &usize| *n >= self.layout.placed || self.layout.slot(*n) != right.slot(*n);
        let moved = (0..right.placed).filter(wrong);
        // Nothing is written over before it was moved itself.
        let up = right.skipped > self.layout.skipped;
        let order: SmallVec<[usize; CHUNKS]> = if up { moved.rev().collect() } else { moved.collect() };
        for n in order {
            let (from, to) = (self.chunk(cx, window, buffer, n), window.page(cx, right.slot(n)));
            if let (Some(from), Some(to)) = (from, to) {
                count(&cx.shared.counters.rx_copied, from.len());
                from.copy_to_volatile_slice(to);
            }
        }
    }
}
