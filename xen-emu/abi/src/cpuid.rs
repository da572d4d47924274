//! Xen's CPUID leaves (`public/arch-x86/cpuid.h`). Offsets are from the base the guest finds by its signature.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Base without Hyper-V leaves (`XEN_CPUID_FIRST_LEAF`).
pub const FIRST_LEAF: u32 = 0x4000_0000;
/// Base when Hyper-V's leaves are below.
pub const FIRST_LEAF_WITH_VIRIDIAN: u32 = 0x4000_0100;
/// Guests look for a signature in steps of this, up to `LAST_BASE`.
pub const BASE_STEP: u32 = 0x100;
/// No base is above this.
pub const LAST_BASE: u32 = 0x4001_0000;

/// base + 0: EAX highest leaf, EBX ECX EDX the signature.
pub const LEAF_SIGNATURE: u32 = 0;
/// base + 1: EAX major << 16 | minor.
pub const LEAF_VERSION: u32 = 1;
/// base + 2: EAX hypercall pages, EBX their MSR, ECX and EDX features (PV).
pub const LEAF_HYPERCALL: u32 = 2;
/// base + 3: time, see `TSC_*`; subleaves 0 to 2.
pub const LEAF_TIME: u32 = 3;
/// base + 4: EAX `HvmFeatures`, EBX vCPU id, ECX domid.
pub const LEAF_HVM: u32 = 4;
/// base + 5: PV only.
pub const LEAF_PV: u32 = 5;
/// Highest leaf, as an offset (`XEN_CPUID_MAX_NUM_LEAVES`).
pub const MAX_NUM_LEAVES: u32 = 5;

/// EBX of the signature: `XenV`.
pub const SIGNATURE_EBX: u32 = 0x566e_6558;
/// ECX of the signature: `MMXe`.
pub const SIGNATURE_ECX: u32 = 0x6558_4d4d;
/// EDX of the signature: `nVMM`.
pub const SIGNATURE_EDX: u32 = 0x4d4d_566e;

/// MSR of the hypercall page without Hyper-V leaves.
pub const HYPERCALL_MSR: u32 = 0x4000_0000;
/// MSR of the hypercall page beside Hyper-V leaves.
pub const HYPERCALL_MSR_WITH_VIRIDIAN: u32 = 0x4000_0200;

/// base + 3, subleaf 0, EAX: the TSC is emulated.
pub const TSC_EMULATED: u32 = 1 << 0;
/// base + 3, subleaf 0, EAX: the host's TSC is reliable.
pub const TSC_RELIABLE: u32 = 1 << 1;
/// base + 3, subleaf 0, EAX: RDTSCP is there.
pub const TSC_RDTSCP: u32 = 1 << 2;

open_enum! {
    /// base + 3, subleaf 0, EBX: how the TSC is offered.
    pub struct TscMode(u32) {
        /// Emulate if necessary.
        DEFAULT = 0,
        /// Always emulate.
        ALWAYS_EMULATE = 1,
        /// Never emulate.
        NEVER_EMULATE = 2,
        /// Never emulate, TSC_AUX kept by the hypervisor (removed).
        PVRDTSCP = 3,
    }
}

/// base + 4, EAX (`XEN_HVM_CPUID_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct HvmFeatures(u32);

bitflags::bitflags! {
    impl HvmFeatures: u32 {
        /// APIC registers are virtualised.
        const APIC_ACCESS_VIRT = 1 << 0;
        /// x2APIC accesses are virtualised.
        const X2APIC_VIRT = 1 << 1;
        /// Foreign memory has IOMMU entries.
        const IOMMU_MAPPINGS = 1 << 2;
        /// EBX holds the vCPU id.
        const VCPU_ID_PRESENT = 1 << 3;
        /// ECX holds the domid.
        const DOMID_PRESENT = 1 << 4;
        /// Interrupt destinations have 15 bits.
        const EXT_DEST_ID = 1 << 5;
        /// Per-vCPU upcall vectors work with PIRQs bound to event channels.
        const UPCALL_VECTOR = 1 << 6;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_spells_the_name() {
        let bytes: Vec<u8> =
            [SIGNATURE_EBX, SIGNATURE_ECX, SIGNATURE_EDX].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!(bytes, b"XenVMMXenVMM");
    }
}
