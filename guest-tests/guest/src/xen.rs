//! Finding Xen by CPUID.
#![forbid(unsafe_code)]

use crate::cpu;
use core::sync::atomic::{AtomicU32, Ordering};
use xen_abi::cpuid::{
    BASE_STEP, FIRST_LEAF, LAST_BASE, LEAF_HVM, LEAF_HYPERCALL, SIGNATURE_EBX, SIGNATURE_ECX, SIGNATURE_EDX,
};

static BASE: AtomicU32 = AtomicU32::new(0);

/// First of Xen's CPUID leaves, or nothing if this is no Xen.
#[must_use]
pub fn base() -> Option<u32> {
    match BASE.load(Ordering::Relaxed) {
        0 => {
            let base = find()?;
            BASE.store(base, Ordering::Relaxed);
            Some(base)
        }
        base => Some(base),
    }
}

fn find() -> Option<u32> {
    let step = usize::try_from(BASE_STEP).unwrap_or(0x100);
    (FIRST_LEAF..LAST_BASE).step_by(step).find(|&base| {
        let [max, b, c, d] = cpu::cpuid(base, 0);
        [b, c, d] == [SIGNATURE_EBX, SIGNATURE_ECX, SIGNATURE_EDX] && max >= base + 2
    })
}

/// A leaf of Xen's, by its offset; zeroes if this is no Xen.
#[must_use]
pub fn leaf(offset: u32, subleaf: u32) -> [u32; 4] {
    base().map_or([0; 4], |base| cpu::cpuid(base + offset, subleaf))
}

/// The MSR that places the hypercall page.
#[must_use]
pub fn hypercall_msr() -> u32 {
    let [_, msr, ..] = leaf(LEAF_HYPERCALL, 0);
    msr
}

/// This vCPU's Xen id, 0 if the leaf does not say.
#[must_use]
pub fn vcpu_id() -> u32 {
    let [features, id, ..] = leaf(LEAF_HVM, 0);
    if features & xen_abi::cpuid::HvmFeatures::VCPU_ID_PRESENT.bits() == 0 { 0 } else { id }
}
