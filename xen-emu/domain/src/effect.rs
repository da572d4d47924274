//! The only way out of the core: what a domain's semantics ask of the machine beneath.

use crate::mem::{Gfn, Gpa, SpecialPage};
use crate::peer::{Ask, Foreign, Question};
use xen_abi::Domid;
use xen_abi::errno::Errno;

/// A Xen vcpu_id.
pub type VcpuId = u32;
/// An event channel port of the guest.
pub type Port = u32;

/// A backend in the host that holds the far end of an interdomain channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// xenstored.
    Store,
    /// The primary console.
    Console,
    /// A device, by a number of xen-emu's choosing.
    Device(u32),
}

/// What the machine may do for a port without asking the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// EVTCHNOP_send on it raises it on this vCPU (PV IPI).
    Ipi(VcpuId),
    /// EVTCHNOP_send on it raises another port of the same domain.
    Loopback {
        /// The port that becomes pending.
        port: Port,
        /// The vCPU it is bound to.
        vcpu: VcpuId,
    },
    /// EVTCHNOP_send on it kicks this backend, and the backend's kicks raise it on this vCPU.
    Backend(Backend, VcpuId),
}

/// Times of one vCPU, nanoseconds, in the order of public/vcpu.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runstate {
    /// RUNSTATE_*.
    pub state: i32,
    /// System time of the last change.
    pub entry_time: u64,
    /// Per state: running, runnable, blocked, offline.
    pub time: [u64; 4],
}

impl Runstate {
    /// The same at system time `now`: the machine has counted up to the last change.
    #[must_use]
    pub fn until(mut self, now: u64) -> Runstate {
        let current = usize::try_from(self.state).ok().and_then(|state| self.time.get_mut(state));
        if let Some(time) = current {
            *time = time.saturating_add(now.saturating_sub(self.entry_time));
        }
        self
    }

    /// The same of a vCPU that went down at system time `since`: the machine has taken it for blocked from then on.
    #[must_use]
    pub fn offline(mut self, since: u64, now: u64) -> Runstate {
        let [.., blocked, offline] = &mut self.time;
        let down = now.saturating_sub(since).min(*blocked);
        *blocked -= down;
        *offline = offline.saturating_add(down);
        self.state = 3;
        self.entry_time = since;
        self
    }
}

/// A segment register: base, limit in the descriptor's units, and rights as struct vcpu_hvm_x86_32 has them (type 0-3,
/// s 4, dpl 5-6, p 7, avl 8, l 9, db 10, g 11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// First address.
    pub base: u32,
    /// Highest offset, in pages where g is set.
    pub limit: u32,
    /// Rights; 0 = not usable.
    pub ar: u16,
}

/// The bits that the guest may have set in the registers of its processors, as CPUID tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// CR3 in long mode: physical addresses.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

/// The state a vCPU starts in (VCPUOP_initialise), which a processor can be in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI.
    pub gprs: [u64; 8],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Control register.
    pub cr0: u64,
    /// Control register.
    pub cr3: u64,
    /// Control register.
    pub cr4: u64,
    /// EFER, LMA as it follows from the rest.
    pub efer: u64,
    /// Code.
    pub cs: Segment,
    /// Data.
    pub ds: Segment,
    /// Data.
    pub es: Segment,
    /// Stack.
    pub ss: Segment,
    /// Task.
    pub tr: Segment,
}

/// Why a domain ends; SHUTDOWN_* of public/sched.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownReason(pub u32);

/// The machine. Methods are called with the domain's lock held and must not block; what concerns another
/// vCPU may be posted to it, and backends may be kicked and vCPUs interrupted later: the caller's hypercall completes only after it was done.
pub trait Effects {
    /// Place `page` at `gfn` (in or outside RAM), or take it away (`None`). Its content goes with it; a page
    /// inside RAM lives in that RAM page until it is moved. Errors: -ENOMEM-like host failures only.
    fn map_special(&mut self, page: SpecialPage, gfn: Option<Gfn>) -> Result<(), Errno>;
    /// Show RAM frame `frame` also at `at`, for reading only or for writing too, or take that away (`None`). -EOPNOTSUPP
    /// where the machine cannot: at frames of its RAM, or at all.
    fn map_grant(&mut self, _at: Gfn, _frame: Option<(Gfn, bool)>) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    /// The guest no longer has these RAM frames: give the memory back to the host.
    fn release_ram(&mut self, first: Gfn, frames: u64);
    /// The guest has these RAM frames again, zeroed.
    fn populate_ram(&mut self, first: Gfn, frames: u64) -> Result<(), Errno>;

    /// The guest is 64-bit (true) or 32-bit: the layout of shared_info.
    fn latch_long_mode(&mut self, long_mode: bool);
    /// The interrupt vector, without EOI, of vCPUs that have none of their own; 0 = none.
    fn set_callback(&mut self, vector: u8);
    /// HVMOP_set_evtchn_upcall_vector. The core calls [`Effects::upcall`] afterwards where one is pending.
    fn set_upcall_vector(&mut self, vcpu: VcpuId, vector: u8);
    /// Where this vCPU's vcpu_info lies. Called too when shared_info moves and the vCPU uses its slot there.
    fn set_vcpu_info(&mut self, vcpu: VcpuId, gpa: Option<Gpa>);
    /// Secondary vcpu_time_info; false when the machine cannot keep one there (the guest gets -ENOSYS).
    fn set_vcpu_time_info(&mut self, vcpu: VcpuId, gpa: Option<Gpa>) -> bool;
    /// vcpu_runstate_info.
    fn set_runstate(&mut self, vcpu: VcpuId, gpa: Option<Gpa>);
    /// VMASST_TYPE_runstate_update_flag; false when the machine cannot (the guest gets -EINVAL).
    fn set_runstate_update_flag(&mut self, on: bool) -> bool;
    /// The times of a vCPU; running or blocked, as it is for the core to say which are down.
    fn runstate(&mut self, vcpu: VcpuId) -> Runstate;

    /// The port that VIRQ_TIMER raises on this vCPU.
    fn set_timer_port(&mut self, vcpu: VcpuId, port: Option<Port>);
    /// Raise VIRQ_TIMER once at this system time in nanoseconds (a past time: at once), or never.
    fn set_singleshot(&mut self, vcpu: VcpuId, at: Option<u64>);
    /// Raise VIRQ_TIMER every so many nanoseconds, or stop.
    fn set_periodic(&mut self, vcpu: VcpuId, period: Option<u64>);

    /// Let the machine handle the port by itself; called again when the port moves to another vCPU. False
    /// when it cannot: then every send comes here as a hypercall.
    fn offload(&mut self, port: Port, how: Offload) -> bool;
    /// The port is closed; the machine forgets it.
    fn retract(&mut self, port: Port);
    /// No port may be handled by the machine from now on (FIFO, EVTCHNOP_reset, soft reset).
    fn retract_all(&mut self);
    /// The guest's events are FIFO now (true; [`Effects::retract_all`] follows) or 2-level again. Under FIFO the machine raises, polls and times nothing by itself: what backends notify is told by
    /// `Domain::raise_backend`, and a running timer goes on, to be told by `Domain::raise_virq`.
    fn set_fifo(&mut self, _on: bool) {}
    /// Raise a port of 2-level kind completely: pending, mask test, selector, upcall. False when the machine
    /// cannot; then the core sets the bits itself and calls [`Effects::upcall`].
    fn raise(&mut self, port: Port, vcpu: VcpuId) -> bool;
    /// upcall_pending of this vCPU has just gone from 0 to 1 by the core's hand: interrupt it.
    fn upcall(&mut self, vcpu: VcpuId);
    /// The guest has notified this backend.
    fn kick(&mut self, backend: Backend);

    /// Ask another domain for a hypercall of this vCPU. The answer goes to `Domain::answer`, and the vCPU goes on.
    fn ask(&mut self, question: Question, dom: Domid, ask: Ask);
    /// The guest has closed its end of a channel to another domain: that one is told, and `backend` is forgotten.
    fn leave_peer(&mut self, backend: Backend);
    /// Show a page of another domain at `at`, for reading only or for writing too, or take that away (`None`). In RAM, of
    /// which the guest has given up that frame, a page of zeros is there afterwards.
    fn map_foreign(&mut self, at: Gfn, page: Option<(Foreign, bool)>) -> Result<(), Errno>;
    /// The page is not used: its domain gets it back, and nobody waits for that.
    fn release_foreign(&mut self, page: Foreign);

    /// A vCPU waiting in `Outcome::Block` has what it waits for (also when the port is masked).
    fn wake(&mut self, _vcpu: VcpuId) {}
    /// Tell through `Domain::note_vcpu_online` or `note_vcpu_init` whether this vCPU runs, before the caller's hypercall goes on.
    fn look_at(&mut self, _vcpu: VcpuId) {}
    /// Let a vCPU run (VCPUOP_up): with these registers, or where it has stopped.
    fn vcpu_up(&mut self, vcpu: VcpuId, start: Option<&StartState>);
    /// Stop a vCPU (VCPUOP_down).
    fn vcpu_down(&mut self, vcpu: VcpuId);
    /// An NMI (VCPUOP_send_nmi).
    fn nmi(&mut self, vcpu: VcpuId);
    /// CONSOLEIO_write, already bounded.
    fn console_write(&mut self, bytes: &[u8]);
    /// Say something once to the domain's log (unknown hypercalls and the like).
    fn log_once(&mut self, what: &str);
    /// Arm, re-arm or (0 s) disarm watchdog `id`; when it runs out the domain shuts down with reason watchdog.
    fn set_watchdog(&mut self, id: u32, seconds: u32);
}
