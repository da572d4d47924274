//! One domain: all the state that outlives a hypercall.

use std::collections::BTreeMap;

use xen_abi::errno::Errno;

use crate::effect::{Backend, Port, VcpuId};
use crate::hypercall::{Call, Cx, Outcome};
use crate::mem::Gfn;

/// One entry of the guest's memory map: E820 types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemmapEntry {
    /// First byte.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// 1 RAM, 2 reserved, 3 ACPI.
    pub kind: u32,
}

/// What a domain is built with.
#[derive(Clone, Debug)]
pub struct Params {
    /// Domain id.
    pub domid: u16,
    /// UUID bytes (XENVER_guest_handle).
    pub uuid: [u8; 16],
    /// vCPUs that exist.
    pub max_vcpus: u32,
    /// RAM frames present at start.
    pub pages: u64,
    /// RAM frames the guest may have at most.
    pub max_pages: u64,
    /// As given in hvm_start_info; XENMEM_memory_map answers it.
    pub memory_map: Vec<MemmapEntry>,
    /// Grant table frames.
    pub max_grant_frames: u32,
    /// Highest port + 1 that may be allocated.
    pub max_ports: u32,
    /// Command line of "the hypervisor" shown by XENVER_commandline.
    pub commandline: String,
    /// The 64-bit layout is latched from the start (the loaded kernel is 64-bit).
    pub long_mode: bool,
    /// GSIs and INTx lines exist (a machine with IOAPIC and platform device); false for PVH, where Xen
    /// ignores such callbacks.
    pub legacy_callbacks: bool,
    /// Console ring frame.
    pub console_gfn: Gfn,
    /// Store ring frame.
    pub store_gfn: Gfn,
}

/// How often each hypercall reached userspace, by number and sub-op (0 where a call has none).
pub type Counters = BTreeMap<(u64, u64), u64>;

/// The state of one domain. Everything that outlives a hypercall; xen-emu keeps it behind one lock.
#[derive(Debug)]
pub struct Domain {
    pub(crate) params: Params,
    pub(crate) counters: Counters,
    pub(crate) shutdown_code: Option<u32>,
}

impl Domain {
    /// A domain as it is before its first instruction.
    #[must_use]
    pub fn new(params: Params) -> Self {
        Domain { params, counters: Counters::new(), shutdown_code: None }
    }

    /// One hypercall of a vCPU. Called by the run loop with the domain's lock held.
    pub fn hypercall(&mut self, call: &Call, cx: &mut Cx<'_>) -> Outcome {
        let _ = cx;
        *self.counters.entry((call.nr, 0)).or_default() += 1;
        Outcome::Done(Errno::ENOSYS.to_ret())
    }

    /// Opens a guest port already bound to dom0, `backend` at the far end, and offloads it. Store and Console
    /// also set their HVM params and seed their grant entry.
    ///
    /// # Errors
    /// -ENOSPC without a free port, -EEXIST if this backend has one.
    pub fn connect_backend(&mut self, backend: Backend, cx: &mut Cx<'_>) -> Result<Port, Errno> {
        let _ = (backend, cx);
        Err(Errno::ENOSPC)
    }

    /// A backend binds the guest's unbound port (found by it in the store) to itself.
    ///
    /// # Errors
    /// -EINVAL unless the port is unbound and for dom0, -EEXIST if the backend has a port.
    pub fn bind_backend(&mut self, port: Port, backend: Backend, cx: &mut Cx<'_>) -> Result<(), Errno> {
        let _ = (port, backend, cx);
        Err(Errno::EINVAL)
    }

    /// The backend at the far end of `port` goes away; the port becomes unbound, for dom0.
    pub fn disconnect_backend(&mut self, port: Port, cx: &mut Cx<'_>) {
        let _ = (port, cx);
    }

    /// A backend's kick that came to userspace: raises the guest's end.
    pub fn raise(&mut self, port: Port, cx: &mut Cx<'_>) {
        let _ = (port, cx);
    }

    /// Raises a VIRQ (VIRQ_*) on this vCPU; nothing happens where the guest has not bound it. Global ones are
    /// raised on vCPU 0.
    pub fn raise_virq(&mut self, virq: u32, vcpu: VcpuId, cx: &mut Cx<'_>) {
        let _ = (virq, vcpu, cx);
    }

    /// Whether the guest sees a store page: without a store STORE_PFN must read 0, or Linux waits for ever.
    pub fn set_store_page(&mut self, present: bool) {
        let _ = present;
    }

    /// RAM frames the guest has now (XENMEM_current_reservation).
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.params.pages
    }

    /// RAM frames the guest may have at most (XENMEM_maximum_reservation).
    pub fn set_max_pages(&mut self, frames: u64) {
        self.params.max_pages = frames;
    }

    /// The machine tells that a vCPU runs (INIT/SIPI by LAPIC) or has stopped.
    pub fn note_vcpu_online(&mut self, vcpu: VcpuId, online: bool) {
        let _ = (vcpu, online);
    }

    /// Whether the vCPU is up (VCPUOP_is_up); false for one that does not exist.
    #[must_use]
    pub fn vcpu_online(&self, vcpu: VcpuId) -> bool {
        vcpu == 0
    }

    /// The vCPU's `Outcome::Block` has ended (woken or timed out): it polls no port any more.
    pub fn unblocked(&mut self, vcpu: VcpuId) {
        let _ = vcpu;
    }

    /// SHUTDOWN_* as the guest set it, by SCHEDOP_shutdown or ahead of it by SCHEDOP_shutdown_code.
    #[must_use]
    pub fn shutdown_code(&self) -> Option<u32> {
        self.shutdown_code
    }

    /// Hypercalls that reached userspace.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The state as a tree of text, below `path` ("evtchn", "evtchn/12", "gnttab", "vcpu/0", "params",
    /// "physmap", "hypercalls"; "" = all).
    #[must_use]
    pub fn describe(&self, path: &str) -> String {
        format!("{path}: {:?}\n", self.params)
    }
}
