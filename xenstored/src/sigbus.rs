//! What becomes of a ring page that its owner takes away: see `xenstored::pulled`.
#![expect(unsafe_code, reason = "a signal handler that maps memory")]

use std::ffi::{c_int, c_void};
use std::ptr::with_exposed_provenance_mut;

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// From now on the loss of a ring page does not end the process.
///
/// # Errors
/// What the system says.
pub fn survive() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::SigAction(handle), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing but atomic loads and stores, and calls mmap and signal.
    unsafe { sigaction(Signal::SIGBUS, &action) }.map(drop)
}

extern "C" fn handle(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes what it knows of the signal; for one that it raised itself that has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let page = if code > 0 { xenstored::pulled::pulled(address) } else { None };
    let (rights, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
    let mapped = page.is_some_and(|page| {
        // SAFETY: the page is one that this program has mapped for a ring and not unmapped; its content is volatile for
        // all who access it, and there is none any more.
        let now = unsafe {
            libc::mmap(with_exposed_provenance_mut(page), xenstored::ring::PAGE_SIZE, rights, kind, -1, 0)
        };
        now != libc::MAP_FAILED
    });
    if !mapped {
        // SAFETY: the next one, which comes at once, ends the process as if nobody had handled it.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}
