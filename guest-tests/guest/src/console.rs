//! Printing, a line at a time, wherever it can be read.
//!
//! - The PV console ring, if the HVM params give one: what `xlr console` shows.
//! - The hypervisor's console by `CONSOLEIO_write`, or by port 0xE9 where that call is not answered.
#![forbid(unsafe_code)]

use crate::{cpu, hypercall, page::Page, text::Text};
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use xen_abi::event_channel::{EvtchnOp, Send};
use xen_abi::hvm::params::HvmParam;
use xen_abi::hypercall::Hypercall;
use xen_abi::io::console::{OUT_CONS, OUT_PROD, OUT_RING, OUT_SIZE};
use xen_abi::io::ring;
use xen_abi::sched::SchedOp;
use xen_abi::xen::{DEBUGCONS_IOPORT, PAGE_SHIFT, Port};

/// A back-end that takes nothing for so many yields is not there.
const PATIENCE: u32 = 100_000;

static RING_GFN: AtomicU64 = AtomicU64::new(0);
static PORT: AtomicU32 = AtomicU32::new(0);

/// Prints one line.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::console::print(format_args!($($arg)*)) };
}

/// Looks for the ring.
pub(crate) fn init() {
    let gfn = hypercall::hvm_get_param(HvmParam::CONSOLE_PFN).unwrap_or(0);
    let port = hypercall::hvm_get_param(HvmParam::CONSOLE_EVTCHN).unwrap_or(0);
    if let (1..=0xf_ffff, Ok(port @ 1..)) = (gfn, u32::try_from(port)) {
        PORT.store(port, Ordering::Relaxed);
        RING_GFN.store(gfn, Ordering::Relaxed);
    }
}

/// The ring's page, if there is one.
#[must_use]
pub fn ring() -> Option<&'static Page> {
    match RING_GFN.load(Ordering::Relaxed) {
        0 => None,
        gfn => Some(Page::at(gfn << PAGE_SHIFT)),
    }
}

/// Prints one line everywhere.
pub fn print(args: fmt::Arguments<'_>) {
    let line: Text<254> = Text::of(args);
    let mut bytes = [0; 256];
    let mut len = 0;
    for (to, from) in bytes.iter_mut().zip(line.as_str().bytes().chain(*b"\n")) {
        *to = from;
        len += 1;
    }
    let bytes = bytes.get(..len).unwrap_or_default();
    if hypercall::console_write(bytes).is_err() {
        debug_port(bytes);
    }
    if let Some(page) = ring() {
        put(page, line.as_str().as_bytes());
        put(page, b"\r\n");
        notify();
    }
}

/// Writes bytes to port 0xE9.
pub fn debug_port(bytes: &[u8]) {
    bytes.iter().for_each(|b| cpu::outb(DEBUGCONS_IOPORT, *b));
}

fn put(page: &Page, bytes: &[u8]) {
    for byte in bytes {
        if !wait(page, |free| free > 0) {
            return;
        }
        let prod = page.u32(OUT_PROD).load(Ordering::Relaxed);
        page.u8(OUT_RING + ring::slot(prod, OUT_SIZE) as usize).store(*byte, Ordering::Relaxed);
        page.u32(OUT_PROD).store(prod.wrapping_add(1), Ordering::Release);
    }
}

/// Waits until the ring's free room is as wanted; gives up if the back-end does not move, or its index is nonsense.
fn wait(page: &Page, wanted: impl Fn(u32) -> bool) -> bool {
    for attempt in 0..PATIENCE {
        let prod = page.u32(OUT_PROD).load(Ordering::Relaxed);
        match ring::free::<OUT_SIZE>(prod, page.u32(OUT_CONS).load(Ordering::Acquire)) {
            Ok(free) if wanted(free) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
        // Without its port, after EVTCHNOP_reset, the back-end looks when the domain ends.
        if attempt.is_multiple_of(1024) && !notify() {
            return false;
        }
        let _ = hypercall::op_null(Hypercall::SCHED_OP, SchedOp::YIELD.0);
    }
    false
}

/// Whether there is somebody to be notified.
fn notify() -> bool {
    let port = Port(PORT.load(Ordering::Relaxed));
    hypercall::op(Hypercall::EVENT_CHANNEL_OP, EvtchnOp::SEND.0, &mut Send { port }).is_ok()
}

/// Waits until the back-end has taken everything.
pub fn flush() {
    if let Some(page) = ring() {
        wait(page, |free| free == OUT_SIZE);
    }
}
