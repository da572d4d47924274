//! `HYPERVISOR_xen_version(cmd, arg)` and the feature words (`public/version.h`, `public/features.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

open_enum! {
    /// `XENVER_*`. All return 0 but VERSION, PAGESIZE and the variable-length ones, which return a value.
    pub struct XenVer(u32) {
        /// arg NULL; returns major << 16 | minor.
        VERSION = 0,
        /// arg `[u8; EXTRAVERSION_LEN]`.
        EXTRAVERSION = 1,
        /// arg `CompileInfo`.
        COMPILE_INFO = 2,
        /// arg `[u8; CAPABILITIES_LEN]`.
        CAPABILITIES = 3,
        /// arg `[u8; CHANGESET_LEN]`.
        CHANGESET = 4,
        /// arg `PlatformParameters`.
        PLATFORM_PARAMETERS = 5,
        /// arg `FeatureInfo`.
        GET_FEATURES = 6,
        /// arg NULL; returns the page size.
        PAGESIZE = 7,
        /// arg `[u8; 16]`: the domain's UUID.
        GUEST_HANDLE = 8,
        /// arg `[u8; COMMANDLINE_LEN]`: the hypervisor's command line.
        COMMANDLINE = 9,
        /// arg `VarbufHeader` and bytes, or NULL; returns the length.
        BUILD_ID = 10,
        /// As BUILD_ID, for EXTRAVERSION.
        EXTRAVERSION2 = 11,
        /// As BUILD_ID, for CAPABILITIES.
        CAPABILITIES2 = 12,
        /// As BUILD_ID, for CHANGESET.
        CHANGESET2 = 13,
        /// As BUILD_ID, for COMMANDLINE.
        COMMANDLINE2 = 14,
    }
}

/// Bytes of `xen_extraversion_t`, with its NUL.
pub const EXTRAVERSION_LEN: usize = 16;
/// Bytes of `xen_capabilities_info_t`.
pub const CAPABILITIES_LEN: usize = 1024;
/// Bytes of `xen_changeset_info_t`.
pub const CHANGESET_LEN: usize = 64;
/// Bytes of `xen_commandline_t`.
pub const COMMANDLINE_LEN: usize = 1024;

abi_structs! {
    /// `struct xen_compile_info`: NUL-terminated strings.
    pub struct CompileInfo {
        /// Compiler and its version.
        pub compiler: [u8; 64],
        /// Who built it.
        pub compile_by: [u8; 16],
        /// Where.
        pub compile_domain: [u8; 32],
        /// When.
        pub compile_date: [u8; 32],
    }

    /// `struct xen_platform_parameters`.
    pub struct PlatformParameters {
        /// Where the hypervisor's addresses begin; meaningful to PV guests.
        pub virt_start: u64,
    }

    /// `struct xen_platform_parameters` of a 32-bit guest.
    pub struct PlatformParametersCompat {
        /// Where the hypervisor's addresses begin; meaningful to PV guests.
        pub virt_start: u32,
    }

    /// `struct xen_feature_info`.
    pub struct FeatureInfo {
        /// In: which 32 features; only 0 exists, others are -EINVAL.
        pub submap_idx: u32,
        /// Out: `Features` of that map.
        pub submap: u32,
    }

    /// Head of `struct xen_varbuf` and `xen_build_id`; the bytes follow.
    pub struct VarbufHeader {
        /// In: room for that many bytes.
        pub len: u32,
    }
}

twins! { PlatformParameters / PlatformParametersCompat { ~ virt_start } }

/// `XENFEAT_*` of submap 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Features(u32);

/// Number of 32-bit maps (`XENFEAT_NR_SUBMAPS`).
pub const NR_SUBMAPS: u32 = 1;

bitflags::bitflags! {
    impl Features: u32 {
        /// Page tables need no write protection.
        const WRITABLE_PAGE_TABLES = 1 << 0;
        /// Descriptor tables need no write protection.
        const WRITABLE_DESCRIPTOR_TABLES = 1 << 1;
        /// Guest frames are translated by the hypervisor.
        const AUTO_TRANSLATED_PHYSMAP = 1 << 2;
        /// The kernel runs in ring 0.
        const SUPERVISOR_MODE_KERNEL = 1 << 3;
        /// Page directories may lie above 4 GiB.
        const PAE_PGDIR_ABOVE_4GB = 1 << 4;
        /// PV: `MMU_PT_UPDATE_PRESERVE_AD`.
        const MMU_PT_UPDATE_PRESERVE_AD = 1 << 5;
        /// PV: clear and copy page calls.
        const HIGHMEM_ASSIST = 1 << 6;
        /// Grant maps honour available PTE bits.
        const GNTTAB_MAP_AVAIL_BITS = 1 << 7;
        /// The upcall may be an interrupt vector.
        const HVM_CALLBACK_VECTOR = 1 << 8;
        /// pvclock is safe to use.
        const HVM_SAFE_PVCLOCK = 1 << 9;
        /// PIRQs may be bound to event channels.
        const HVM_PIRQS = 1 << 10;
        /// The domain is dom0.
        const DOM0 = 1 << 11;
        /// `XENMEMF_vnode` is understood.
        const MEMORY_OP_VNODE_SUPPORTED = 1 << 13;
        /// Arm only.
        const ARM_SMCCC_SUPPORTED = 1 << 14;
        /// The RSDP may lie anywhere.
        const LINUX_RSDP_UNRESTRICTED = 1 << 15;
        /// Guest frames are not machine frames.
        const NOT_DIRECT_MAPPED = 1 << 16;
        /// Guest frames are machine frames.
        const DIRECT_MAPPED = 1 << 17;
        /// `VCPUOP_register_runstate_phys_area`.
        const RUNSTATE_PHYS_AREA = 1 << 18;
        /// `VCPUOP_register_vcpu_time_phys_area`.
        const VCPU_TIME_PHYS_AREA = 1 << 19;
        /// Device models see all MSI-X vector control writes.
        const DM_MSIX_ALL_WRITES = 1 << 20;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        CompileInfo = 144 { compiler: 0, compile_by: 64, compile_domain: 80, compile_date: 112 }
        PlatformParameters = 8 { virt_start: 0 }
        PlatformParametersCompat = 4 { virt_start: 0 }
        FeatureInfo = 8 { submap_idx: 0, submap: 4 }
        VarbufHeader = 4 { len: 0 }
    }

    #[test]
    fn feature_bits() {
        assert_eq!(Features::HVM_SAFE_PVCLOCK.bits(), 1 << 9);
        assert_eq!(Features::all().bits().count_ones(), 20);
    }
}
