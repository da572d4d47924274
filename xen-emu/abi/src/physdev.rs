//! `HYPERVISOR_physdev_op(cmd, arg)`, the part HVM guests use (`public/physdev.h`).

use crate::xen::Domid;
use zerocopy::little_endian::U64;

open_enum! {
    /// `PHYSDEVOP_*`.
    pub struct PhysdevOp(u32) {
        /// Obsolete.
        IRQ_UNMASK_NOTIFY = 4,
        /// arg `IrqStatusQuery`.
        IRQ_STATUS_QUERY = 5,
        /// PV; arg `SetIopl`.
        SET_IOPL = 6,
        /// PV.
        SET_IOBITMAP = 7,
        /// Hardware domain.
        APIC_READ = 8,
        /// Hardware domain.
        APIC_WRITE = 9,
        /// Hardware domain.
        ALLOC_IRQ_VECTOR = 10,
        /// Hardware domain.
        FREE_IRQ_VECTOR = 11,
        /// arg `Eoi`.
        EOI = 12,
        /// arg `MapPirq`.
        MAP_PIRQ = 13,
        /// arg `UnmapPirq`.
        UNMAP_PIRQ = 14,
        /// Hardware domain.
        MANAGE_PCI_ADD = 15,
        /// Hardware domain.
        MANAGE_PCI_REMOVE = 16,
        /// arg `PirqEoiGmfn`.
        PIRQ_EOI_GMFN_V1 = 17,
        /// Hardware domain.
        RESTORE_MSI = 19,
        /// Hardware domain.
        MANAGE_PCI_ADD_EXT = 20,
        /// Hardware domain.
        SETUP_GSI = 21,
        /// arg `GetFreePirq`.
        GET_FREE_PIRQ = 23,
        /// Hardware domain.
        PCI_MMCFG_RESERVED = 24,
        /// Hardware domain.
        PCI_DEVICE_ADD = 25,
        /// Hardware domain.
        PCI_DEVICE_REMOVE = 26,
        /// Hardware domain.
        RESTORE_MSI_EXT = 27,
        /// arg `PirqEoiGmfn`.
        PIRQ_EOI_GMFN_V2 = 28,
        /// Hardware domain.
        DBGP_OP = 29,
        /// Hardware domain.
        PREPARE_MSIX = 30,
        /// Hardware domain.
        RELEASE_MSIX = 31,
    }
}

open_enum! {
    /// `MAP_PIRQ_TYPE_*`.
    pub struct MapPirqType(i32) {
        /// Message-signalled.
        MSI = 0,
        /// Global system interrupt.
        GSI = 1,
        /// Unknown.
        UNKNOWN = 2,
        /// Message-signalled with a PCI segment.
        MSI_SEG = 3,
        /// Several messages.
        MULTI_MSI = 4,
    }
}

/// Flag of `IrqStatusQuery`: EOI needed.
pub const XENIRQSTAT_NEEDS_EOI: u32 = 1 << 0;
/// Flag of `IrqStatusQuery`: shared by several guests.
pub const XENIRQSTAT_SHARED: u32 = 1 << 1;

abi_structs! {
    /// `struct physdev_eoi`.
    pub struct Eoi {
        /// In.
        pub irq: u32,
    }

    /// `struct physdev_pirq_eoi_gmfn`.
    pub struct PirqEoiGmfn {
        /// In: frame of a bit array.
        pub gmfn: u64,
    }

    /// `struct physdev_pirq_eoi_gmfn` of a 32-bit guest.
    pub struct PirqEoiGmfnCompat {
        /// In: frame of a bit array.
        pub gmfn: u32,
    }

    /// `struct physdev_irq_status_query`.
    pub struct IrqStatusQuery {
        /// In.
        pub irq: u32,
        /// Out: `XENIRQSTAT_*`.
        pub flags: u32,
    }

    /// `struct physdev_set_iopl`.
    pub struct SetIopl {
        /// In.
        pub iopl: u32,
    }

    /// `struct physdev_map_pirq`.
    pub struct MapPirq {
        /// In.
        pub domid: Domid,
        /// Zero.
        pub pad0: u16,
        /// In.
        pub r#type: MapPirqType,
        /// In: GSI, or -1.
        pub index: i32,
        /// In: wanted or -1; out.
        pub pirq: i32,
        /// In: bus, segment in the high half.
        pub bus: i32,
        /// In.
        pub devfn: i32,
        /// In: entries.
        pub entry_nr: i32,
        /// Zero.
        pub pad1: u32,
        /// In: MSI-X table.
        pub table_base: u64,
    }

    /// `struct physdev_map_pirq` of a 32-bit guest.
    pub struct MapPirqCompat {
        /// In.
        pub domid: Domid,
        /// Zero.
        pub pad0: u16,
        /// In.
        pub r#type: MapPirqType,
        /// In: GSI, or -1.
        pub index: i32,
        /// In: wanted or -1; out.
        pub pirq: i32,
        /// In: bus, segment in the high half.
        pub bus: i32,
        /// In.
        pub devfn: i32,
        /// In: entries.
        pub entry_nr: i32,
        /// In: MSI-X table.
        pub table_base: U64,
    }

    /// `struct physdev_unmap_pirq`.
    pub struct UnmapPirq {
        /// In.
        pub domid: Domid,
        /// Zero.
        pub pad: u16,
        /// In.
        pub pirq: i32,
    }

    /// `struct physdev_get_free_pirq`.
    pub struct GetFreePirq {
        /// In.
        pub r#type: MapPirqType,
        /// Out.
        pub pirq: u32,
    }
}

twins! {
    PirqEoiGmfn / PirqEoiGmfnCompat { ~ gmfn }
    MapPirq / MapPirqCompat { = domid = r#type = index = pirq = bus = devfn = entry_nr @ table_base }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        Eoi = 4 { irq: 0 }
        PirqEoiGmfn = 8 { gmfn: 0 }
        PirqEoiGmfnCompat = 4 { gmfn: 0 }
        IrqStatusQuery = 8 { irq: 0, flags: 4 }
        SetIopl = 4 { iopl: 0 }
        MapPirq = 40 {
            domid: 0, r#type: 4, index: 8, pirq: 12, bus: 16, devfn: 20, entry_nr: 24, table_base: 32,
        }
        MapPirqCompat = 36 {
            domid: 0, r#type: 4, index: 8, pirq: 12, bus: 16, devfn: 20, entry_nr: 24, table_base: 28,
        }
        UnmapPirq = 8 { domid: 0, pirq: 4 }
        GetFreePirq = 8 { r#type: 0, pirq: 4 }
    }
}
