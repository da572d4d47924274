//! Decoding and dispatch: `Call` -> `TABLE[nr]` -> an op file -> `Outcome`.

pub(crate) mod args;
mod console_io;
mod evtchn_op;
mod grant_table_op;
mod hvm_op;
mod memory_op;
mod multicall;
mod physdev_op;
mod reservation;
mod sched_op;
mod table;
pub(crate) use table::name;
mod timer_op;
mod vcpu_area;
pub(crate) use hvm_op::announce_callback;
pub(crate) use vcpu_area::remind;
mod vcpu_context;
mod vcpu_op;
mod vm_assist;
mod xen_version;

use xen_abi::errno::Errno;
use xen_abi::hypercall::Hypercall;
use xen_abi::sched::SchedOp;

use crate::domain::Domain;
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

impl From<Width> for xen_abi::Width {
    fn from(width: Width) -> Self {
        match width {
            Width::Bits32 => xen_abi::Width::W32,
            Width::Bits64 => xen_abi::Width::W64,
        }
    }
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
    /// Make this call again when `Domain::answered` says so.
    Ask(Call),
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
    /// The clocks, which few look at.
    pub now: &'a dyn Fn() -> Now,
}

/// What a handler answers; an error goes to the guest as `-errno`.
pub(crate) type Answer = Result<Outcome, Errno>;
/// One operation.
pub(crate) type Handler = fn(&mut Domain, &Call, &mut Cx<'_>) -> Answer;

/// Success without a value.
pub(crate) const DONE: Answer = Ok(Outcome::Done(0));

/// Success with a value that is no error.
#[expect(clippy::unnecessary_wraps, reason = "the last expression of handlers")]
pub(crate) fn value(value: u64) -> Answer {
    Ok(Outcome::Done(i64::try_from(value).unwrap_or(i64::MAX)))
}

impl Call {
    /// The low half of an argument, all that Xen reads of its `unsigned int` parameters.
    #[expect(clippy::cast_possible_truncation, reason = "that is the point")]
    pub(crate) const fn arg32(&self, index: usize) -> u32 {
        self.arg(index) as u32
    }

    /// An argument.
    pub(crate) const fn arg(&self, index: usize) -> u64 {
        let [a, b, c, d, e, f] = self.args;
        match index {
            0 => a,
            1 => b,
            2 => c,
            3 => d,
            4 => e,
            _ => f,
        }
    }

    /// SCHEDOP_yield, which is for the machine: the domain has nothing to do.
    #[must_use]
    pub fn is_yield(&self) -> bool {
        self.nr == Hypercall::SCHED_OP.0 && self.arg32(0) == SchedOp::YIELD.0
    }

    /// The same call with other arguments, for continuations.
    pub(crate) fn with_args<const N: usize>(&self, first: [u64; N]) -> Call {
        let mut call = *self;
        for (arg, new) in call.args.iter_mut().zip(first) {
            *arg = new;
        }
        call
    }

    /// Registers as a caller of this width has them: a 32-bit one has no upper halves.
    fn narrowed(&self) -> Call {
        let mask = match self.width {
            Width::Bits32 => u64::from(u32::MAX),
            Width::Bits64 => u64::MAX,
        };
        Call { nr: self.nr & mask, args: self.args.map(|arg| arg & mask), ..*self }
    }
}

/// One hypercall, decoded and carried out.
pub(crate) fn dispatch(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Outcome {
    let answer = if call.cpl > 0 { Err(Errno::EPERM) } else { run(domain, &call.narrowed(), cx) };
    answer.unwrap_or_else(|errno| Outcome::Done(errno.to_ret()))
}

fn run(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let family = table::family(call.nr);
    let op = family.map_or(0, |family| family.op(call));
    let first = domain.count(call.nr, op);
    match family.and_then(|family| family.handler(op)) {
        Some(handler) => handler(domain, call, cx),
        // Xen looks for the vCPU before the operation.
        None if call.nr == Hypercall::VCPU_OP.0 && domain.vcpu(call.arg32(1)).is_err() => Err(Errno::ENOENT),
        None => {
            if first {
                cx.fx.log_once(&format!("unknown hypercall {}", table::name(call.nr, op)));
            }
            Err(Errno::ENOSYS)
        }
    }
}
