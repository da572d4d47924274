//! CPUID of a guest: what KVM supports, with topology built from scratch and Xen's own leaves.
//!
//! KVM_GET_SUPPORTED_CPUID gives leaf 0xB only as an empty subleaf 0; patching what is there leaves Linux with
//! one package per vCPU and an unstable TSC.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use xen_domain::effect::Processor;
use xen_emu_api::config::TscMode;

/// Xen's base leaf.
const XEN: u32 = 0x4000_0000;
/// The MSR of the hypercall page, as leaf base+2 tells it.
pub const HYPERCALL_MSR: u32 = 0x4000_0000;

/// What the leaves depend on besides the host.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// vCPUs that exist.
    pub max_vcpus: u32,
    /// Told in leaf base+4.
    pub domid: u16,
    /// major << 16 | minor.
    pub xen_version: u32,
    /// The host delivers per-vCPU upcall vectors reliably.
    pub vcpu_upcall: bool,
    /// The host keeps time by its TSC, so that it runs at one rate and never stops.
    pub invariant_tsc: bool,
    /// `tsc_mode` of the configuration.
    pub tsc_mode: TscMode,
    /// TSC frequency of the guest.
    pub tsc_khz: u32,
}

/// The APIC id of a vCPU, as on Xen; KVM's vCPU id is the same.
pub const fn apic_id(vcpu: u32) -> u32 {
    2 * vcpu
}

/// The leaves of one vCPU, from what the host supports.
pub fn for_vcpu(supported: &CpuId, facts: &Facts, vcpu: u32) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let host = supported.as_slice();
    let amd = host.iter().any(|e| e.function == 0 && e.ecx == u32::from_le_bytes(*b"cAMD"));
    let mut leaves: Vec<kvm_cpuid_entry2> =
        host.iter().filter(|e| !is_replaced(e.function)).map(|e| patched(*e, facts, vcpu, amd)).collect();
    leaves.extend(topology(0xb, facts, vcpu));
    if host.iter().any(|e| e.function == 0 && e.eax >= 0x1f) {
        leaves.extend(topology(0x1f, facts, vcpu));
    }
    leaves.extend(xen(facts, vcpu));
    CpuId::from_entries(&leaves)
}

fn is_replaced(function: u32) -> bool {
    matches!(function, 0xb | 0x1f | 0x8000_0026) || (0x4000_0000..0x5000_0000).contains(&function)
}

/// Bits of the APIC id below the package.
fn package_shift(facts: &Facts) -> u32 {
    1 + facts.max_vcpus.next_power_of_two().trailing_zeros()
}

fn patched(mut e: kvm_cpuid_entry2, facts: &Facts, vcpu: u32, amd: bool) -> kvm_cpuid_entry2 {
    let cores = facts.max_vcpus;
    let ids = 1 << package_shift(facts);
    match e.function {
        1 => {
            e.ebx = (e.ebx & 0xffff) | (ids.min(255) << 16) | (apic_id(vcpu) << 24);
            e.ecx |= HYPERVISOR | X2APIC | TSC_DEADLINE;
            e.edx = if cores > 1 { e.edx | HTT } else { e.edx & !HTT };
        }
        // Deterministic cache parameters: all cores in one package, caches below level 3 not shared.
        4 if e.eax & 0x1f != 0 => {
            let sharing = if (e.eax >> 5) & 7 >= 3 { ids - 1 } else { 1 };
            e.eax = (e.eax & 0x3fff) | (sharing << 14) | ((cores - 1).min(63) << 26);
        }
        0x8000_0001 if amd => {
            e.ecx = if cores > 1 { e.ecx | CMP_LEGACY } else { e.ecx & !CMP_LEGACY };
        }
        // A second vCPU measures its delay loop for a quarter of a second unless it knows that of the first.
        0x8000_0007 if facts.invariant_tsc => e.edx |= INVARIANT_TSC,
        0x8000_0008 if amd => {
            e.ecx = (e.ecx & !0xf0ff) | (cores - 1).min(255) | (package_shift(facts) << 12);
        }
        0x8000_001d if amd && e.eax & 0x1f != 0 => {
            let sharing = if (e.eax >> 5) & 7 >= 3 { ids - 1 } else { 1 };
            e.eax = (e.eax & 0x3fff) | (sharing << 14);
        }
        0x8000_001e if amd => {
            (e.eax, e.ebx, e.ecx, e.edx) = (apic_id(vcpu), vcpu, 0, 0);
        }
        _ => {}
    }
    e
}

/// A feature: leaf, register from EAX on, bit; and what it lets a guest set.
type Feature = (u32, usize, u32, u64);

/// What CR4 takes with each. PCE comes with none of them.
const CR4: &[Feature] = &[
    (1, 3, 1, 1 << 0 | 1 << 1),
    (1, 3, 4, 1 << 2),
    (1, 3, 2, 1 << 3),
    (1, 3, 3, 1 << 4),
    (1, 3, 6, 1 << 5),
    (1, 3, 7, 1 << 6),
    (1, 3, 14, 1 << 6),
    (1, 3, 13, 1 << 7),
    (1, 3, 24, 1 << 9),
    (1, 3, 25, 1 << 10),
    (7, 2, 2, 1 << 11),
    (7, 2, 16, 1 << 12),
    (7, 1, 0, 1 << 16),
    (1, 2, 17, 1 << 17),
    (1, 2, 26, 1 << 18),
    (7, 1, 7, 1 << 20),
    (7, 1, 20, 1 << 21),
    (7, 2, 3, 1 << 22),
];
const CR4_PCE: u64 = 1 << 8;
/// What EFER takes: SCE, LME and LMA, NXE, FFXSR.
const EFER: &[Feature] = &[
    (0x8000_0001, 3, 11, 1),
    (0x8000_0001, 3, 29, 1 << 8 | 1 << 10),
    (0x8000_0001, 3, 20, 1 << 11),
    (0x8000_0001, 3, 25, 1 << 14),
];

/// What guests may have in their registers, by the leaves that they see. Virtualisation is not for them.
pub fn processor(leaves: &CpuId) -> Processor {
    let leaf = |function| leaves.as_slice().iter().find(|e| (e.function, e.index) == (function, 0));
    let bits = |features: &[Feature]| {
        let has = |&&(function, register, bit, _): &&Feature| {
            let registers = leaf(function).map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx]);
            registers.get(register).is_some_and(|value| value >> bit & 1 != 0)
        };
        features.iter().filter(has).fold(0, |all, (.., bits)| all | bits)
    };
    // As few as a processor with long mode has where it does not tell.
    let physical = leaf(0x8000_0008).map_or(36, |e| (e.eax & 0xff).clamp(36, 52));
    Processor { cr3: (1 << physical) - 1, cr4: bits(CR4) | CR4_PCE, efer: bits(EFER) }
}

const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;
const CMP_LEGACY: u32 = 1 << 1;
const INVARIANT_TSC: u32 = 1 << 8;

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

/// Leaf 0xB or 0x1F: one thread per core, all cores in one package.
fn topology(function: u32, facts: &Facts, vcpu: u32) -> [kvm_cpuid_entry2; 3] {
    let id = apic_id(vcpu);
    const SMT: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    [
        leaf(function, 0, [1, 1, SMT, id]),
        leaf(function, 1, [package_shift(facts), facts.max_vcpus, CORE | 1, id]),
        leaf(function, 2, [0, 0, 2, id]),
    ]
}

/// Nanoseconds of a tick as (fraction of 2^32, shift): ns = (ticks << shift) * fraction >> 32.
fn scale(khz: u32) -> (u32, i32) {
    let Some(fraction) = (1_000_000_u128 << 64).checked_div(khz.into()) else { return (0, 0) };
    // `fraction` has 64 bits behind the point; the highest bit is to be the highest of 32.
    let shift = i32::try_from(fraction.ilog2()).unwrap_or(0) - 63;
    (u32::try_from(fraction >> (32 + shift)).unwrap_or(u32::MAX), shift)
}

/// Leaves base+0 to base+5 (public/arch-x86/cpuid.h).
fn xen(facts: &Facts, vcpu: u32) -> Vec<kvm_cpuid_entry2> {
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    let plain = |n: u32, regs| kvm_cpuid_entry2 { flags: 0, ..leaf(XEN + n, 0, regs) };
    const APIC_ACCESS_VIRT: u32 = 1 << 0;
    const X2APIC_VIRT: u32 = 1 << 1;
    const VCPU_ID: u32 = 1 << 3;
    const DOMID: u32 = 1 << 4;
    const UPCALL_VECTOR: u32 = 1 << 6;
    const RDTSCP: u32 = 1 << 2;
    const TSC_RELIABLE: u32 = 1 << 1;
    let reliable = if facts.invariant_tsc { TSC_RELIABLE } else { 0 };
    let upcall = if facts.vcpu_upcall { UPCALL_VECTOR } else { 0 };
    let features = APIC_ACCESS_VIRT | X2APIC_VIRT | VCPU_ID | DOMID | upcall;
    vec![
        plain(0, [XEN + 5, word(b"XenV"), word(b"MMXe"), word(b"nVMM")]),
        plain(1, [facts.xen_version, 0, 0, 0]),
        plain(2, [1, HYPERCALL_MSR, 0, 0]),
        // Subleaf 0: the TSC is not emulated, may be reliable; tsc_mode, kHz, incarnation. KVM_XEN keeps subleaves 1 and 2
        // up to date.
        leaf(XEN + 3, 0, [RDTSCP | reliable, facts.tsc_mode as u32, facts.tsc_khz, 1]),
        leaf(XEN + 3, 1, [0, 0, scale(facts.tsc_khz).0, scale(facts.tsc_khz).1.cast_unsigned()]),
        leaf(XEN + 3, 2, [facts.tsc_khz, 0, 0, 0]),
        plain(4, [features, vcpu, u32::from(facts.domid), 0]),
        plain(5, [0; 4]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_nanoseconds() {
        for khz in [1_000_000, 2_500_000, 3_999_999, 700_001, 1] {
            let (fraction, shift) = scale(khz);
            assert!(fraction >> 31 == 1, "{khz}: all 32 bits are used");
            let ticks = u128::from(khz) * 1000;
            let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let ns = (shifted * u128::from(fraction)) >> 32;
            assert!(ns.abs_diff(1_000_000_000) < 1_000_000, "{khz}: {ns} ns in a second");
        }
        assert_eq!(scale(0), (0, 0));
    }

    #[test]
    fn registers_have_what_the_leaves_tell() {
        let entry = |function, [eax, ebx, ecx, edx]: [u32; 4]| leaf(function, 0, [eax, ebx, ecx, edx]);
        let none = processor(&CpuId::from_entries(&[]).unwrap());
        assert_eq!(none, Processor { cr3: (1 << 36) - 1, cr4: 1 << 8, efer: 0 });
        // TSC, PAE and VMX; PCID; SMEP; SYSCALL, NX, LM and SVM; 48 bits.
        let leaves = [
            entry(1, [0, 0, 1 << 5 | 1 << 17, 1 << 4 | 1 << 6]),
            entry(7, [0, 1 << 7, 0, 0]),
            entry(0x8000_0001, [0, 0, 1 << 2, 1 << 11 | 1 << 20 | 1 << 29]),
            entry(0x8000_0008, [0x3030, 0, 0, 0]),
        ];
        let some = processor(&CpuId::from_entries(&leaves).unwrap());
        assert_eq!(some, Processor { cr3: (1 << 48) - 1, cr4: 0x12_0124, efer: 0xd01 });
    }

    #[test]
    fn four_vcpus_are_four_cores_of_one_package_under_xen() {
        let entry = |function, eax, ecx| kvm_cpuid_entry2 { function, eax, ecx, ..Default::default() };
        let host = CpuId::from_entries(&[
            entry(0, 0x1f, u32::from_le_bytes(*b"cAMD")),
            entry(1, 0x800f12, 0),
            entry(0xb, 0, 0),
            entry(0x4000_0000, 0x4000_0001, u32::from_le_bytes(*b"VMKV")),
            entry(0x8000_0007, 0, 0),
            entry(0x8000_0008, 0x3030, 0),
            entry(0x8000_001e, 7, 7),
        ])
        .unwrap();
        let facts = Facts {
            max_vcpus: 4,
            domid: 9,
            xen_version: 0x4_0014,
            vcpu_upcall: true,
            invariant_tsc: true,
            tsc_mode: TscMode::Native,
            tsc_khz: 2_500_000,
        };
        let cpuid = for_vcpu(&host, &facts, 3).unwrap();
        let get = |function, index| {
            let found: Vec<_> =
                cpuid.as_slice().iter().filter(|e| (e.function, e.index) == (function, index)).collect();
            assert_eq!(found.len(), 1, "leaf {function:#x}.{index}");
            (found[0].eax, found[0].ebx, found[0].ecx, found[0].edx)
        };
        assert_eq!(get(1, 0).1 >> 24, 6, "initial APIC id");
        assert_eq!(get(0xb, 0), (1, 1, 0x100, 6));
        assert_eq!(get(0xb, 1), (3, 4, 0x201, 6));
        assert_eq!(get(0x8000_0007, 0).3, 0x100);
        assert_eq!(get(0x8000_0008, 0).2, 0x3003);
        assert_eq!(get(0x8000_001e, 0), (6, 3, 0, 0));
        assert_eq!(get(0x4000_0000, 0).1, u32::from_le_bytes(*b"XenV"));
        assert_eq!(get(0x4000_0003, 0), (6, 2, 2_500_000, 1));
        assert_eq!(get(0x4000_0004, 0), (0x5b, 3, 9, 0));
    }
}
