//! A Linux that a boot loader in the guest has loaded: its hypercall instructions are written over before it makes its
//! first call, by the same rule as those of a kernel that we load ([`crate::boot::rewrite`]).
//!
//! Such a kernel unpacks itself to where it likes, and nothing tells us that it has. But before it does anything else it
//! turns on SYSCALL in EFER, in its first code, which stands at the begin of its text; so writes to EFER are exits until it has
//! been found.

use super::HYPERCALL_PORT;
use crate::boot::rewrite::{self, Refusal, Stubs};
use crate::guest::Guest;
use crate::kvm::regs::set_msr;
use crate::log::limited;
use crate::memory::Memory;
use kvm_bindings::kvm_sync_regs;
use kvm_ioctls::VcpuFd;
use xen_domain::mem::{Gpa, GuestMem};

/// Extended features: SYSCALL, long mode, no-execute.
pub const MSR_EFER: u32 = 0xc000_0080;
const EFER_SCE: u64 = 1;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Virtualisation and segment limits of AMD, which guests are not told of.
const EFER_FORBIDDEN: u64 = 1 << 12 | 1 << 13;
const CR0_PG: u64 = 1 << 31;

/// A kernel stands at a multiple of this (CONFIG_PHYSICAL_ALIGN).
const ALIGNMENT: u64 = 2 << 20;
/// No kernel's text and constants are longer.
const LONGEST: usize = 64 << 20;
/// How much is looked at in one piece.
const PIECE: usize = 64 << 10;
/// What every Linux says of itself: with it begin its constants, and its code ends.
const BANNER: &[u8] = b"Linux version ";
/// Of the piece before, as much as may be a begin of those words.
const KEPT: usize = BANNER.len() - 1;

/// Carry out a guest's write to EFER, after a look at the kernel that makes it. False where it is to fault.
pub fn write_efer(guest: &Guest, fd: &VcpuFd, data: u64) -> bool {
    let regs = fd.sync_regs();
    if !is_allowed(&regs, data) {
        return false;
    }
    if data & EFER_SCE != 0
        && regs.sregs.efer & EFER_LMA != 0
        && let Err(e) = guest.accel.watch(&|| look(guest, fd, regs.regs.rip))
    {
        limited!(warn, "writes to EFER stay exits: {e}");
    }
    set_msr(fd, MSR_EFER, data).is_ok()
}

/// The rest KVM looks at itself.
fn is_allowed(regs: &kvm_sync_regs, data: u64) -> bool {
    let paging = regs.sregs.cr0 & CR0_PG != 0;
    let switches = (regs.sregs.efer ^ data) & EFER_LME != 0;
    data & EFER_FORBIDDEN == 0 && !(paging && switches)
}

/// Whether a Linux was there, whatever came of it.
fn look(guest: &Guest, fd: &VcpuFd, rip: u64) -> bool {
    let Some(at) = fd.translate_gva(rip).ok().filter(|found| found.valid != 0) else { return false };
    let start = at.physical_address & !(ALIGNMENT - 1);
    match find(&guest.memory, start) {
        Found::NoLinux => return false,
        // It has a hypercall page.
        Found::Stubs(Err(refusal)) if refusal.is_none_at_all() => {
            tracing::info!("the Linux at {start:#x} has no hypercall instructions to be written over");
        }
        Found::Stubs(Err(refusal)) => {
            tracing::error!(
                "the hypercalls of the Linux at {start:#x} cannot be rewritten for the portable backend: {refusal}"
            );
        }
        Found::Stubs(Ok(sites)) => write_over(&guest.memory, start, sites),
    }
    true
}

fn write_over(memory: &Memory, start: u64, sites: [u64; 2]) {
    for site in sites {
        if memory.write(Gpa(site), &rewrite::call_by(HYPERCALL_PORT)).is_err() {
            limited!(warn, "no memory at {site:#x}");
        }
    }
    let [amd, intel] = sites;
    tracing::info!(
        "the portable backend of KVM: the hypercall instructions of the Linux at {start:#x}, at {amd:#x} and {intel:#x}, \
         are written over in its memory (hypercall_rewrite)"
    );
}

/// What stands in memory.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Something else than Linux.
    NoLinux,
    /// Its two stubs, or why they are not known.
    Stubs(Result<[u64; 2], Refusal>),
}

/// A kernel's code, from its start to its constants, piece by piece: no stub goes across a multiple of 16.
fn find(memory: &Memory, start: u64) -> Found {
    let mut stubs = Stubs::default();
    // The words may begin in the piece before: its end stays in front of each.
    let mut bytes = vec![0; KEPT + PIECE];
    for offset in (0..LONGEST).step_by(PIECE) {
        let at = start.saturating_add(offset as u64);
        bytes.copy_within(PIECE.., 0);
        let Some(piece) = bytes.get_mut(KEPT..).filter(|_| at.checked_add(PIECE as u64).is_some()) else {
            break;
        };
        if memory.read(Gpa(at), piece).is_err() {
            break;
        }
        let end = banner(&bytes);
        stubs.look(at, bytes.get(KEPT..end.unwrap_or(bytes.len())).unwrap_or_default());
        if end.is_some() {
            return Found::Stubs(stubs.both());
        }
    }
    Found::NoLinux
}

fn banner(bytes: &[u8]) -> Option<usize> {
    let [first, ..] = BANNER else { return None };
    let mut from = 0;
    loop {
        let rest = bytes.get(from..)?;
        let at = from + rest.iter().position(|byte| byte == first)?;
        if bytes.get(at..)?.starts_with(BANNER) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efer_is_written_as_the_processor_would_let_it() {
        let mut regs = kvm_sync_regs::default();
        assert!(is_allowed(&regs, EFER_LME));
        regs.sregs.cr0 = CR0_PG;
        regs.sregs.efer = EFER_LME | EFER_LMA;
        assert!(is_allowed(&regs, EFER_LME | EFER_SCE | 1 << 11));
        assert!(!is_allowed(&regs, EFER_SCE), "long mode ends only without paging");
        assert!(!is_allowed(&regs, EFER_LME | 1 << 12), "no virtualisation in guests");
    }

    #[test]
    fn a_linux_is_known_by_its_words_and_its_stubs() {
        let memory = Memory::new(&[(0, 16 << 20)]).unwrap();
        let put = |at, bytes: &[u8]| memory.write(Gpa(at), bytes).unwrap();
        put(0x40_0040, b"\x0f\x01\xd9\xc3");
        put(0x40_0060, b"\x0f\x01\xc1\xc3");
        assert_eq!(find(&memory, 0x40_0000), Found::NoLinux);
        // Across two pieces.
        put(0x50_0000 - 4, b"Linux version 6.1.0");
        assert_eq!(find(&memory, 0x40_0000), Found::Stubs(Ok([0x40_0040, 0x40_0060])));
        put(0x60_0000, b"\x0f\x01\xd9\xc3");
        assert!(matches!(find(&memory, 0x40_0000), Found::Stubs(Ok(_))), "its data does not matter");
        put(0x4f_0000, b"\x0f\x01\xd9\xc3");
        assert!(matches!(find(&memory, 0x40_0000), Found::Stubs(Err(refusal)) if !refusal.is_none_at_all()));
        [0x40_0040, 0x40_0060, 0x4f_0000].into_iter().for_each(|at| put(at, &[0; 4]));
        assert!(matches!(find(&memory, 0x40_0000), Found::Stubs(Err(refusal)) if refusal.is_none_at_all()));
        assert_eq!(find(&memory, 1 << 40), Found::NoLinux);
    }
}
