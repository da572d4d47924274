//! Decoding and dispatch: `Call` -> `TABLE[nr]` -> an op file -> `Outcome`.

use crate::effect::{Effects, ShutdownReason, VcpuId};
use crate::mem::{GuestMem, Translate};
use crate::time::Now;

/// Register width of the caller, which decides the layout of every argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Compat: 32-bit registers and layouts.
    Bits32,
    /// 64-bit registers and layouts.
    Bits64,
}

/// One hypercall as it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The calling vCPU.
    pub vcpu: VcpuId,
    /// EAX: __HYPERVISOR_*.
    pub nr: u64,
    /// RDI RSI RDX R10 R8 R9, or EBX ECX EDX ESI EDI EBP.
    pub args: [u64; 6],
    /// Layouts.
    pub width: Width,
    /// Privilege level of the caller; above 0 gets -EPERM.
    pub cpl: u8,
}

/// Until when a vCPU blocks (SCHEDOP_poll, SCHEDOP_block in userspace).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Until {
    /// Absolute system time, nanoseconds; `None` = no limit.
    pub deadline: Option<u64>,
}

/// What the run loop does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Put this into RAX/EAX and go on.
    Done(i64),
    /// Make this call again after looking at signals and mailboxes (continuation).
    Again(Call),
    /// Return 0 to the guest after waiting for an event on this vCPU, at most until then.
    Block(Until),
    /// The domain shuts down; the caller does not return.
    Exit(ShutdownReason),
}

/// Everything a handler may use besides the domain itself.
pub struct Cx<'a> {
    /// Guest memory.
    pub mem: &'a dyn GuestMem,
    /// The caller's page tables; hypercall pointers are virtual.
    pub gva: &'a dyn Translate,
    /// The machine.
    pub fx: &'a mut dyn Effects,
    /// The clocks.
    pub now: Now,
}
