//! `HYPERVISOR_grant_table_op(cmd, args, count)` and the tables (`public/grant_table.h`).

use crate::xen::{Domid, Gref};

open_enum! {
    /// `GNTTABOP_*`; the argument is an array of the struct named.
    pub struct GnttabOp(u32) {
        /// `MapGrantRef`.
        MAP_GRANT_REF = 0,
        /// `UnmapGrantRef`.
        UNMAP_GRANT_REF = 1,
        /// `SetupTable`, one.
        SETUP_TABLE = 2,
        /// `DumpTable`.
        DUMP_TABLE = 3,
        /// `Transfer`.
        TRANSFER = 4,
        /// `Copy`.
        COPY = 5,
        /// `QuerySize`, one.
        QUERY_SIZE = 6,
        /// `UnmapAndReplace`.
        UNMAP_AND_REPLACE = 7,
        /// `SetVersion`, one.
        SET_VERSION = 8,
        /// `GetStatusFrames`, one.
        GET_STATUS_FRAMES = 9,
        /// `GetVersion`, one.
        GET_VERSION = 10,
        /// `SwapGrantRef`.
        SWAP_GRANT_REF = 11,
        /// `CacheFlush`.
        CACHE_FLUSH = 12,
    }
}

open_enum! {
    /// `GNTST_*`: status of one operation.
    pub struct GntStatus(i16) {
        /// Done.
        OKAY = 0,
        /// Undefined error.
        GENERAL_ERROR = -1,
        /// Unrecognised domain id.
        BAD_DOMAIN = -2,
        /// Unrecognised or inappropriate reference.
        BAD_GNTREF = -3,
        /// Unrecognised or inappropriate handle.
        BAD_HANDLE = -4,
        /// Inappropriate virtual address.
        BAD_VIRT_ADDR = -5,
        /// Inappropriate device address.
        BAD_DEV_ADDR = -6,
        /// No room in the I/O MMU.
        NO_DEVICE_SPACE = -7,
        /// Not enough privilege.
        PERMISSION_DENIED = -8,
        /// The page is invalid for the operation.
        BAD_PAGE = -9,
        /// A copy crosses a page.
        BAD_COPY_ARG = -10,
        /// The address is too large.
        ADDRESS_TOO_BIG = -11,
        /// Try again.
        EAGAIN = -12,
        /// No room for handles.
        NO_SPACE = -13,
    }
}

/// Entries that survive a change of version (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const NR_RESERVED_ENTRIES: u32 = 8;
/// Reserved entry of the console ring (`GNTTAB_RESERVED_CONSOLE`).
pub const RESERVED_CONSOLE: Gref = Gref(0);
/// Reserved entry of the store ring (`GNTTAB_RESERVED_XENSTORE`).
pub const RESERVED_XENSTORE: Gref = Gref(1);
/// Entries in a frame of a v1 table.
pub const V1_PER_FRAME: u32 = 512;
/// Entries in a frame of a v2 table.
pub const V2_PER_FRAME: u32 = 256;
/// Status words in a frame of a v2 table's status.
pub const STATUS_PER_FRAME: u32 = 2048;

/// `GTF_*`: the flags word of an entry.
pub mod gtf {
    /// Type: unused.
    pub const INVALID: u16 = 0;
    /// Type: `domid` may map the frame.
    pub const PERMIT_ACCESS: u16 = 1;
    /// Type: `domid` may give a frame.
    pub const ACCEPT_TRANSFER: u16 = 2;
    /// Type (v2): use another domain's grant.
    pub const TRANSITIVE: u16 = 3;
    /// Bits of the type.
    pub const TYPE_MASK: u16 = 3;
    /// Only reading.
    pub const READONLY: u16 = 1 << 2;
    /// Being read, set by Xen (v1; in v2 in the status word).
    pub const READING: u16 = 1 << 3;
    /// Being written, set by Xen (v1; in v2 in the status word).
    pub const WRITING: u16 = 1 << 4;
    /// Cache attribute.
    pub const PWT: u16 = 1 << 5;
    /// Cache attribute.
    pub const PCD: u16 = 1 << 6;
    /// Cache attribute.
    pub const PAT: u16 = 1 << 7;
    /// v2: only bytes `page_off..page_off + length`.
    pub const SUB_PAGE: u16 = 1 << 8;
    /// Transfer begun, set by Xen.
    pub const TRANSFER_COMMITTED: u16 = 1 << 2;
    /// Transfer done, set by Xen.
    pub const TRANSFER_COMPLETED: u16 = 1 << 3;
}

/// `GNTMAP_*`: flags of a mapping.
pub mod gntmap {
    /// For devices.
    pub const DEVICE_MAP: u32 = 1 << 0;
    /// For CPUs.
    pub const HOST_MAP: u32 = 1 << 1;
    /// Only reading.
    pub const READONLY: u32 = 1 << 2;
    /// PV: usable by the application too.
    pub const APPLICATION_MAP: u32 = 1 << 3;
    /// PV: the address is of a page-table entry.
    pub const CONTAINS_PTE: u32 = 1 << 4;
}

/// Operation of `CacheFlush`: write back (`GNTTAB_CACHE_CLEAN`).
pub const CACHE_CLEAN: u32 = 1 << 0;
/// Operation of `CacheFlush`: invalidate (`GNTTAB_CACHE_INVAL`).
pub const CACHE_INVAL: u32 = 1 << 1;

/// Flag of `Copy`: the source is a grant.
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
/// Flag of `Copy`: the destination is a grant.
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;

abi_structs! {
    /// `struct grant_entry_v1`.
    pub struct GrantEntryV1 {
        /// `gtf`.
        pub flags: u16,
        /// Who is granted.
        pub domid: Domid,
        /// Which frame.
        pub frame: u32,
    }

    /// `union grant_entry_v2` as a full page or part of one.
    pub struct GrantEntryV2 {
        /// `gtf`.
        pub flags: u16,
        /// Who is granted.
        pub domid: Domid,
        /// `SUB_PAGE`: first byte.
        pub page_off: u16,
        /// `SUB_PAGE`: bytes.
        pub length: u16,
        /// Which frame.
        pub frame: u64,
    }

    /// `union grant_entry_v2` of type `TRANSITIVE`.
    pub struct GrantEntryV2Transitive {
        /// `gtf`.
        pub flags: u16,
        /// Who is granted.
        pub domid: Domid,
        /// Whose grant is used.
        pub trans_domid: Domid,
        /// Zero.
        pub pad0: u16,
        /// Which grant.
        pub gref: Gref,
        /// Zero.
        pub spacer: u32,
    }

    /// `struct gnttab_map_grant_ref`.
    pub struct MapGrantRef {
        /// In: where.
        pub host_addr: u64,
        /// In: `gntmap`.
        pub flags: u32,
        /// In.
        pub r#ref: Gref,
        /// In.
        pub dom: Domid,
        /// Out.
        pub status: GntStatus,
        /// Out: for unmapping.
        pub handle: u32,
        /// Out.
        pub dev_bus_addr: u64,
    }

    /// `struct gnttab_unmap_grant_ref`.
    pub struct UnmapGrantRef {
        /// In.
        pub host_addr: u64,
        /// In.
        pub dev_bus_addr: u64,
        /// In.
        pub handle: u32,
        /// Out.
        pub status: GntStatus,
        /// Zero.
        pub pad: u16,
    }

    /// `struct gnttab_setup_table`.
    pub struct SetupTable {
        /// In: `SELF`.
        pub dom: Domid,
        /// Zero.
        pub pad0: u16,
        /// In: frames wanted.
        pub nr_frames: u32,
        /// Out.
        pub status: GntStatus,
        /// Zero.
        pub pad1: [u16; 3],
        /// Guest address of frames (`xen_pfn_t`), out.
        pub frame_list: u64,
    }

    /// `struct gnttab_setup_table` of a 32-bit guest.
    pub struct SetupTableCompat {
        /// In: `SELF`.
        pub dom: Domid,
        /// Zero.
        pub pad0: u16,
        /// In: frames wanted.
        pub nr_frames: u32,
        /// Out.
        pub status: GntStatus,
        /// Zero.
        pub pad1: u16,
        /// Guest address of frames (`xen_pfn_t`), out.
        pub frame_list: u32,
    }

    /// `struct gnttab_dump_table`.
    pub struct DumpTable {
        /// In.
        pub dom: Domid,
        /// Out.
        pub status: GntStatus,
    }

    /// `struct gnttab_transfer`.
    pub struct Transfer {
        /// In: frame to give.
        pub mfn: u64,
        /// In: to whom.
        pub domid: Domid,
        /// Zero.
        pub pad0: u16,
        /// In: their entry.
        pub r#ref: Gref,
        /// Out.
        pub status: GntStatus,
        /// Zero.
        pub pad1: [u16; 3],
    }

    /// `struct gnttab_transfer` of a 32-bit guest.
    pub struct TransferCompat {
        /// In: frame to give.
        pub mfn: u32,
        /// In: to whom.
        pub domid: Domid,
        /// Zero.
        pub pad0: u16,
        /// In: their entry.
        pub r#ref: Gref,
        /// Out.
        pub status: GntStatus,
        /// Zero.
        pub pad1: u16,
    }

    /// `struct gnttab_copy_ptr`: one end of a copy.
    pub struct CopyPtr {
        /// Grant (low 32 bits) or frame, as the flags say.
        pub u: u64,
        /// Whose.
        pub domid: Domid,
        /// First byte in the page.
        pub offset: u16,
        /// Zero.
        pub pad: u32,
    }

    /// `struct gnttab_copy_ptr` of a 32-bit guest.
    pub struct CopyPtrCompat {
        /// Grant or frame, as the flags say.
        pub u: u32,
        /// Whose.
        pub domid: Domid,
        /// First byte in the page.
        pub offset: u16,
    }

    /// `struct gnttab_copy`.
    pub struct Copy {
        /// In: from.
        pub source: CopyPtr,
        /// In: to.
        pub dest: CopyPtr,
        /// In: bytes.
        pub len: u16,
        /// In: `GNTCOPY_*`.
        pub flags: u16,
        /// Out.
        pub status: GntStatus,
        /// Zero.
        pub pad: u16,
    }

    /// `struct gnttab_copy` of a 32-bit guest.
    pub struct CopyCompat {
        /// In: from.
        pub source: CopyPtrCompat,
        /// In: to.
        pub dest: CopyPtrCompat,
        /// In: bytes.
        pub len: u16,
        /// In: `GNTCOPY_*`.
        pub flags: u16,
        /// Out.
        pub status: GntStatus,
        /// Zero.
        pub pad: u16,
    }

    /// `struct gnttab_query_size`.
    pub struct QuerySize {
        /// In: `SELF`.
        pub dom: Domid,
        /// Zero.
        pub pad0: u16,
        /// Out: frames in use.
        pub nr_frames: u32,
        /// Out: frames at most.
        pub max_nr_frames: u32,
        /// Out.
        pub status: GntStatus,
        /// Zero.
        pub pad1: u16,
    }

    /// `struct gnttab_unmap_and_replace`.
    pub struct UnmapAndReplace {
        /// In.
        pub host_addr: u64,
        /// In.
        pub new_addr: u64,
        /// In.
        pub handle: u32,
        /// Out.
        pub status: GntStatus,
        /// Zero.
        pub pad: u16,
    }

    /// `struct gnttab_set_version`.
    pub struct SetVersion {
        /// In: wanted; out: in force.
        pub version: u32,
    }

    /// `struct gnttab_get_status_frames`.
    pub struct GetStatusFrames {
        /// In.
        pub nr_frames: u32,
        /// In.
        pub dom: Domid,
        /// Out.
        pub status: GntStatus,
        /// Guest address of frames (`uint64_t`), out.
        pub frame_list: u64,
    }

    /// `struct gnttab_get_status_frames` of a 32-bit guest.
    pub struct GetStatusFramesCompat {
        /// In.
        pub nr_frames: u32,
        /// In.
        pub dom: Domid,
        /// Out.
        pub status: GntStatus,
        /// Guest address of frames (`uint64_t`), out.
        pub frame_list: u32,
    }

    /// `struct gnttab_get_version`.
    pub struct GetVersion {
        /// In.
        pub dom: Domid,
        /// Zero.
        pub pad: u16,
        /// Out.
        pub version: u32,
    }

    /// `struct gnttab_swap_grant_ref`.
    pub struct SwapGrantRef {
        /// In.
        pub ref_a: Gref,
        /// In.
        pub ref_b: Gref,
        /// Out.
        pub status: GntStatus,
        /// Zero.
        pub pad: u16,
    }

    /// `struct gnttab_cache_flush`.
    pub struct CacheFlush {
        /// In: device address or grant (low 32 bits).
        pub a: u64,
        /// In.
        pub offset: u16,
        /// In.
        pub length: u16,
        /// In.
        pub op: u32,
    }
}

twins! {
    SetupTable / SetupTableCompat { = dom = nr_frames = status ~ frame_list }
    Transfer / TransferCompat { = domid = r#ref = status ~ mfn }
    GetStatusFrames / GetStatusFramesCompat { = nr_frames = dom = status ~ frame_list }
    CopyPtr / CopyPtrCompat { = domid = offset ~ u }
}

impl From<CopyCompat> for Copy {
    fn from(c: CopyCompat) -> Self {
        Self {
            source: c.source.into(),
            dest: c.dest.into(),
            len: c.len,
            flags: c.flags,
            status: c.status,
            pad: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        GrantEntryV1 = 8 { flags: 0, domid: 2, frame: 4 }
        GrantEntryV2 = 16 { flags: 0, domid: 2, page_off: 4, length: 6, frame: 8 }
        GrantEntryV2Transitive = 16 { flags: 0, domid: 2, trans_domid: 4, gref: 8 }
        MapGrantRef = 32 { host_addr: 0, flags: 8, r#ref: 12, dom: 16, status: 18, handle: 20, dev_bus_addr: 24 }
        UnmapGrantRef = 24 { host_addr: 0, dev_bus_addr: 8, handle: 16, status: 20 }
        SetupTable = 24 { dom: 0, nr_frames: 4, status: 8, frame_list: 16 }
        SetupTableCompat = 16 { dom: 0, nr_frames: 4, status: 8, frame_list: 12 }
        DumpTable = 4 { dom: 0, status: 2 }
        Transfer = 24 { mfn: 0, domid: 8, r#ref: 12, status: 16 }
        TransferCompat = 16 { mfn: 0, domid: 4, r#ref: 8, status: 12 }
        CopyPtr = 16 { u: 0, domid: 8, offset: 10 }
        CopyPtrCompat = 8 { u: 0, domid: 4, offset: 6 }
        Copy = 40 { source: 0, dest: 16, len: 32, flags: 34, status: 36 }
        CopyCompat = 24 { source: 0, dest: 8, len: 16, flags: 18, status: 20 }
        QuerySize = 16 { dom: 0, nr_frames: 4, max_nr_frames: 8, status: 12 }
        UnmapAndReplace = 24 { host_addr: 0, new_addr: 8, handle: 16, status: 20 }
        SetVersion = 4 { version: 0 }
        GetStatusFrames = 16 { nr_frames: 0, dom: 4, status: 6, frame_list: 8 }
        GetStatusFramesCompat = 12 { nr_frames: 0, dom: 4, status: 6, frame_list: 8 }
        GetVersion = 8 { dom: 0, version: 4 }
        SwapGrantRef = 12 { ref_a: 0, ref_b: 4, status: 8 }
        CacheFlush = 16 { a: 0, offset: 8, length: 10, op: 12 }
    }

    #[test]
    fn entries_fill_a_frame() {
        assert_eq!(V1_PER_FRAME as usize * size_of::<GrantEntryV1>(), 4096);
        assert_eq!(V2_PER_FRAME as usize * size_of::<GrantEntryV2>(), 4096);
        assert_eq!(GntStatus(-3).name(), Some("BAD_GNTREF"));
    }
}
