//! Shared rings (`public/io/ring.h`): where the indices live, and the arithmetic on them.
//!
//! Indices are free-running `u32` and wrap; a slot is `index & (size - 1)`. The peer writes its own index at
//! any time and may write nonsense: every function here that takes a peer's index answers `Err` when the
//! distance is impossible, and the caller then stops the ring. Nothing here touches memory.
//!
//! Two kinds: rings of request/response slots (block, net), whose size is known at run time from the number of
//! pages, and byte rings (console, store), whose size is a constant.

use core::fmt;

abi_structs! {
    /// `struct *_sring` up to its slots: the first 64 bytes of the ring's first page.
    ///
    /// The front-end initialises it: producers 0, events 1, the rest 0.
    pub struct SringHeader {
        /// Written by the front-end: requests put so far.
        pub req_prod: u32,
        /// Written by the back-end: notify me when `req_prod` passes this.
        pub req_event: u32,
        /// Written by the back-end: responses put so far.
        pub rsp_prod: u32,
        /// Written by the front-end: notify me when `rsp_prod` passes this.
        pub rsp_event: u32,
        /// Private to old back-ends (smart poll); zero.
        pub pvt: [u8; 4],
        /// Zero.
        pub pad: [u8; 44],
    }
}

impl SringHeader {
    /// What `SHARED_RING_INIT` writes.
    pub const INIT: Self =
        Self { req_prod: 0, req_event: 1, rsp_prod: 0, rsp_event: 1, pvt: [0; 4], pad: [0; 44] };
}

/// Byte offset of `req_prod` in the ring's first page.
pub const REQ_PROD: usize = 0;
/// Byte offset of `req_event`.
pub const REQ_EVENT: usize = 4;
/// Byte offset of `rsp_prod`.
pub const RSP_PROD: usize = 8;
/// Byte offset of `rsp_event`.
pub const RSP_EVENT: usize = 12;
/// Byte offset of slot 0.
pub const SLOTS: usize = 64;

/// The peer's index is impossible: producer and consumer are further apart than the ring is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadIndex {
    /// Producer index as read.
    pub prod: u32,
    /// Consumer index as read or kept.
    pub cons: u32,
    /// Slots (or bytes) in the ring.
    pub size: u32,
}

impl fmt::Display for BadIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ring index out of range: prod {:#x}, cons {:#x}, size {:#x}",
            self.prod, self.cons, self.size
        )
    }
}

impl core::error::Error for BadIndex {}

/// Slots of `slot_bytes` that fit in `ring_bytes` (all its pages) beside the header, rounded down to a power of two.
///
/// `None` if not even one fits, or a slot has no size. Source: `__RING_SIZE`.
#[must_use]
pub const fn ring_size(ring_bytes: usize, slot_bytes: usize) -> Option<u32> {
    if slot_bytes == 0 || ring_bytes <= SLOTS {
        return None;
    }
    let fit = (ring_bytes - SLOTS) / slot_bytes;
    if fit == 0 || fit > 1 << 31 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "fit <= 2^31")]
    Some(1 << (fit as u32).ilog2())
}

/// Entries produced and not yet consumed; `size` is the ring's length.
///
/// # Errors
/// `BadIndex` if there are more than `size` of them.
pub const fn unconsumed(prod: u32, cons: u32, size: u32) -> Result<u32, BadIndex> {
    let n = prod.wrapping_sub(cons);
    if n > size { Err(BadIndex { prod, cons, size }) } else { Ok(n) }
}

/// The slot (or byte) an index points at; `size` is a power of two.
#[must_use]
pub const fn slot(index: u32, size: u32) -> u32 {
    index & size.wrapping_sub(1)
}

/// Byte offset of a slot from the start of the ring's first page.
#[must_use]
pub const fn slot_offset(index: u32, size: u32, slot_bytes: usize) -> usize {
    SLOTS + slot(index, size) as usize * slot_bytes
}

/// Whether moving a producer from `old` to `new` passed the peer's `event`, so that it wants to be notified.
///
/// Source: `RING_PUSH_*_AND_CHECK_NOTIFY`. Read `event` only after the new producer index is visible.
#[must_use]
pub const fn needs_notify(old: u32, new: u32, event: u32) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

/// Bytes waiting in a byte ring of `SIZE` bytes.
///
/// # Errors
/// `BadIndex` if there are more than `SIZE`.
pub const fn queued<const SIZE: u32>(prod: u32, cons: u32) -> Result<u32, BadIndex> {
    const { assert!(SIZE.is_power_of_two()) };
    unconsumed(prod, cons, SIZE)
}

/// Bytes that may still be put into a byte ring of `SIZE` bytes.
///
/// # Errors
/// `BadIndex` if more than `SIZE` bytes are already there.
pub const fn free<const SIZE: u32>(prod: u32, cons: u32) -> Result<u32, BadIndex> {
    match queued::<SIZE>(prod, cons) {
        Ok(n) => Ok(SIZE - n),
        Err(e) => Err(e),
    }
}

/// A run of ring bytes as at most two contiguous pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Where the first piece begins in the ring's buffer.
    pub offset: usize,
    /// Bytes of the first piece; it ends at or before the end of the buffer.
    pub head: usize,
    /// Bytes of the second piece, which begins at 0.
    pub tail: usize,
}

/// Where the `len` bytes from free-running index `from` lie in a byte ring of `SIZE` bytes.
///
/// `len` above `SIZE` is cut to `SIZE`, so the pieces never overlap.
#[must_use]
pub const fn pieces<const SIZE: u32>(from: u32, len: u32) -> Pieces {
    const { assert!(SIZE.is_power_of_two()) };
    let len = if len > SIZE { SIZE } else { len };
    let offset = slot(from, SIZE);
    let to_end = SIZE - offset;
    let head = if len < to_end { len } else { to_end };
    Pieces { offset: offset as usize, head: head as usize, tail: (len - head) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        SringHeader = 64 { req_prod: 0, req_event: 4, rsp_prod: 8, rsp_event: 12, pvt: 16, pad: 20 }
    }

    #[test]
    fn sizes_are_those_of_the_known_rings() {
        assert_eq!(ring_size(4096, 112), Some(32), "blkif");
        assert_eq!(ring_size(4096, 12), Some(256), "netif tx");
        assert_eq!(ring_size(4096, 8), Some(256), "netif rx");
        assert_eq!(ring_size(4096 * 16, 112), Some(512), "blkif, order 4");
        assert_eq!((ring_size(64, 8), ring_size(4096, 0), ring_size(80, 112)), (None, None, None));
    }

    #[test]
    fn distances_survive_the_wrap_and_refuse_the_impossible() {
        assert_eq!(queued::<1024>(3, u32::MAX - 1), Ok(5));
        assert_eq!(free::<1024>(3, u32::MAX - 1), Ok(1019));
        assert_eq!(free::<1024>(1024, 0), Ok(0));
        assert_eq!(queued::<1024>(1025, 0), Err(BadIndex { prod: 1025, cons: 0, size: 1024 }));
        assert_eq!(queued::<1024>(0, 1), Err(BadIndex { prod: 0, cons: 1, size: 1024 }));
    }

    #[test]
    fn pieces_cover_every_byte_once_in_order() {
        for from in [0, 1, 15, u32::MAX - 3] {
            for len in 0..=17 {
                let p = pieces::<16>(from, len);
                let got: Vec<usize> = (p.offset..p.offset + p.head).chain(0..p.tail).collect();
                let want: Vec<usize> =
                    (0..len.min(16)).map(|i| (from.wrapping_add(i) % 16) as usize).collect();
                assert_eq!(got, want, "from {from} len {len}");
            }
        }
    }

    #[test]
    fn notify_only_when_the_event_index_is_passed() {
        assert!(needs_notify(0, 1, 1));
        assert!(!needs_notify(1, 2, 1));
        assert!(needs_notify(u32::MAX, 1, 0));
        assert!(!needs_notify(5, 5, 5));
    }
}
