//! Interrupts that end by themselves, for the global callback vector, whose handler writes no EOI: a source of Hyper-V's SynIC
//! has the vector with AutoEOI, and the local APIC forgets it on delivery. Nothing is ever raised by that source itself.

use super::regs::set_msr;
use kvm_bindings::{KVM_CAP_HYPERV_SYNIC2, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use std::io;

/// HV_X64_MSR_SINT2 (Hyper-V TLFS 11).
const SINT: u32 = 0x4000_0092;
const SINT_MASKED: u64 = 1 << 16;
const SINT_AUTO_EOI: u64 = 1 << 17;

/// Whether the host has it (CONFIG_KVM_HYPERV).
pub fn offered(kvm: &Kvm) -> bool {
    kvm.check_extension_int(Cap::HypervSynic2) > 0
}

/// Whether guests end their interrupts without an exit anyway (Intel's APICv, AMD's AVIC), by what KVM's modules say. A source
/// with AutoEOI would switch that off.
pub fn needless() -> bool {
    ["kvm_intel/parameters/enable_apicv", "kvm_amd/parameters/avic"].iter().any(|parameter| {
        std::fs::read_to_string(format!("/sys/module/{parameter}"))
            .is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    })
}

/// Interrupts with this vector need no EOI on this vCPU from now on; 0 = none does.
///
/// # Errors
/// KVM refuses.
pub fn set(fd: &VcpuFd, vector: u8) -> io::Result<()> {
    fd.enable_cap(&kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() })?;
    let data = if vector == 0 { SINT_MASKED } else { SINT_AUTO_EOI | u64::from(vector) };
    set_msr(fd, SINT, data)
}
