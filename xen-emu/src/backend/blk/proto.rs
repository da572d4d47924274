//! The requests of `public/io/blkif.h`: bytes of a ring's slot in, what is to be done out. Pure; the caller's list of
//! pieces is used again for every request.
//!
//! Sectors are 512 bytes throughout; on a disk with larger ones every boundary has to be a multiple of those.

use xen_abi::Gref;
use xen_abi::io::blkif::{
    BlkifOp, BlkifRsp, DISCARD_SECURE, Request, RequestCompat, RequestDiscard, RequestDiscardCompat,
    RequestIndirect, RequestIndirectCompat, Response, SECTORS_PER_PAGE, SEGMENTS_PER_INDIRECT_PAGE, Segment,
};
use zerocopy::{FromBytes, IntoBytes};

/// Segments offered for an indirect request; they fit into one page.
pub const MAX_INDIRECT_SEGMENTS: u16 = 256;
const _: () = assert!(MAX_INDIRECT_SEGMENTS as usize <= SEGMENTS_PER_INDIRECT_PAGE);
/// Shift of a sector.
pub const SECTOR_SHIFT: u32 = 9;

/// Layout of a ring's slots (`protocol` node).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `x86_64-abi`
    X64,
    /// `x86_32-abi`
    X32,
}

/// The first bytes of a slot, more than any request has in either layout.
pub type Slot = [u8; size_of::<Request>()];

impl Abi {
    /// By the value of the `protocol` node.
    pub fn named(name: &str) -> Option<Abi> {
        match name {
            "x86_64-abi" => Some(Abi::X64),
            "x86_32-abi" => Some(Abi::X32),
            _ => None,
        }
    }

    /// Bytes of a slot.
    pub fn slot(self) -> usize {
        match self {
            Abi::X64 => size_of::<Request>(),
            Abi::X32 => size_of::<RequestCompat>(),
        }
    }

    /// A response as bytes, and how many of them count.
    pub fn response(
        self,
        id: u64,
        operation: BlkifOp,
        status: BlkifRsp,
    ) -> ([u8; size_of::<Response>()], usize) {
        let response = Response { id, operation, pad0: 0, status, pad1: 0 };
        let mut bytes = [0; size_of::<Response>()];
        let mut put = |from: &[u8]| {
            bytes.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            from.len()
        };
        let len = match self {
            Abi::X64 => put(response.as_bytes()),
            Abi::X32 => put(response.to_compat().as_bytes()),
        };
        (bytes, len)
    }
}

/// What the disk allows at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Length of the disk, sectors.
    pub sectors: u64,
    /// Sectors of 512 bytes in one of the disk's.
    pub unit: u8,
    /// The guest may write.
    pub writable: bool,
    /// Discard is offered, and secure discard.
    pub discard: Option<bool>,
}

/// A piece of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The page.
    pub gref: Gref,
    /// First byte.
    pub offset: u16,
    /// Bytes.
    pub len: u16,
}

/// Between an image's sectors and pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Image to pages.
    Read,
    /// Pages to image.
    Write,
    /// After everything before, on disk before everything behind.
    Barrier,
    /// What was written before is on disk first.
    FlushWrite,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Move data; where it is is in the list of pieces.
    Data {
        /// How.
        transfer: Transfer,
        /// First byte of the disk.
        at: u64,
    },
    /// Move data; where it is is written in this page: [`pieces`] when that has been copied.
    Indirect {
        /// `Read` or `Write`.
        transfer: Transfer,
        /// First sector of the disk.
        sector: u64,
        /// Segments in the page.
        count: u16,
        /// The page.
        page: Gref,
    },
    /// What was written is on disk afterwards.
    Flush {
        /// And everything behind waits for it.
        barrier: bool,
    },
    /// The bytes are not needed any more.
    Discard {
        /// First byte.
        at: u64,
        /// Bytes.
        len: u64,
        /// Securely.
        secure: bool,
    },
}

/// A request, judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Echoed.
    pub id: u64,
    /// Echoed.
    pub operation: BlkifOp,
    /// What to do, or what to answer at once.
    pub work: Result<Work, BlkifRsp>,
}

/// A slot as one of the layouts; every slot is long enough for each.
fn read<T: FromBytes + Into<U>, U>(slot: &Slot) -> U {
    T::read_from_prefix(slot).map_or_else(|_| T::new_zeroed(), |(value, _)| value).into()
}

/// Judges a slot's copy. `list` is cleared, and holds the pieces of [`Work::Data`] afterwards.
pub fn parse(abi: Abi, slot: &Slot, limits: &Limits, list: &mut Vec<Piece>) -> Parsed {
    list.clear();
    let request: Request = match abi {
        Abi::X64 => read::<Request, _>(slot),
        Abi::X32 => read::<RequestCompat, _>(slot),
    };
    let (operation, id) = (request.operation, request.id);
    match operation {
        BlkifOp::READ | BlkifOp::WRITE | BlkifOp::WRITE_BARRIER | BlkifOp::FLUSH_DISKCACHE => {
            Parsed { id, operation, work: direct(&request, limits, list) }
        }
        BlkifOp::DISCARD => {
            let request: RequestDiscard = match abi {
                Abi::X64 => read::<RequestDiscard, _>(slot),
                Abi::X32 => read::<RequestDiscardCompat, _>(slot),
            };
            Parsed { id: request.id, operation, work: discard(&request, limits) }
        }
        BlkifOp::INDIRECT => {
            let request: RequestIndirect = match abi {
                Abi::X64 => read::<RequestIndirect, _>(slot),
                Abi::X32 => read::<RequestIndirectCompat, _>(slot),
            };
            // A front-end expects the answer to what is done, not to how it was asked.
            Parsed { id: request.id, operation: request.indirect_op, work: indirect(&request, limits) }
        }
        _ => Parsed { id, operation, work: Err(BlkifRsp::EOPNOTSUPP) },
    }
}

fn direct(request: &Request, limits: &Limits, list: &mut Vec<Piece>) -> Result<Work, BlkifRsp> {
    let segments = request.seg.get(..request.nr_segments.into()).ok_or(BlkifRsp::ERROR)?;
    let transfer = match request.operation {
        BlkifOp::READ => Transfer::Read,
        BlkifOp::WRITE => Transfer::Write,
        BlkifOp::WRITE_BARRIER if segments.is_empty() => return Ok(Work::Flush { barrier: true }),
        BlkifOp::WRITE_BARRIER => Transfer::Barrier,
        _ if segments.is_empty() => return Ok(Work::Flush { barrier: false }),
        _ => Transfer::FlushWrite,
    };
    let at = pieces(transfer, request.sector_number, segments.iter().copied(), limits, list)?;
    Ok(Work::Data { transfer, at })
}

fn indirect(request: &RequestIndirect, limits: &Limits) -> Result<Work, BlkifRsp> {
    let transfer = match request.indirect_op {
        BlkifOp::READ => Transfer::Read,
        BlkifOp::WRITE if limits.writable => Transfer::Write,
        _ => return Err(BlkifRsp::ERROR),
    };
    let (count, [page, ..]) = (request.nr_segments, request.indirect_grefs);
    if (1..=MAX_INDIRECT_SEGMENTS).contains(&count) {
        Ok(Work::Indirect { transfer, sector: request.sector_number, count, page })
    } else {
        Err(BlkifRsp::ERROR)
    }
}

fn discard(request: &RequestDiscard, limits: &Limits) -> Result<Work, BlkifRsp> {
    let offers_secure = limits.discard.ok_or(BlkifRsp::EOPNOTSUPP)?;
    let secure = request.flag & DISCARD_SECURE != 0;
    if secure && !offers_secure {
        return Err(BlkifRsp::EOPNOTSUPP);
    }
    let at = range(request.sector_number, request.nr_sectors, limits)?;
    if !limits.writable {
        return Err(BlkifRsp::ERROR);
    }
    Ok(Work::Discard { at, len: request.nr_sectors << SECTOR_SHIFT, secure })
}

/// The first byte of a range that lies on the disk.
fn range(sector: u64, count: u64, limits: &Limits) -> Result<u64, BlkifRsp> {
    let unit = u64::from(limits.unit);
    let end = sector.checked_add(count).ok_or(BlkifRsp::ERROR)?;
    let fits = end <= limits.sectors && sector.is_multiple_of(unit) && count.is_multiple_of(unit);
    // A disk's length in bytes fits, so this does.
    if fits { sector.checked_mul(1 << SECTOR_SHIFT).ok_or(BlkifRsp::ERROR) } else { Err(BlkifRsp::ERROR) }
}

/// Judges segments: the first byte of the disk; the pieces of pages go into `list`.
///
/// # Errors
/// There are none, one is no part of a page, they reach beyond the disk, or the disk is read-only.
pub fn pieces(
    transfer: Transfer,
    sector: u64,
    segments: impl Iterator<Item = Segment>,
    limits: &Limits,
    list: &mut Vec<Piece>,
) -> Result<u64, BlkifRsp> {
    if transfer != Transfer::Read && !limits.writable {
        return Err(BlkifRsp::ERROR);
    }
    let mut bytes = 0;
    for segment in segments {
        let piece = piece(&segment, limits.unit).ok_or(BlkifRsp::ERROR)?;
        bytes += u64::from(piece.len);
        list.push(piece);
    }
    if bytes == 0 { Err(BlkifRsp::ERROR) } else { range(sector, bytes >> SECTOR_SHIFT, limits) }
}

fn piece(segment: &Segment, unit: u8) -> Option<Piece> {
    let (first, last) = (segment.first_sect, segment.last_sect);
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let whole = first.is_multiple_of(unit) && sectors.is_multiple_of(unit);
    let bytes = |sectors: u8| u16::from(sectors) << SECTOR_SHIFT;
    (last < SECTORS_PER_PAGE && whole).then(|| Piece {
        gref: segment.gref,
        offset: bytes(first),
        len: bytes(sectors),
    })
}

/// The segments in the copy of an indirect page.
pub fn segments(bytes: &[u8]) -> impl Iterator<Item = Segment> {
    let (chunks, _) = bytes.as_chunks::<{ size_of::<Segment>() }>();
    chunks.iter().filter_map(|chunk| Segment::read_from_bytes(chunk).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    const LIMITS: Limits = Limits { sectors: 1000, unit: 1, writable: true, discard: Some(false) };

    fn slot(abi: Abi, request: &Request) -> Slot {
        let mut slot = [0; 112];
        let bytes = match abi {
            Abi::X64 => request.as_bytes().to_vec(),
            Abi::X32 => request.to_compat().as_bytes().to_vec(),
        };
        slot[..bytes.len()].copy_from_slice(&bytes);
        slot
    }

    fn parse(abi: Abi, slot: &Slot, limits: &Limits) -> (Parsed, Vec<Piece>) {
        let mut list = vec![Piece { gref: Gref(0), offset: 0, len: 1 }];
        (super::parse(abi, slot, limits, &mut list), list)
    }

    fn request(operation: BlkifOp, sector_number: u64, segments: &[(u8, u8)]) -> Request {
        let mut request = Request::new_zeroed();
        request.operation = operation;
        request.id = 0x1122_3344_5566_7788;
        request.sector_number = sector_number;
        request.nr_segments = u8::try_from(segments.len()).unwrap();
        for (seg, (first_sect, last_sect)) in request.seg.iter_mut().zip(segments) {
            *seg = Segment { gref: Gref(9), first_sect: *first_sect, last_sect: *last_sect, pad: 0xffff };
        }
        request
    }

    #[test]
    fn requests_are_judged_alike_in_both_layouts() {
        let (read, write) = (BlkifOp::READ, BlkifOp::WRITE);
        let big = Limits { unit: 8, ..LIMITS };
        let ro = Limits { writable: false, ..LIMITS };
        let piece = |offset, len| Piece { gref: Gref(9), offset, len };
        let data = |transfer, at, pieces: &[Piece]| (Ok(Work::Data { transfer, at }), pieces.to_vec());
        let not = |status| (Err(status), Vec::new());
        let (error, unknown) = (not(BlkifRsp::ERROR), not(BlkifRsp::EOPNOTSUPP));
        let flush = |barrier| (Ok(Work::Flush { barrier }), Vec::new());
        let twelve = [(0, 7); 12];
        let rows = [
            (
                LIMITS,
                request(read, 3, &[(1, 1), (0, 7)]),
                data(Transfer::Read, 1536, &[piece(512, 512), piece(0, 4096)]),
            ),
            (LIMITS, request(write, 992, &[(0, 7)]), data(Transfer::Write, 992 << 9, &[piece(0, 4096)])),
            (LIMITS, request(write, 993, &[(0, 7)]), error.clone()),
            (LIMITS, request(read, u64::MAX, &[(0, 7)]), error.clone()),
            (LIMITS, request(read, 1 << 56, &[(0, 7)]), error.clone()),
            (LIMITS, request(read, 0, &[(5, 4)]), error.clone()),
            (LIMITS, request(read, 0, &[(0, 8)]), error.clone()),
            (LIMITS, request(read, 0, &[(0, 255)]), error.clone()),
            (LIMITS, request(read, 0, &[]), error.clone()),
            (LIMITS, request(read, 0, &twelve), error.clone()),
            (ro, request(write, 0, &[(0, 7)]), error.clone()),
            (big, request(read, 8, &[(0, 7)]), data(Transfer::Read, 4096, &[piece(0, 4096)])),
            (big, request(read, 8, &[(0, 3), (4, 7)]), error.clone()),
            (big, request(read, 9, &[(0, 7)]), error),
            (LIMITS, request(BlkifOp::FLUSH_DISKCACHE, 9, &[]), flush(false)),
            (LIMITS, request(BlkifOp::WRITE_BARRIER, 9, &[]), flush(true)),
            (
                LIMITS,
                request(BlkifOp::WRITE_BARRIER, 1, &[(0, 0)]),
                data(Transfer::Barrier, 512, &[piece(0, 512)]),
            ),
            (LIMITS, request(BlkifOp::RESERVED_1, 0, &[]), unknown.clone()),
            (LIMITS, request(BlkifOp(77), 0, &[]), unknown),
        ];
        for (limits, request, (work, pieces)) in rows {
            for abi in [Abi::X64, Abi::X32] {
                let (parsed, list) = parse(abi, &slot(abi, &request), &limits);
                assert_eq!((parsed.id, parsed.operation), (request.id, request.operation));
                assert_eq!(parsed.work, work, "{request:?}");
                assert!(work.is_err() || list == pieces, "{request:?}: {list:?}");
            }
        }
    }

    #[test]
    fn discards_and_indirect_requests_have_their_own_shapes() {
        let mut discard = RequestDiscard::new_zeroed();
        (discard.operation, discard.id, discard.sector_number, discard.nr_sectors) =
            (BlkifOp::DISCARD, 5, 900, 100);
        let judge = |discard: &RequestDiscard, limits: &Limits| {
            let (mut wide, mut narrow) = ([0; 112], [0; 112]);
            wide[..32].copy_from_slice(discard.as_bytes());
            narrow[..28].copy_from_slice(discard.to_compat().as_bytes());
            let (parsed, _) = parse(Abi::X64, &wide, limits);
            assert_eq!(parsed, parse(Abi::X32, &narrow, limits).0);
            assert_eq!(parsed.id, 5);
            parsed.work
        };
        let want = Work::Discard { at: 900 << 9, len: 100 << 9, secure: false };
        assert_eq!(judge(&discard, &LIMITS), Ok(want));
        assert_eq!(judge(&discard, &Limits { discard: None, ..LIMITS }), Err(BlkifRsp::EOPNOTSUPP));
        assert_eq!(judge(&discard, &Limits { writable: false, ..LIMITS }), Err(BlkifRsp::ERROR));
        let more = RequestDiscard { nr_sectors: u64::MAX, ..discard };
        assert_eq!(judge(&more, &LIMITS), Err(BlkifRsp::ERROR));
        let secure = RequestDiscard { flag: 1, ..discard };
        assert_eq!(judge(&secure, &LIMITS), Err(BlkifRsp::EOPNOTSUPP));
        let offered = Limits { discard: Some(true), ..LIMITS };
        assert!(matches!(judge(&secure, &offered), Ok(Work::Discard { secure: true, .. })));

        let mut indirect = RequestIndirect::new_zeroed();
        (indirect.operation, indirect.indirect_op, indirect.id) = (BlkifOp::INDIRECT, BlkifOp::WRITE, 6);
        (indirect.nr_segments, indirect.sector_number, indirect.indirect_grefs[0]) = (256, 44, Gref(3));
        let judge = |indirect: &RequestIndirect, limits: &Limits| {
            let (mut wide, mut narrow) = ([0; 112], [0; 112]);
            wide[..64].copy_from_slice(indirect.as_bytes());
            narrow[..64].copy_from_slice(indirect.to_compat().as_bytes());
            let (parsed, _) = parse(Abi::X64, &wide, limits);
            assert_eq!(parsed, parse(Abi::X32, &narrow, limits).0);
            assert_eq!(parsed.operation, indirect.indirect_op, "what the answer has to name");
            parsed.work
        };
        let want = Work::Indirect { transfer: Transfer::Write, sector: 44, count: 256, page: Gref(3) };
        assert_eq!(judge(&indirect, &LIMITS), Ok(want));
        for count in [0, 257, u16::MAX] {
            let bad = RequestIndirect { nr_segments: count, ..indirect };
            assert_eq!(judge(&bad, &LIMITS), Err(BlkifRsp::ERROR), "{count}");
        }
        let bad = RequestIndirect { indirect_op: BlkifOp::FLUSH_DISKCACHE, ..indirect };
        assert_eq!(judge(&bad, &LIMITS), Err(BlkifRsp::ERROR));
    }

    #[test]
    fn responses_have_the_layout_of_their_ring() {
        let (bytes, len) = Abi::X32.response(0x0102, BlkifOp::WRITE, BlkifRsp::ERROR);
        assert_eq!(&bytes[..len], [2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0xff, 0xff]);
        let (bytes, len) = Abi::X64.response(0x0102, BlkifOp::WRITE, BlkifRsp::EOPNOTSUPP);
        assert_eq!(&bytes[..len], [2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0xfe, 0xff, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn nothing_that_is_done_lies_outside_the_disk_or_a_page(
            bytes in proptest::array::uniform32(any::<u8>()),
            rest in proptest::collection::vec(any::<u8>(), 80),
            operation in 0..8u8,
            near in prop_oneof![Just(None), (0..1200u64).prop_map(Some)],
            unit in prop_oneof![Just(1u8), Just(8)],
            wide in any::<bool>(),
        ) {
            let abi = if wide { Abi::X64 } else { Abi::X32 };
            let mut slot: Slot = [0; 112];
            slot[..32].copy_from_slice(&bytes);
            slot[32..].copy_from_slice(&rest);
            slot[0] = operation;
            if let Some(sector) = near {
                let at = if wide { 16 } else { 12 };
                slot[at..at + 8].copy_from_slice(&sector.to_le_bytes());
                slot[1] %= 14;
            }
            let limits = Limits { unit, ..LIMITS };
            let (parsed, pieces) = parse(abi, &slot, &limits);
            match parsed.work {
                Ok(Work::Data { at, .. }) => {
                    let total: u64 = pieces.iter().map(|p| u64::from(p.len)).sum();
                    prop_assert!(at + total <= 1000 << 9 && !pieces.is_empty());
                    prop_assert!(pieces.iter().all(|p| p.len > 0 && p.offset + p.len <= 4096));
                }
                Ok(Work::Discard { at, len, .. }) => prop_assert!(at + len <= 1000 << 9),
                Ok(Work::Indirect { count, .. }) => prop_assert!((1..=256).contains(&count)),
                Ok(Work::Flush { .. }) | Err(_) => {}
            }
        }
    }
}
