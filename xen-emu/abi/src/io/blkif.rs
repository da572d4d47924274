//! Block device protocol (`public/io/blkif.h`). Sectors are 512 bytes.
//!
//! The ring's slots are 112 bytes for a 64-bit front-end and 108 for a 32-bit one (`protocol` node).

use crate::xen::Gref;
use zerocopy::little_endian::U64;

open_enum! {
    /// `BLKIF_OP_*`.
    pub struct BlkifOp(u8) {
        /// Read.
        READ = 0,
        /// Write.
        WRITE = 1,
        /// Write, ordered; needs `feature-barrier`.
        WRITE_BARRIER = 2,
        /// Flush; needs `feature-flush-cache`.
        FLUSH_DISKCACHE = 3,
        /// Never use.
        RESERVED_1 = 4,
        /// Discard; needs `feature-discard`.
        DISCARD = 5,
        /// Read or write with segments in their own pages.
        INDIRECT = 6,
    }
}

open_enum! {
    /// `BLKIF_RSP_*`.
    pub struct BlkifRsp(i16) {
        /// Done.
        OKAY = 0,
        /// Failed.
        ERROR = -1,
        /// Not supported.
        EOPNOTSUPP = -2,
    }
}

/// Segments in a direct request.
pub const MAX_SEGMENTS_PER_REQUEST: usize = 11;
/// Pages of segments in an indirect request.
pub const MAX_INDIRECT_PAGES_PER_REQUEST: usize = 8;
/// Segments in a page of segments.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = 512;
/// Sectors in a page.
pub const SECTORS_PER_PAGE: u8 = 8;
/// Flag of a discard: securely.
pub const DISCARD_SECURE: u8 = 1;
/// `info` node: a CD-ROM.
pub const VDISK_CDROM: u32 = 1;
/// `info` node: removable.
pub const VDISK_REMOVABLE: u32 = 2;
/// `info` node: read-only.
pub const VDISK_READONLY: u32 = 4;

abi_structs! {
    /// `struct blkif_request_segment`.
    pub struct Segment {
        /// Which page.
        pub gref: Gref,
        /// First sector in it.
        pub first_sect: u8,
        /// Last sector in it, inclusive.
        pub last_sect: u8,
        /// Zero.
        pub pad: u16,
    }

    /// `struct blkif_request`.
    pub struct Request {
        /// What.
        pub operation: BlkifOp,
        /// Segments in use.
        pub nr_segments: u8,
        /// Device number.
        pub handle: u16,
        /// Zero.
        pub pad: u32,
        /// Echoed.
        pub id: u64,
        /// First sector on disk.
        pub sector_number: u64,
        /// Where the data is.
        pub seg: [Segment; 11],
    }

    /// `struct blkif_request` of a 32-bit front-end.
    pub struct RequestCompat {
        /// What.
        pub operation: BlkifOp,
        /// Segments in use.
        pub nr_segments: u8,
        /// Device number.
        pub handle: u16,
        /// Echoed.
        pub id: U64,
        /// First sector on disk.
        pub sector_number: U64,
        /// Where the data is.
        pub seg: [Segment; 11],
    }

    /// `struct blkif_request_discard`.
    pub struct RequestDiscard {
        /// `DISCARD`.
        pub operation: BlkifOp,
        /// `DISCARD_SECURE` or 0.
        pub flag: u8,
        /// Device number.
        pub handle: u16,
        /// Zero.
        pub pad: u32,
        /// Echoed.
        pub id: u64,
        /// First sector on disk.
        pub sector_number: u64,
        /// Sectors.
        pub nr_sectors: u64,
    }

    /// `struct blkif_request_discard` of a 32-bit front-end.
    pub struct RequestDiscardCompat {
        /// `DISCARD`.
        pub operation: BlkifOp,
        /// `DISCARD_SECURE` or 0.
        pub flag: u8,
        /// Device number.
        pub handle: u16,
        /// Echoed.
        pub id: U64,
        /// First sector on disk.
        pub sector_number: U64,
        /// Sectors.
        pub nr_sectors: U64,
    }

    /// `struct blkif_request_indirect`.
    pub struct RequestIndirect {
        /// `INDIRECT`.
        pub operation: BlkifOp,
        /// `READ` or `WRITE`.
        pub indirect_op: BlkifOp,
        /// Segments in use.
        pub nr_segments: u16,
        /// Zero.
        pub pad0: u32,
        /// Echoed.
        pub id: u64,
        /// First sector on disk.
        pub sector_number: u64,
        /// Device number.
        pub handle: u16,
        /// Zero.
        pub pad1: u16,
        /// Pages of segments.
        pub indirect_grefs: [Gref; 8],
        /// Zero.
        pub pad2: u32,
    }

    /// `struct blkif_request_indirect` of a 32-bit front-end.
    pub struct RequestIndirectCompat {
        /// `INDIRECT`.
        pub operation: BlkifOp,
        /// `READ` or `WRITE`.
        pub indirect_op: BlkifOp,
        /// Segments in use.
        pub nr_segments: u16,
        /// Echoed.
        pub id: U64,
        /// First sector on disk.
        pub sector_number: U64,
        /// Device number.
        pub handle: u16,
        /// Zero.
        pub pad1: u16,
        /// Pages of segments.
        pub indirect_grefs: [Gref; 8],
        /// Zero.
        pub pad2: [u32; 2],
    }

    /// `struct blkif_response`.
    pub struct Response {
        /// Of the request.
        pub id: u64,
        /// Of the request.
        pub operation: BlkifOp,
        /// Zero.
        pub pad0: u8,
        /// How it went.
        pub status: BlkifRsp,
        /// Zero.
        pub pad1: u32,
    }

    /// `struct blkif_response` of a 32-bit front-end.
    pub struct ResponseCompat {
        /// Of the request.
        pub id: U64,
        /// Of the request.
        pub operation: BlkifOp,
        /// Zero.
        pub pad0: u8,
        /// How it went.
        pub status: BlkifRsp,
    }
}

twins! {
    Request / RequestCompat { = operation = nr_segments = handle = seg @ id @ sector_number }
    RequestDiscard / RequestDiscardCompat { = operation = flag = handle @ id @ sector_number @ nr_sectors }
    RequestIndirect / RequestIndirectCompat {
        = operation = indirect_op = nr_segments = handle = indirect_grefs @ id @ sector_number
    }
    Response / ResponseCompat { = operation = status @ id }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        Segment = 8 { gref: 0, first_sect: 4, last_sect: 5 }
        Request = 112 { operation: 0, nr_segments: 1, handle: 2, id: 8, sector_number: 16, seg: 24 }
        RequestCompat = 108 { operation: 0, nr_segments: 1, handle: 2, id: 4, sector_number: 12, seg: 20 }
        RequestDiscard = 32 { operation: 0, flag: 1, handle: 2, id: 8, sector_number: 16, nr_sectors: 24 }
        RequestDiscardCompat = 28 { operation: 0, flag: 1, handle: 2, id: 4, sector_number: 12, nr_sectors: 20 }
        RequestIndirect = 64 {
            operation: 0, indirect_op: 1, nr_segments: 2, id: 8, sector_number: 16, handle: 24, indirect_grefs: 28,
        }
        RequestIndirectCompat = 64 {
            operation: 0, indirect_op: 1, nr_segments: 2, id: 4, sector_number: 12, handle: 20, indirect_grefs: 24,
        }
        Response = 16 { id: 0, operation: 8, status: 10 }
        ResponseCompat = 12 { id: 0, operation: 8, status: 10 }
    }
}
