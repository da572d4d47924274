//! The local APIC, by MSRs (x2APIC) or, where there is none, by its page.
#![forbid(unsafe_code)]

use crate::{cpu, page::Page};
use core::sync::atomic::{AtomicU8, Ordering};

const APIC_BASE_MSR: u32 = 0x1b;
const XAPIC_PAGE: u64 = 0xfee0_0000;
const ID: u32 = 0x20;
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const ICR: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;

/// INIT, asserted.
pub const INIT: u32 = 0x4500;
/// Start-up; the low byte is the page.
pub const STARTUP: u32 = 0x4600;

// 0: not enabled, 1: xAPIC, 2: x2APIC. All CPUs are alike.
static MODE: AtomicU8 = AtomicU8::new(0);

/// Switches this CPU's APIC on.
pub fn enable() {
    let [.., features, _] = cpu::cpuid(1, 0);
    let base = cpu::rdmsr(APIC_BASE_MSR) | 0x800;
    if features & 1 << 21 == 0 {
        cpu::wrmsr(APIC_BASE_MSR, base);
        MODE.store(1, Ordering::Relaxed);
    } else {
        cpu::wrmsr(APIC_BASE_MSR, base);
        cpu::wrmsr(APIC_BASE_MSR, base | 0x400);
        MODE.store(2, Ordering::Relaxed);
    }
    accept(true);
}

/// Switches this CPU's APIC on in xAPIC mode, which [`enable`] leaves where there is another.
pub fn enable_xapic() {
    cpu::wrmsr(APIC_BASE_MSR, cpu::rdmsr(APIC_BASE_MSR) | 0x800);
    MODE.store(1, Ordering::Relaxed);
    accept(true);
}

/// Has this CPU's APIC, which is enabled, accept interrupts or not, by the spurious-interrupt register.
pub fn accept(on: bool) {
    write(SPURIOUS, if on { 0x1ff } else { 0xff });
}

/// This CPU's APIC id.
#[must_use]
pub fn id() -> u32 {
    match MODE.load(Ordering::Relaxed) {
        2 => u32::try_from(cpu::rdmsr(msr(ID)) & 0xffff_ffff).unwrap_or(0),
        _ => Page::at(XAPIC_PAGE).u32(ID as usize).load(Ordering::Relaxed) >> 24,
    }
}

/// Ends the interrupt in service; nothing before `enable`.
pub fn eoi() {
    write(EOI, 0);
}

/// Sends an interrupt command to one APIC.
pub fn command(apic_id: u32, command: u32) {
    match MODE.load(Ordering::Relaxed) {
        1 => {
            write(ICR_HIGH, apic_id << 24);
            write(ICR, command);
        }
        2 => cpu::wrmsr(msr(ICR), u64::from(apic_id) << 32 | u64::from(command)),
        _ => {}
    }
}

fn msr(register: u32) -> u32 {
    0x800 + (register >> 4)
}

fn write(register: u32, value: u32) {
    match MODE.load(Ordering::Relaxed) {
        1 => Page::at(XAPIC_PAGE).u32(register as usize).store(value, Ordering::Relaxed),
        2 => cpu::wrmsr(msr(register), value.into()),
        _ => {}
    }
}
