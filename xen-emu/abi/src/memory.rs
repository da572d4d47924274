//! `HYPERVISOR_memory_op(cmd, arg)` (`public/memory.h`).

use crate::xen::Domid;

open_enum! {
    /// `XENMEM_*`. An ordinary domain may name only itself (`Domid::SELF`).
    pub struct MemoryOp(u32) {
        /// Add memory; arg `MemoryReservation`; returns extents done.
        INCREASE_RESERVATION = 0,
        /// Give memory back; arg `MemoryReservation`; returns extents done.
        DECREASE_RESERVATION = 1,
        /// Highest RAM frame of the host; arg NULL.
        MAXIMUM_RAM_PAGE = 2,
        /// Pages the domain has; arg `MemoryDomain`.
        CURRENT_RESERVATION = 3,
        /// Pages it may have; arg `MemoryDomain`.
        MAXIMUM_RESERVATION = 4,
        /// PV.
        MACHPHYS_MFN_LIST = 5,
        /// Put memory at given frames; arg `MemoryReservation`; returns extents done.
        POPULATE_PHYSMAP = 6,
        /// Place a special page; arg `AddToPhysmap`.
        ADD_TO_PHYSMAP = 7,
        /// The memory map; arg `MemoryMap`.
        MEMORY_MAP = 9,
        /// The host's memory map (dom0).
        MACHINE_MEMORY_MAP = 10,
        /// PV.
        EXCHANGE = 11,
        /// PV.
        MACHPHYS_MAPPING = 12,
        /// Replace the memory map; arg `ForeignMemoryMap`.
        SET_MEMORY_MAP = 13,
        /// Highest guest frame; arg `MemoryDomain`.
        MAXIMUM_GPFN = 14,
        /// Take away the page at a frame; arg `RemoveFromPhysmap`.
        REMOVE_FROM_PHYSMAP = 15,
        /// Toolstack.
        SET_POD_TARGET = 16,
        /// Toolstack.
        GET_POD_TARGET = 17,
        /// Toolstack.
        GET_SHARING_FREED_PAGES = 18,
        /// Toolstack.
        GET_SHARING_SHARED_PAGES = 19,
        /// Toolstack.
        PAGING_OP = 20,
        /// Toolstack.
        ACCESS_OP = 21,
        /// Toolstack.
        SHARING_OP = 22,
        /// Several ADD_TO_PHYSMAP; arg `AddToPhysmapBatch`.
        ADD_TO_PHYSMAP_BATCH = 23,
        /// Toolstack.
        CLAIM_PAGES = 24,
        /// PV.
        MACHPHYS_COMPAT_MFN_LIST = 25,
        /// Virtual NUMA; arg `VnumaTopologyInfo`.
        GET_VNUMAINFO = 26,
        /// Reserved ranges of devices.
        RESERVED_DEVICE_MEMORY_MAP = 27,
        /// Toolstack.
        ACQUIRE_RESOURCE = 28,
    }
}

open_enum! {
    /// `XENMAPSPACE_*`: what `AddToPhysmap` places.
    pub struct MapSpace(u32) {
        /// The shared info page.
        SHARED_INFO = 0,
        /// A frame of the grant table, or of its status with `XENMAPIDX_GRANT_TABLE_STATUS`.
        GRANT_TABLE = 1,
        /// A frame of the domain itself: moves it.
        GMFN = 2,
        /// `size` frames of the domain itself.
        GMFN_RANGE = 3,
        /// A frame of another domain.
        GMFN_FOREIGN = 4,
        /// Device memory (Arm).
        DEV_MMIO = 5,
    }
}

/// In `idx` of a GRANT_TABLE mapping: a status frame of the v2 table.
pub const XENMAPIDX_GRANT_TABLE_STATUS: u64 = 0x8000_0000;
/// Flag of `MemoryReservation`: populate on demand.
pub const XENMEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;
/// Flag of `MemoryReservation`: from that node only.
pub const XENMEMF_EXACT_NODE_REQUEST: u32 = 1 << 17;
/// Flag of `MemoryReservation`: the node is virtual.
pub const XENMEMF_VNODE: u32 = 1 << 18;
/// Highest `extent_order` that means anything: 1 GiB.
pub const MAX_EXTENT_ORDER: u32 = 18;

abi_structs! {
    /// `struct xen_memory_reservation`.
    pub struct MemoryReservation {
        /// Guest address of an array of `nr_extents` frames (`xen_pfn_t`).
        pub extent_start: u64,
        /// How many.
        pub nr_extents: u64,
        /// 2^order pages each.
        pub extent_order: u32,
        /// Address bits and `XENMEMF_*`.
        pub mem_flags: u32,
        /// `SELF`.
        pub domid: Domid,
        /// Zero.
        pub pad: [u16; 3],
    }

    /// `struct xen_memory_reservation` of a 32-bit guest.
    pub struct MemoryReservationCompat {
        /// Guest address of an array of `nr_extents` frames (`xen_pfn_t`).
        pub extent_start: u32,
        /// How many.
        pub nr_extents: u32,
        /// 2^order pages each.
        pub extent_order: u32,
        /// Address bits and `XENMEMF_*`.
        pub mem_flags: u32,
        /// `SELF`.
        pub domid: Domid,
        /// Zero.
        pub pad: u16,
    }

    /// `struct xen_memory_domain`.
    pub struct MemoryDomain {
        /// `SELF`.
        pub domid: Domid,
    }

    /// `struct xen_add_to_physmap`.
    pub struct AddToPhysmap {
        /// `SELF`.
        pub domid: Domid,
        /// Pages, for GMFN_RANGE.
        pub size: u16,
        /// What.
        pub space: MapSpace,
        /// Which of it.
        pub idx: u64,
        /// Where.
        pub gpfn: u64,
    }

    /// `struct xen_add_to_physmap` of a 32-bit guest.
    pub struct AddToPhysmapCompat {
        /// `SELF`.
        pub domid: Domid,
        /// Pages, for GMFN_RANGE.
        pub size: u16,
        /// What.
        pub space: MapSpace,
        /// Which of it.
        pub idx: u32,
        /// Where.
        pub gpfn: u32,
    }

    /// `struct xen_add_to_physmap_batch`.
    pub struct AddToPhysmapBatch {
        /// `SELF`.
        pub domid: Domid,
        /// `MapSpace`.
        pub space: u16,
        /// How many.
        pub size: u16,
        /// GMFN_FOREIGN: whose; else 0.
        pub foreign_domid: Domid,
        /// Guest address of `size` indices.
        pub idxs: u64,
        /// Guest address of `size` frames.
        pub gpfns: u64,
        /// Guest address of `size` errors (`int`), out.
        pub errs: u64,
    }

    /// `struct xen_add_to_physmap_batch` of a 32-bit guest.
    pub struct AddToPhysmapBatchCompat {
        /// `SELF`.
        pub domid: Domid,
        /// `MapSpace`.
        pub space: u16,
        /// How many.
        pub size: u16,
        /// GMFN_FOREIGN: whose; else 0.
        pub foreign_domid: Domid,
        /// Guest address of `size` indices.
        pub idxs: u32,
        /// Guest address of `size` frames.
        pub gpfns: u32,
        /// Guest address of `size` errors (`int`), out.
        pub errs: u32,
    }

    /// `struct xen_remove_from_physmap`.
    pub struct RemoveFromPhysmap {
        /// `SELF`.
        pub domid: Domid,
        /// Zero.
        pub pad: [u16; 3],
        /// Where.
        pub gpfn: u64,
    }

    /// `struct xen_remove_from_physmap` of a 32-bit guest.
    pub struct RemoveFromPhysmapCompat {
        /// `SELF`.
        pub domid: Domid,
        /// Zero.
        pub pad: u16,
        /// Where.
        pub gpfn: u32,
    }

    /// `struct xen_memory_map`.
    pub struct MemoryMap {
        /// In: room; out: entries written.
        pub nr_entries: u32,
        /// Zero.
        pub pad: u32,
        /// Guest address of `E820Entry`s.
        pub buffer: u64,
    }

    /// `struct xen_memory_map` of a 32-bit guest.
    pub struct MemoryMapCompat {
        /// In: room; out: entries written.
        pub nr_entries: u32,
        /// Guest address of `E820Entry`s.
        pub buffer: u32,
    }

    /// `struct xen_foreign_memory_map`.
    pub struct ForeignMemoryMap {
        /// `SELF`.
        pub domid: Domid,
        /// Zero.
        pub pad: [u16; 3],
        /// The new map.
        pub map: MemoryMap,
    }

    /// `struct xen_foreign_memory_map` of a 32-bit guest.
    pub struct ForeignMemoryMapCompat {
        /// `SELF`.
        pub domid: Domid,
        /// Zero.
        pub pad: u16,
        /// The new map.
        pub map: MemoryMapCompat,
    }

    /// `struct xen_vmemrange`.
    pub struct Vmemrange {
        /// First byte.
        pub start: u64,
        /// One past the last byte.
        pub end: u64,
        /// Flags.
        pub flags: u32,
        /// Virtual node.
        pub nid: u32,
    }

    /// `struct xen_vnuma_topology_info`, both widths (handles are padded to 8 bytes).
    pub struct VnumaTopologyInfo {
        /// `SELF`.
        pub domid: Domid,
        /// Zero.
        pub pad: u16,
        /// In: room; out: number.
        pub nr_vnodes: u32,
        /// In: room; out: number.
        pub nr_vcpus: u32,
        /// In: room; out: number.
        pub nr_vmemranges: u32,
        /// Guest address of distances.
        pub vdistance: u64,
        /// Guest address of the nodes of the vCPUs.
        pub vcpu_to_vnode: u64,
        /// Guest address of `Vmemrange`s.
        pub vmemrange: u64,
    }
}

/// One entry of the memory map, the BIOS' layout: 20 bytes, unaligned.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct E820Entry {
    /// First byte.
    pub addr: zerocopy::little_endian::U64,
    /// Bytes.
    pub size: zerocopy::little_endian::U64,
    /// `hvm::start_info::MemmapType`.
    pub r#type: zerocopy::little_endian::U32,
}

twins! {
    MemoryReservation / MemoryReservationCompat {
        = extent_order = mem_flags = domid ~ extent_start ~ nr_extents
    }
    AddToPhysmap / AddToPhysmapCompat { = domid = size = space ~ idx ~ gpfn }
    AddToPhysmapBatch / AddToPhysmapBatchCompat {
        = domid = space = size = foreign_domid ~ idxs ~ gpfns ~ errs
    }
    RemoveFromPhysmap / RemoveFromPhysmapCompat { = domid ~ gpfn }
    MemoryMap / MemoryMapCompat { = nr_entries ~ buffer }
}

impl From<ForeignMemoryMapCompat> for ForeignMemoryMap {
    fn from(c: ForeignMemoryMapCompat) -> Self {
        Self { domid: c.domid, pad: [0; 3], map: c.map.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        MemoryReservation = 32 { extent_start: 0, nr_extents: 8, extent_order: 16, mem_flags: 20, domid: 24 }
        MemoryReservationCompat = 20 { extent_start: 0, nr_extents: 4, extent_order: 8, mem_flags: 12, domid: 16 }
        MemoryDomain = 2 { domid: 0 }
        AddToPhysmap = 24 { domid: 0, size: 2, space: 4, idx: 8, gpfn: 16 }
        AddToPhysmapCompat = 16 { domid: 0, size: 2, space: 4, idx: 8, gpfn: 12 }
        AddToPhysmapBatch = 32 { domid: 0, space: 2, size: 4, foreign_domid: 6, idxs: 8, gpfns: 16, errs: 24 }
        AddToPhysmapBatchCompat = 20 { domid: 0, space: 2, size: 4, foreign_domid: 6, idxs: 8, gpfns: 12, errs: 16 }
        RemoveFromPhysmap = 16 { domid: 0, gpfn: 8 }
        RemoveFromPhysmapCompat = 8 { domid: 0, gpfn: 4 }
        MemoryMap = 16 { nr_entries: 0, buffer: 8 }
        MemoryMapCompat = 8 { nr_entries: 0, buffer: 4 }
        ForeignMemoryMap = 24 { domid: 0, map: 8 }
        ForeignMemoryMapCompat = 12 { domid: 0, map: 4 }
        Vmemrange = 24 { start: 0, end: 8, flags: 16, nid: 20 }
        VnumaTopologyInfo = 40 {
            domid: 0, nr_vnodes: 4, nr_vcpus: 8, nr_vmemranges: 12, vdistance: 16, vcpu_to_vnode: 24, vmemrange: 32,
        }
        E820Entry = 20 { addr: 0, size: 8, r#type: 16 }
    }

    #[test]
    fn twins_keep_the_values() {
        let full =
            AddToPhysmap { domid: Domid::SELF, size: 3, space: MapSpace::GRANT_TABLE, idx: 5, gpfn: 0xfeff0 };
        assert_eq!(AddToPhysmap::from(full.to_compat()), full);
        let full = MemoryReservation {
            extent_start: 0x1000,
            nr_extents: 7,
            extent_order: 9,
            mem_flags: 32,
            domid: Domid::SELF,
            pad: [0; 3],
        };
        assert_eq!(MemoryReservation::from(full.to_compat()), full);
    }
}
