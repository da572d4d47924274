//! The shared info page, `vcpu_info` and `vcpu_time_info` (`public/xen.h`, `public/arch-x86/xen*.h`).
//!
//! Both widths differ in word size and offsets. Code that reads and writes single words of guest memory takes its
//! offsets from `Layout::of(width)`; the structs say the same as types.

use crate::xen::Width;

abi_structs! {
    /// `struct vcpu_time_info`, both widths.
    ///
    /// now = `system_time` + ((tsc - `tsc_timestamp`) << `tsc_shift`) * `tsc_to_system_mul` >> 32.
    pub struct VcpuTimeInfo {
        /// Odd while being written.
        pub version: u32,
        /// Zero.
        pub pad0: u32,
        /// TSC at the last update.
        pub tsc_timestamp: u64,
        /// System time at the last update, ns.
        pub system_time: u64,
        /// Fraction of ns per (shifted) tick, 32 bits.
        pub tsc_to_system_mul: u32,
        /// Shift of the ticks, left if positive.
        pub tsc_shift: i8,
        /// `XEN_PVCLOCK_*`.
        pub flags: u8,
        /// Zero.
        pub pad1: [u8; 2],
    }

    /// `struct vcpu_info`.
    pub struct VcpuInfo {
        /// Set by Xen: look at the selector. Cleared by the guest before it looks.
        pub evtchn_upcall_pending: u8,
        /// PV: upcalls are masked.
        pub evtchn_upcall_mask: u8,
        /// Zero.
        pub pad: [u8; 6],
        /// Bit n: word n of the pending bitmap has news for this vCPU.
        pub evtchn_pending_sel: u64,
        /// `arch.cr2`: PV.
        pub cr2: u64,
        /// Zero.
        pub arch_pad: u64,
        /// This vCPU's clock.
        pub time: VcpuTimeInfo,
    }

    /// `struct vcpu_info` of a 32-bit guest.
    pub struct VcpuInfoCompat {
        /// Set by Xen: look at the selector. Cleared by the guest before it looks.
        pub evtchn_upcall_pending: u8,
        /// PV: upcalls are masked.
        pub evtchn_upcall_mask: u8,
        /// Zero.
        pub pad: [u8; 2],
        /// Bit n: word n of the pending bitmap has news for this vCPU.
        pub evtchn_pending_sel: u32,
        /// `arch.cr2`: PV.
        pub cr2: u32,
        /// Zero.
        pub arch_pad: [u32; 5],
        /// This vCPU's clock.
        pub time: VcpuTimeInfo,
    }

    /// `struct arch_shared_info`: the physical-to-machine list of PV guests; zero elsewhere.
    pub struct ArchSharedInfo {
        /// Entries in the list.
        pub max_pfn: u64,
        /// Root of the list's tree.
        pub pfn_to_mfn_frame_list_list: u64,
        /// Why an NMI came.
        pub nmi_reason: u64,
        /// Address space of `p2m_vaddr`.
        pub p2m_cr3: u64,
        /// Virtual address of the list.
        pub p2m_vaddr: u64,
        /// Changes to the list.
        pub p2m_generation: u64,
    }

    /// `struct arch_shared_info` of a 32-bit guest.
    pub struct ArchSharedInfoCompat {
        /// Entries in the list.
        pub max_pfn: u32,
        /// Root of the list's tree.
        pub pfn_to_mfn_frame_list_list: u32,
        /// Why an NMI came.
        pub nmi_reason: u32,
        /// Address space of `p2m_vaddr`.
        pub p2m_cr3: u32,
        /// Virtual address of the list.
        pub p2m_vaddr: u32,
        /// Changes to the list.
        pub p2m_generation: u32,
        /// High half of the wall clock's seconds.
        pub wc_sec_hi: u32,
    }

    /// `struct shared_info`.
    pub struct SharedInfo {
        /// Of the first 32 vCPUs, until registered elsewhere.
        pub vcpu_info: [VcpuInfo; 32],
        /// Pending bits of the 2-level layout.
        pub evtchn_pending: [u64; 64],
        /// Mask bits.
        pub evtchn_mask: [u64; 64],
        /// Odd while the wall clock is being written.
        pub wc_version: u32,
        /// Unix time at system time 0, seconds (low half).
        pub wc_sec: u32,
        /// and ns.
        pub wc_nsec: u32,
        /// High half of the seconds.
        pub wc_sec_hi: u32,
        /// Rest.
        pub arch: ArchSharedInfo,
    }

    /// `struct shared_info` of a 32-bit guest.
    pub struct SharedInfoCompat {
        /// Of the first 32 vCPUs, until registered elsewhere.
        pub vcpu_info: [VcpuInfoCompat; 32],
        /// Pending bits of the 2-level layout.
        pub evtchn_pending: [u32; 32],
        /// Mask bits.
        pub evtchn_mask: [u32; 32],
        /// Odd while the wall clock is being written.
        pub wc_version: u32,
        /// Unix time at system time 0, seconds (low half).
        pub wc_sec: u32,
        /// and ns.
        pub wc_nsec: u32,
        /// Rest, with `wc_sec_hi`.
        pub arch: ArchSharedInfoCompat,
    }
}

/// `VcpuTimeInfo::flags`: time is monotonic across vCPUs.
pub const XEN_PVCLOCK_TSC_STABLE_BIT: u8 = 1 << 0;
/// `VcpuTimeInfo::flags`: the guest was stopped by its host.
pub const XEN_PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;
/// vCPUs with a slot in the shared info page (`XEN_LEGACY_MAX_VCPUS`).
pub const LEGACY_MAX_VCPUS: u32 = 32;
/// Bytes of `vcpu_info`, both widths.
pub const VCPU_INFO_SIZE: usize = 64;
/// Offset of `evtchn_upcall_pending` (one byte) in `vcpu_info`, both widths.
pub const VCPU_UPCALL_PENDING: usize = 0;
/// Offset of `evtchn_upcall_mask` (one byte) in `vcpu_info`, both widths.
pub const VCPU_UPCALL_MASK: usize = 1;
/// Offset of `time` in `vcpu_info`, both widths.
pub const VCPU_TIME: usize = 32;

/// Byte offsets in the shared info page and in `vcpu_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Width of the bitmaps' words and of the selector.
    pub width: Width,
    /// `evtchn_pending`.
    pub pending: usize,
    /// `evtchn_mask`.
    pub mask: usize,
    /// `wc_version`, `wc_sec`, `wc_nsec` follow each other from here.
    pub wc_version: usize,
    /// `wc_sec_hi`.
    pub wc_sec_hi: usize,
    /// Offset of `evtchn_pending_sel` in `vcpu_info`.
    pub vcpu_pending_sel: usize,
}

impl Layout {
    /// The layout a guest of this width sees.
    #[must_use]
    pub const fn of(width: Width) -> Self {
        match width {
            Width::W64 => Self {
                width,
                pending: 0x800,
                mask: 0xa00,
                wc_version: 0xc00,
                wc_sec_hi: 0xc0c,
                vcpu_pending_sel: 8,
            },
            Width::W32 => Self {
                width,
                pending: 0x800,
                mask: 0x880,
                wc_version: 0x900,
                wc_sec_hi: 0x924,
                vcpu_pending_sel: 4,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    layout! {
        VcpuTimeInfo = 32 {
            version: 0, tsc_timestamp: 8, system_time: 16, tsc_to_system_mul: 24, tsc_shift: 28, flags: 29,
        }
        VcpuInfo = 64 { evtchn_upcall_pending: 0, evtchn_upcall_mask: 1, evtchn_pending_sel: 8, cr2: 16, time: 32 }
        VcpuInfoCompat = 64 {
            evtchn_upcall_pending: 0, evtchn_upcall_mask: 1, evtchn_pending_sel: 4, cr2: 8, time: 32,
        }
        ArchSharedInfo = 48 { max_pfn: 0, nmi_reason: 16, p2m_generation: 40 }
        ArchSharedInfoCompat = 28 { max_pfn: 0, nmi_reason: 8, p2m_generation: 20, wc_sec_hi: 24 }
        SharedInfo = 3136 {
            vcpu_info: 0, evtchn_pending: 2048, evtchn_mask: 2560, wc_version: 3072, wc_sec: 3076, wc_nsec: 3080,
            wc_sec_hi: 3084, arch: 3088,
        }
        SharedInfoCompat = 2344 {
            vcpu_info: 0, evtchn_pending: 2048, evtchn_mask: 2176, wc_version: 2304, wc_sec: 2308, wc_nsec: 2312,
            arch: 2316,
        }
    }

    #[test]
    fn offsets_follow_the_structs() {
        let l = Layout::of(Width::W64);
        assert_eq!(l.pending, offset_of!(SharedInfo, evtchn_pending));
        assert_eq!(l.mask, offset_of!(SharedInfo, evtchn_mask));
        assert_eq!(l.wc_version, offset_of!(SharedInfo, wc_version));
        assert_eq!(l.wc_sec_hi, offset_of!(SharedInfo, wc_sec_hi));
        assert_eq!(l.vcpu_pending_sel, offset_of!(VcpuInfo, evtchn_pending_sel));
        let l = Layout::of(Width::W32);
        assert_eq!(l.pending, offset_of!(SharedInfoCompat, evtchn_pending));
        assert_eq!(l.mask, offset_of!(SharedInfoCompat, evtchn_mask));
        assert_eq!(l.wc_version, offset_of!(SharedInfoCompat, wc_version));
        assert_eq!(l.wc_sec_hi, offset_of!(SharedInfoCompat, arch.wc_sec_hi));
        assert_eq!(l.vcpu_pending_sel, offset_of!(VcpuInfoCompat, evtchn_pending_sel));
    }
}
