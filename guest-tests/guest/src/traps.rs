//! Exceptions fail the test; interrupts are counted and acknowledged.
#![forbid(unsafe_code)]

use crate::{apic, cpu, fail, page::Page, start, verdict};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes of a gate of the table, and the selector of code.
const GATE: usize = 2 * size_of::<usize>();
const CODE: u64 = if GATE == 16 { 0x18 } else { 8 };

static IDT: Page = Page::zero();
/// A vector that wants no EOI; 0 = none.
static NO_EOI: AtomicU64 = AtomicU64::new(0);
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// Fills the table and loads it.
pub(crate) fn init() {
    for vector in 0..256 {
        let stub = start::trap_stubs_addr() + 16 * vector as u64;
        // Interrupt gate, present.
        let gate = stub & 0xffff | CODE << 16 | 0x8e00 << 32 | (stub & 0xffff_0000) << 32;
        IDT.u64(GATE * vector).store(gate, Ordering::Relaxed);
        if GATE == 16 {
            IDT.u64(GATE * vector + 8).store(stub >> 32, Ordering::Relaxed);
        }
    }
    load();
    // A PC with a BIOS hands over with its timer interrupt on, at a vector of exceptions; PVH has no such chip.
    cpu::outb(0x21, 0xff);
    cpu::outb(0xa1, 0xff);
}

/// Loads the table on this CPU.
pub(crate) fn load() {
    cpu::lidt(IDT.addr(), if GATE == 16 { 0xfff } else { 0x7ff });
}

/// How often an interrupt came.
#[must_use]
pub fn count(vector: u8) -> u32 {
    COUNTS.get(usize::from(vector)).map_or(0, |c| c.load(Ordering::SeqCst))
}

pub(crate) fn handle(vector: u64, error: u64, rip: u64) {
    let index = usize::try_from(vector).unwrap_or(0);
    if vector < 32 {
        verdict::end(exception(vector, error, rip));
    }
    if let Some(count) = COUNTS.get(index) {
        count.fetch_add(1, Ordering::SeqCst);
    }
    if NO_EOI.load(Ordering::Relaxed) != vector {
        apic::eoi();
    }
}

/// Interrupts with this vector come without the local APIC, and are not ended there.
pub fn set_no_eoi(vector: u8) {
    NO_EOI.store(vector.into(), Ordering::Relaxed);
}

/// What an interrupt does in tests that only count them.
pub fn nothing(_vector: u8) {}

fn exception(vector: u64, error: u64, rip: u64) -> verdict::Verdict {
    fail!("exception {vector}, error {error:#x}, at {rip:#x}, cr2 {:#x}", cpu::cr2())
}
