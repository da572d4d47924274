//! Where assembly enters Rust: the PVH entry point, further CPUs, traps. The stubs are in `start64.s` and `start32.s`.
#![cfg_attr(bare, expect(unsafe_code, reason = "the entry stubs, and the names they share with the rest"))]

use crate::{boot, console, hypercall, smp, traps, verdict};
use core::sync::atomic::Ordering;

#[cfg(all(bare, target_pointer_width = "64"))]
core::arch::global_asm!(
    include_str!("start64.s"),
    entry = sym entry,
    ap_entry = sym ap_entry,
    vcpu_entry = sym vcpu_entry,
    trap = sym trap,
);
#[cfg(all(bare, target_pointer_width = "32"))]
core::arch::global_asm!(
    include_str!("start32.s"),
    entry = sym entry,
    vcpu_entry = sym vcpu_entry,
    trap = sym trap,
);

#[cfg(bare)]
unsafe extern "Rust" {
    /// The test of the microkernel, from `test!`.
    safe fn guest_test() -> crate::Verdict;
    /// What a further vCPU does, from `test!`.
    safe fn guest_cpu(vcpu: u32);
    /// What an interrupt does, from `test!`.
    safe fn guest_interrupt(vector: u8);
}

#[cfg(bare)]
unsafe extern "C" {
    static trap_stubs: u8;
    static vcpu_begin: u8;
    static vcpu_stacks: u8;
}

#[cfg(all(bare, target_pointer_width = "64"))]
unsafe extern "C" {
    static ap_begin: u8;
    static ap_end: u8;
    static pml4: u8;
}

/// Address of the first trap stub; each has 16 bytes.
#[must_use]
pub(crate) fn trap_stubs_addr() -> u64 {
    #[cfg(bare)]
    return &raw const trap_stubs as u64;
    #[cfg(not(bare))]
    0
}

/// Where a vCPU begins, and the end of its stack; up to eight have one.
#[must_use]
pub(crate) fn vcpu_start(vcpu: u32) -> (u64, u64) {
    #[cfg(bare)]
    return (&raw const vcpu_begin as u64, &raw const vcpu_stacks as u64 + u64::from(vcpu + 1) * 16384);
    #[cfg(not(bare))]
    (0, u64::from(vcpu))
}

/// Whose stack an address lies in: that of a vCPU by its number, or the one of the first.
#[must_use]
pub(crate) fn stack_of(address: u64) -> usize {
    let (_, end) = vcpu_start(0);
    let above = address.saturating_sub(end - 16384);
    usize::try_from(above / 16384).unwrap_or(0)
}

/// The page tables; 32-bit microkernels have none.
#[must_use]
#[cfg_attr(target_pointer_width = "32", expect(dead_code, reason = "nobody asks there"))]
pub(crate) fn page_tables() -> u64 {
    #[cfg(all(bare, target_pointer_width = "64"))]
    return &raw const pml4 as u64;
    #[cfg(not(all(bare, target_pointer_width = "64")))]
    0
}

/// The bytes another CPU starts with after INIT; 32-bit microkernels have none.
#[must_use]
pub(crate) fn ap_trampoline() -> &'static [u8] {
    #[cfg(all(bare, target_pointer_width = "64"))]
    // SAFETY: both symbols bound the trampoline, which nobody changes.
    return unsafe {
        let begin = &raw const ap_begin;
        core::slice::from_raw_parts(begin, (&raw const ap_end).offset_from_unsigned(begin))
    };
    #[cfg(not(all(bare, target_pointer_width = "64")))]
    &[]
}

#[cfg_attr(not(bare), expect(dead_code, reason = "reached from the entry stub only"))]
extern "C" fn entry(start_info: u64) -> ! {
    boot::START_INFO.store(start_info, Ordering::Relaxed);
    traps::init();
    hypercall::init();
    console::init();
    #[cfg(bare)]
    verdict::end(guest_test());
    #[cfg(not(bare))]
    verdict::end(Ok(()))
}

#[cfg_attr(
    not(all(bare, target_pointer_width = "64")),
    expect(dead_code, reason = "reached from the entry stub of 64 bits only")
)]
extern "C" fn ap_entry(_: u64) -> ! {
    if smp::runs_test() {
        vcpu_entry(1)
    }
    traps::load();
    smp::run()
}

extern "C" fn vcpu_entry(vcpu: u64) -> ! {
    traps::load();
    crate::apic::enable();
    #[cfg(bare)]
    guest_cpu(u32::try_from(vcpu).unwrap_or(0));
    let _ = vcpu;
    crate::cpu::stop()
}

#[cfg_attr(not(bare), expect(dead_code, reason = "reached from the trap stubs only"))]
extern "C" fn trap(vector: u64, error: u64, rip: u64) {
    traps::handle(vector, error, rip);
    #[cfg(bare)]
    guest_interrupt(u8::try_from(vector).unwrap_or(0));
}
