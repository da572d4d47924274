//! One domain: all the state that outlives a hypercall.

use std::collections::BTreeMap;
use std::sync::Arc;

use xen_abi::errno::Errno;
use xen_abi::grant_table::{RESERVED_CONSOLE, RESERVED_XENSTORE};
use xen_abi::hvm::params::HvmParam;
use xen_abi::xen::Virq;
use xen_abi::{Domid, Width};

use crate::effect::{Backend, Port, Processor, VcpuId};
use crate::evtchn::Ports;
use crate::gnttab::{GrantTable, Pins};
use crate::hvm_params::HvmParams;
use crate::hypercall::{self, Call, Cx, Outcome, dispatch};
use crate::mem::{Gfn, GuestMem, SpecialPage};
use crate::physmap::Physmap;
use crate::vcpu::{Vcpu, Waiting};

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
    /// RAM frames present at start. Fewer than the memory map has: the rest is populated on demand.
    pub pages: u64,
    /// RAM frames the guest may have at most.
    pub max_pages: u64,
    /// As given in hvm_start_info; XENMEM_memory_map answers it.
    pub memory_map: Vec<MemmapEntry>,
    /// Grant table frames.
    pub max_grant_frames: u32,
    /// Highest version of the grant table that the guest may choose, 1 or 2.
    pub max_grant_version: u32,
    /// Highest port + 1 that may be allocated.
    pub max_ports: u32,
    /// EVTCHNOP_init_control switches to the FIFO ABI; false: it answers -ENOSYS and the guest stays with 2-level.
    pub fifo: bool,
    /// Command line of "the hypervisor" shown by XENVER_commandline.
    pub commandline: String,
    /// The 64-bit layout is latched from the start (the loaded kernel is 64-bit).
    pub long_mode: bool,
    /// What its processors have.
    pub processor: Processor,
    /// Console ring frame; the machine has put the page there before the guest starts.
    pub console_gfn: Gfn,
    /// Store ring frame; likewise.
    pub store_gfn: Gfn,
}

/// How often each hypercall reached userspace, by number and sub-op (0 where a call has none). What a guest makes up
/// beyond a bound is counted under `(u64::MAX, u64::MAX)`.
pub type Counters = BTreeMap<(u64, u64), u64>;

/// Distinct hypercalls that are counted one by one.
const MAX_COUNTERS: usize = 256;

/// The state of one domain. Everything that outlives a hypercall; xen-emu keeps it behind one lock.
#[derive(Debug)]
pub struct Domain {
    pub(crate) config: Params,
    /// Layout of shared_info and vcpu_info, latched from the guest (Xen's has_32bit_shinfo).
    pub(crate) width: Width,
    pub(crate) ports: Ports,
    pub(crate) grants: GrantTable,
    pub(crate) physmap: Physmap,
    /// What XENMEM_memory_map answers.
    pub(crate) memory_map: Vec<MemmapEntry>,
    pub(crate) hvm: HvmParams,
    /// The vector of vCPUs that have none of their own, 0 = none. HVM_PARAM_CALLBACK_IRQ may read something else.
    pub(crate) callback: u8,
    pub(crate) vcpus: Vec<Vcpu>,
    /// Whether SCHEDOP_watchdog 1 and 2 are in use.
    pub(crate) watchdogs: [bool; 2],
    pub(crate) shutdown_code: Option<u32>,
    /// The vCPU that has shut the domain down last.
    pub(crate) shutdown_by: VcpuId,
    store_page: bool,
    counters: Counters,
    /// Questions asked of other domains.
    pub(crate) questions: u32,
}

impl Domain {
    /// Whether the guest has this event channel port, bound or not.
    #[must_use]
    pub fn has_port(&self, port: u32) -> bool {
        self.ports.in_use().any(|(used, _)| used == port)
    }

    /// A domain as it is before its first instruction.
    #[must_use]
    pub fn new(config: Params) -> Self {
        let mut physmap = Physmap::new(&config.memory_map, config.pages);
        physmap.place(SpecialPage::Console, Some(config.console_gfn));
        physmap.place(SpecialPage::Store, Some(config.store_gfn));
        Domain {
            width: if config.long_mode { Width::W64 } else { Width::W32 },
            ports: Ports::new(config.max_ports),
            grants: GrantTable::new(config.max_grant_frames),
            physmap,
            memory_map: config.memory_map.clone(),
            hvm: HvmParams::new(),
            callback: 0,
            vcpus: (0..config.max_vcpus).map(|id| Vcpu::new(id == 0)).collect(),
            watchdogs: [false; 2],
            shutdown_code: None,
            shutdown_by: 0,
            store_page: true,
            counters: Counters::new(),
            questions: 0,
            config,
        }
    }

    /// One hypercall of a vCPU. Called by the run loop with the domain's lock held.
    pub fn hypercall(&mut self, call: &Call, cx: &mut Cx<'_>) -> Outcome {
        self.unblocked(call.vcpu);
        dispatch(self, call, cx)
    }

    /// Opens a guest port already bound to dom0, `backend` at the far end, and offloads it. Store and Console
    /// also set their HVM params and seed their grant entry.
    ///
    /// # Errors
    /// -ENOSPC without a free port, -EEXIST if this backend has one, -EFAULT if the grant table is not there.
    pub fn connect_backend(&mut self, backend: Backend, cx: &mut Cx<'_>) -> Result<Port, Errno> {
        let port = self.open_backend(backend, cx)?;
        let (evtchn, pfn, gref, gfn) = match backend {
            Backend::Store => {
                let gfn = self.config.store_gfn;
                (HvmParam::STORE_EVTCHN, HvmParam::STORE_PFN, RESERVED_XENSTORE, gfn)
            }
            Backend::Console => {
                let gfn = self.config.console_gfn;
                (HvmParam::CONSOLE_EVTCHN, HvmParam::CONSOLE_PFN, RESERVED_CONSOLE, gfn)
            }
            Backend::Device(_) => return Ok(port),
        };
        self.grants.seed(cx.mem, gref, gfn)?;
        self.hvm.set(evtchn, port.into());
        self.hvm.set(pfn, gfn.0);
        Ok(port)
    }

    /// The domain's grants as its backends' threads use them, without the domain's lock; `mem` is the same memory that
    /// its hypercalls work on.
    #[must_use]
    pub fn pins(&self, mem: Arc<dyn GuestMem + Send + Sync>) -> Pins {
        Pins::of(&self.grants.active, mem)
    }

    /// A backend binds the guest's unbound port (found by it in the store) to itself.
    ///
    /// # Errors
    /// -EINVAL unless the port is unbound and for dom0, -EEXIST if the backend has a port.
    pub fn bind_backend(&mut self, port: Port, backend: Backend, cx: &mut Cx<'_>) -> Result<(), Errno> {
        self.bind_far(port, backend, cx)
    }

    /// A backend goes away; the guest's port that it was bound to becomes unbound, for dom0. A port that the guest
    /// has closed meanwhile, and may use for something else, is left alone.
    pub fn disconnect_backend(&mut self, backend: Backend, cx: &mut Cx<'_>) {
        self.leave_far(backend, cx);
    }

    /// A backend's kick that came to userspace: raises the guest's end. Nothing happens where there is none.
    pub fn raise(&mut self, port: Port, cx: &mut Cx<'_>) {
        self.set_pending(port, cx);
    }

    /// The same by the backend's name.
    pub fn raise_backend(&mut self, backend: Backend, cx: &mut Cx<'_>) {
        if let Some(port) = self.ports.near_port(backend) {
            self.set_pending(port, cx);
        }
    }

    /// Raises a VIRQ (VIRQ_*) on this vCPU; nothing happens where the guest has not bound it. Global ones are
    /// raised where vCPU 0 has bound them.
    pub fn raise_virq(&mut self, virq: u32, vcpu: VcpuId, cx: &mut Cx<'_>) {
        let virq = Virq(virq);
        let vcpu = if virq.is_per_vcpu() { vcpu } else { 0 };
        if let Some(port) = self.vcpus.get(vcpu as usize).and_then(|vcpu| vcpu.virq_port(virq)) {
            self.set_pending(port, cx);
        }
    }

    /// Whether the guest sees a store page: without a store STORE_PFN must read 0, or Linux waits for ever.
    pub fn set_store_page(&mut self, present: bool) {
        self.store_page = present;
    }

    /// What the guest reads as a param.
    pub(crate) fn param(&self, index: HvmParam) -> Result<u64, Errno> {
        let value = self.hvm.guest_get(index)?;
        Ok(if index == HvmParam::STORE_PFN && !self.store_page { 0 } else { value })
    }

    /// RAM frames the guest has now (XENMEM_current_reservation).
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.physmap.pages()
    }

    /// RAM frames the guest may have at most (XENMEM_maximum_reservation).
    pub fn set_max_pages(&mut self, frames: u64) {
        self.config.max_pages = frames;
    }

    /// The machine tells that a vCPU runs (INIT/SIPI by LAPIC) or has stopped, at system time `now`. One that is about
    /// to be halted is down already, or up again, whatever it looks like.
    pub fn note_vcpu_online(&mut self, vcpu: VcpuId, online: bool, now: u64) {
        if let Some(vcpu) = self.vcpus.get_mut(vcpu as usize).filter(|vcpu| !vcpu.halting) {
            vcpu.turn(online, now);
            if online {
                vcpu.initialised = true;
                vcpu.start = None;
            }
        }
    }

    /// The machine cannot run a vCPU in the state that the guest has chosen for its start: it is down, and wants another one.
    pub fn note_vcpu_refused(&mut self, vcpu: VcpuId, now: u64) {
        if let Some(vcpu) = self.vcpus.get_mut(vcpu as usize) {
            vcpu.turn(false, now);
            vcpu.initialised = false;
        }
    }

    /// The machine tells that a vCPU has had an INIT and no start since: it is down and wants a state, unless the guest has chosen
    /// one meanwhile.
    pub fn note_vcpu_init(&mut self, vcpu: VcpuId, now: u64) {
        if self.vcpus.get(vcpu as usize).is_some_and(|vcpu| !vcpu.halting && vcpu.start.is_none()) {
            self.note_vcpu_refused(vcpu, now);
        }
    }

    /// The machine has halted a vCPU ([`Effects::vcpu_down`](crate::effect::Effects::vcpu_down)): if it runs after this, it was started.
    pub fn note_vcpu_halted(&mut self, vcpu: VcpuId) {
        if let Some(vcpu) = self.vcpus.get_mut(vcpu as usize) {
            vcpu.halting = false;
        }
    }

    /// Whether the vCPU is up (VCPUOP_is_up); false for one that does not exist.
    #[must_use]
    pub fn vcpu_online(&self, vcpu: VcpuId) -> bool {
        self.vcpus.get(vcpu as usize).is_some_and(|vcpu| vcpu.online)
    }

    /// The vCPU's `Outcome::Block` has timed out: it polls no port any more. False if it had ended before.
    pub fn unblocked(&mut self, vcpu: VcpuId) -> bool {
        let waited = self.waits(vcpu);
        if let Some(vcpu) = self.vcpus.get_mut(vcpu as usize) {
            vcpu.waiting = Waiting::No;
        }
        waited
    }

    /// Whether the vCPU may be in `Outcome::Block`: an interrupt ends it without a word, and then this is true until
    /// its next hypercall.
    #[must_use]
    pub fn waits(&self, vcpu: VcpuId) -> bool {
        self.vcpus.get(vcpu as usize).is_some_and(|vcpu| vcpu.waiting != Waiting::No)
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

    /// Counts a hypercall; true when it is the first of its kind.
    pub(crate) fn count(&mut self, nr: u64, op: u64) -> bool {
        let bounded = self.counters.len() < MAX_COUNTERS || self.counters.contains_key(&(nr, op));
        let key = if bounded { (nr, op) } else { (u64::MAX, u64::MAX) };
        let count = self.counters.entry(key).or_default();
        *count += 1;
        *count == 1
    }

    /// The domain's own id.
    pub(crate) fn domid(&self) -> Domid {
        Domid(self.config.domid)
    }

    /// DOMID_SELF by its real number.
    pub(crate) fn resolve(&self, domid: Domid) -> Domid {
        if domid == Domid::SELF { self.domid() } else { domid }
    }

    /// Whether a guest may work on this domain: on itself only.
    ///
    /// # Errors
    /// -EPERM for dom0, -ESRCH for all others, of which nothing is known here.
    pub(crate) fn target(&self, domid: Domid) -> Result<(), Errno> {
        match self.resolve(domid) {
            own if own == self.domid() => Ok(()),
            Domid::DOM0 => Err(Errno::EPERM),
            _ => Err(Errno::ESRCH),
        }
    }

    /// A vCPU.
    ///
    /// # Errors
    /// -ENOENT if there is none of that number.
    pub(crate) fn vcpu(&self, id: VcpuId) -> Result<&Vcpu, Errno> {
        self.vcpus.get(id as usize).ok_or(Errno::ENOENT)
    }

    /// The same, to change it.
    pub(crate) fn vcpu_mut(&mut self, id: VcpuId) -> Result<&mut Vcpu, Errno> {
        self.vcpus.get_mut(id as usize).ok_or(Errno::ENOENT)
    }

    /// The guest has had a hypercall page written by code of this width, which latches it as on Xen. For machines that
    /// write the page themselves.
    pub fn hypercall_page_written(&mut self, width: hypercall::Width, cx: &mut Cx<'_>) {
        self.latch_width(width.into(), cx);
    }

    /// Interrupts a vCPU once more if its evtchn_upcall_pending is set: the machine has found that an interrupt was not
    /// taken, or is forgotten.
    pub fn remind_upcall(&self, vcpu: VcpuId, cx: &mut Cx<'_>) {
        // Where the guest has no such page there is nothing pending.
        let _ = hypercall::remind(self, vcpu, cx);
    }

    /// The machine can deliver the callback in another way now: it is told of it once more.
    pub fn announce_callback(&self, cx: &mut Cx<'_>) {
        // Where the guest has no such page there is nothing pending.
        let _ = hypercall::announce_callback(self, cx);
    }

    /// Latches the guest's width (Xen's `hvm_latch_shinfo_size`).
    pub(crate) fn latch_width(&mut self, width: Width, cx: &mut Cx<'_>) {
        let changed = self.width != width;
        self.width = width;
        cx.fx.latch_long_mode(width == Width::W64);
        if changed {
            self.update_wallclock(cx);
        }
    }
}
