//! The machine as the core's [`Effects`].

use crate::guest::{Guest, lock};
use crate::kvm::VcpuAttr;
use crate::kvm::backends::BackendFds;
use crate::kvm::mailbox::Ticket;
use crate::kvm::vcpu::{Mail, deliver};
use crate::memory::Place;
use crate::peers::Order;
use crate::timers::Timer;
use kvm_ioctls::VcpuFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use xen_abi::Domid;
use xen_abi::errno::Errno;
use xen_abi::shared_info::VCPU_TIME;
use xen_domain::effect::{Backend, Effects, Offload, Port, Runstate, StartState, VcpuId};
use xen_domain::mem::{Gfn, Gpa, SpecialPage};
use xen_domain::peer::{Ask, Foreign, Question};

/// The effects of one call into the core. What may take its time is left for [`Fx::finish`].
pub struct Fx<'a> {
    guest: &'a Guest,
    own: Option<(&'a VcpuFd, VcpuId)>,
    /// Work posted to other vCPUs.
    tickets: Vec<Ticket>,
    /// Backends to kick.
    kicks: Vec<Arc<BackendFds>>,
    /// vCPUs to interrupt, and those whose wait has ended. Such a one may run at once, on this very CPU, and would soon wait for
    /// the domain's lock if that were still held.
    upcalls: Vec<VcpuId>,
    wakes: Vec<VcpuId>,
    /// The own VIRQ_TIMER is to be raised: it was set to a time that has passed, and no other thread need be woken for it.
    pub due: bool,
}

/// Apply `attr` on the vCPU's own thread.
pub fn apply(guest: &Guest, fd: &VcpuFd, vcpu: VcpuId, attr: VcpuAttr) {
    let set = |attr| {
        if let Err(e) = guest.accel.set_vcpu(fd, vcpu, attr, &guest.memory) {
            crate::log::limited!(warn, "vCPU {vcpu}: {attr:?}: {e}");
        }
    };
    match attr {
        VcpuAttr::TimerPort(port) => {
            guest.set_timer_port(vcpu, port);
            guest.take_timer(vcpu, fd);
            // One that runs here goes on here; KVM has the next.
            if guest.accel.has_timers() && !guest.timers.is_armed(Timer::Singleshot(vcpu)) {
                set(attr);
            }
            return;
        }
        VcpuAttr::TimerExpiry(at) => {
            return match guest.port_of_timer(vcpu).filter(|_| guest.accel.has_timers()) {
                Some(port) => {
                    guest.timers.set(Timer::Singleshot(vcpu), None);
                    set(VcpuAttr::TimerPort(Some(port)));
                    set(attr);
                }
                // KVM has none without a port, Xen has.
                None => guest.set_singleshot(vcpu, at, Some(fd)),
            };
        }
        _ => set(attr),
    }
    // A vector of its own goes before the one of all.
    let own =
        index(vcpu).and_then(|vcpu| guest.vectors.get(vcpu)).map_or(0, |own| own.load(Ordering::Acquire));
    if matches!(attr, VcpuAttr::Callback(_)) && own != 0 {
        set(VcpuAttr::UpcallVector(own));
    }
}

impl<'a> Fx<'a> {
    /// For a call from vCPU `own`, or from elsewhere.
    pub fn new(guest: &'a Guest, own: Option<(&'a VcpuFd, VcpuId)>) -> Self {
        Fx {
            guest,
            own,
            tickets: Vec::new(),
            kicks: Vec::new(),
            upcalls: Vec::new(),
            wakes: Vec::new(),
            due: false,
        }
    }

    /// What is left when the domain's lock is released: backends are kicked, whose eventfds other processes may hold and
    /// have filled, work posted to other vCPUs is awaited, and then vCPUs are interrupted. A vCPU does its own work meanwhile.
    pub fn finish(self) {
        let (guest, own) = (self.guest, self.own);
        for fds in self.kicks {
            guest.signal_backend(&fds, own.map(|(_, me)| me));
        }
        for ticket in self.tickets {
            let mut act = |mail| {
                if let Some((fd, me)) = own {
                    deliver(guest, fd, me, mail);
                }
            };
            let me = own.and_then(|(_, me)| index(me));
            guest.mailboxes.wait(ticket, me.map(|me| (me, &mut act as _)));
        }
        self.upcalls.into_iter().for_each(|vcpu| guest.upcall(vcpu));
        for vcpu in self.wakes {
            // Nobody need wait until it runs.
            let _ = guest.post(vcpu, Mail::Wake);
        }
    }

    fn attr(&mut self, vcpu: VcpuId, attr: VcpuAttr) {
        match self.own {
            Some((fd, me)) if me == vcpu => apply(self.guest, fd, vcpu, attr),
            _ => self.post(vcpu, Mail::Attr(attr)),
        }
    }

    fn post(&mut self, vcpu: VcpuId, mail: Mail) {
        self.tickets.extend(self.guest.post(vcpu, mail));
    }

    fn place_slot(&self, from: Place, to: Place, hva: u64) -> std::io::Result<()> {
        let mut slots = lock(&self.guest.slots);
        if let Place::Slot(new) = to {
            slots.set(&self.guest.vm, new.0, 4096, hva)?;
        }
        match from {
            Place::Slot(old) if from != to => slots.remove(&self.guest.vm, old.0),
            _ => Ok(()),
        }
    }

    fn place(&mut self, page: SpecialPage, gfn: Option<Gfn>) -> std::io::Result<()> {
        let memory = &self.guest.memory;
        let to = match gfn {
            None => Place::Home,
            Some(gfn) if memory.is_ram(gfn) => Place::Ram(gfn),
            Some(gfn) => Place::Slot(gfn),
        };
        let (from, hva) = memory.move_special(page, to).map_err(std::io::Error::other)?;
        if let Err(e) = self.place_slot(from, to, hva) {
            // The guest named a frame that this host cannot map: all stays as it was.
            memory.move_special(page, from).map_err(std::io::Error::other)?;
            return Err(e);
        }
        if page == SpecialPage::SharedInfo {
            let hva = memory.hva(page.home()).map_err(std::io::Error::other)?;
            self.guest.accel.shared_info(hva, gfn.map(|gfn| gfn.0))?;
        }
        Ok(())
    }
}

impl Fx<'_> {
    /// Show a frame of RAM at a frame outside it, or no longer.
    fn show(&self, at: Gfn, frame: Option<(Gfn, bool)>) -> std::io::Result<()> {
        let (memory, vm) = (&self.guest.memory, &self.guest.vm);
        let mut slots = lock(&self.guest.slots);
        let Some((frame, write)) = frame else {
            slots.remove(vm, at.0)?;
            return memory.alias(at, None).map(drop).map_err(std::io::Error::other);
        };
        let hva = memory.alias(at, Some(frame)).map_err(std::io::Error::other)?;
        slots.alias(vm, at.0, hva, write).inspect_err(|_| {
            let _ = memory.alias(at, None);
        })
    }

    /// The same with a page of another domain, which can be in RAM too.
    fn show_foreign(&self, at: Gfn, page: Option<(Foreign, bool)>) -> std::io::Result<()> {
        let (memory, vm) = (&self.guest.memory, &self.guest.vm);
        if memory.is_ram(at) {
            return memory.overlay(at, page);
        }
        let mut slots = lock(&self.guest.slots);
        let Some((_, write)) = page else {
            slots.remove(vm, at.0)?;
            return memory.place_foreign(at, None).map(drop).map_err(std::io::Error::other);
        };
        let hva = memory.place_foreign(at, page).map_err(std::io::Error::other)?;
        slots.alias(vm, at.0, hva, write).inspect_err(|_| {
            let _ = memory.place_foreign(at, None);
        })
    }
}

fn index(vcpu: VcpuId) -> Option<usize> {
    usize::try_from(vcpu).ok()
}

fn logged(what: &str, result: std::io::Result<()>) {
    if let Err(e) = result {
        crate::log::limited!(warn, "{what}: {e}");
    }
}

impl Effects for Fx<'_> {
    fn map_special(&mut self, page: SpecialPage, gfn: Option<Gfn>) -> Result<(), Errno> {
        self.place(page, gfn).map_err(|e| {
            crate::log::limited!(warn, "{page:?} at {gfn:?}: {e}");
            Errno::ENOMEM
        })
    }

    fn map_grant(&mut self, at: Gfn, frame: Option<(Gfn, bool)>) -> Result<(), Errno> {
        self.show(at, frame).map_err(|e| {
            crate::log::limited!(warn, "grant of {frame:?} at {at:?}: {e}");
            Errno::ENOMEM
        })
    }

    fn release_ram(&mut self, first: Gfn, frames: u64) {
        self.guest.memory.discard(first, frames);
    }

    fn populate_ram(&mut self, _first: Gfn, _frames: u64) -> Result<(), Errno> {
        // Given back with MADV_DONTNEED: it reads as zeros and comes back at the first touch.
        Ok(())
    }

    fn latch_long_mode(&mut self, long_mode: bool) {
        logged("long mode", self.guest.accel.latch_long_mode(long_mode));
    }

    fn set_callback(&mut self, vector: u8) {
        let told = self.guest.accel.callback(vector).unwrap_or_else(|e| {
            logged("callback", Err(e));
            None
        });
        if let Some(vector) = told {
            let all = (0..).take(self.guest.vectors.len());
            all.for_each(|vcpu| self.attr(vcpu, VcpuAttr::Callback(vector)));
        }
    }

    fn set_upcall_vector(&mut self, vcpu: VcpuId, vector: u8) {
        if let Some(known) = index(vcpu).and_then(|vcpu| self.guest.vectors.get(vcpu)) {
            known.store(vector, Ordering::Release);
        }
        self.attr(vcpu, VcpuAttr::UpcallVector(vector));
    }

    fn set_vcpu_info(&mut self, vcpu: VcpuId, gpa: Option<Gpa>) {
        if let Some(clock) = index(vcpu).and_then(|vcpu| self.guest.clocks.get(vcpu)) {
            clock.store(gpa.map_or(0, |gpa| gpa.offset(VCPU_TIME as u64).0), Ordering::Release);
        }
        self.attr(vcpu, VcpuAttr::Info(gpa));
    }

    fn set_vcpu_time_info(&mut self, vcpu: VcpuId, gpa: Option<Gpa>) -> bool {
        let kept = gpa.is_none_or(|gpa| self.guest.accel.has_time_info(vcpu, gpa, &self.guest.memory));
        if kept {
            self.attr(vcpu, VcpuAttr::TimeInfo(gpa));
        }
        kept
    }

    fn set_runstate(&mut self, vcpu: VcpuId, gpa: Option<Gpa>) {
        self.attr(vcpu, VcpuAttr::Runstate(gpa));
    }

    fn set_runstate_update_flag(&mut self, on: bool) -> bool {
        let done = self.guest.accel.runstate_update_flag(on);
        let can = done.is_ok();
        logged("runstate update flag", done);
        can
    }

    fn runstate(&mut self, vcpu: VcpuId) -> Runstate {
        let own = self.own.filter(|&(_, me)| me == vcpu);
        let told = own.and_then(|(fd, _)| self.guest.accel.runstate(fd));
        told.unwrap_or_else(|| {
            self.guest.runstate_from_thread(vcpu, self.own.is_some_and(|(_, me)| me == vcpu))
        })
    }

    fn set_timer_port(&mut self, vcpu: VcpuId, port: Option<Port>) {
        self.attr(vcpu, VcpuAttr::TimerPort(port));
    }

    fn set_singleshot(&mut self, vcpu: VcpuId, at: Option<u64>) {
        match self.guest.accel.has_timers() {
            true => self.attr(vcpu, VcpuAttr::TimerExpiry(at)),
            false => {
                let own = self.own.filter(|&(_, me)| me == vcpu).map(|(fd, _)| fd);
                let after = at.map(|at| self.guest.time_until(at, vcpu, own));
                self.due = own.is_some() && after == Some(Duration::ZERO);
                self.guest.timers.set(Timer::Singleshot(vcpu), after.filter(|_| !self.due));
            }
        }
    }

    fn set_periodic(&mut self, vcpu: VcpuId, period: Option<u64>) {
        self.guest.timers.set(Timer::Periodic(vcpu), period.map(Duration::from_nanos));
    }

    fn offload(&mut self, port: Port, how: Offload) -> bool {
        self.guest.accel.offload(port, how)
    }

    fn retract(&mut self, port: Port) {
        self.guest.accel.retract(port);
    }

    fn retract_all(&mut self) {
        self.guest.accel.retract_all();
    }

    fn set_fifo(&mut self, on: bool) {
        logged("FIFO event channels", self.guest.accel.set_fifo(on));
        // A vCPU that polls in the kernel would not hear of the other ABI's events: it comes out and polls again.
        self.guest.kick_all();
    }

    fn raise(&mut self, port: Port, vcpu: VcpuId) -> bool {
        self.guest.accel.raise(port, vcpu)
    }

    fn upcall(&mut self, vcpu: VcpuId) {
        self.upcalls.push(vcpu);
    }

    fn kick(&mut self, backend: Backend) {
        self.kicks.extend(self.guest.accel.backend(backend));
    }

    fn ask(&mut self, question: Question, dom: Domid, ask: Ask) {
        self.guest.peers.post(Order::Ask(question, dom, ask));
    }

    fn leave_peer(&mut self, backend: Backend) {
        self.guest.peers.post(Order::Leave(backend));
    }

    fn map_foreign(&mut self, at: Gfn, page: Option<(Foreign, bool)>) -> Result<(), Errno> {
        self.show_foreign(at, page).map_err(|e| {
            crate::log::limited!(warn, "{page:?} at {at:?}: {e}");
            Errno::ENOMEM
        })
    }

    fn release_foreign(&mut self, page: Foreign) {
        self.guest.peers.post(Order::Release(page));
    }

    fn wake(&mut self, vcpu: VcpuId) {
        self.wakes.push(vcpu);
    }

    fn look_at(&mut self, vcpu: VcpuId) {
        self.post(vcpu, Mail::Look);
    }

    fn vcpu_up(&mut self, vcpu: VcpuId, start: Option<&StartState>) {
        self.post(vcpu, Mail::Start(start.map(|state| Box::new(*state))));
    }

    fn vcpu_down(&mut self, vcpu: VcpuId) {
        self.post(vcpu, Mail::Halt);
    }

    fn nmi(&mut self, vcpu: VcpuId) {
        self.post(vcpu, Mail::Nmi);
    }

    fn console_write(&mut self, bytes: &[u8]) {
        self.guest.log.guest(self.guest.domid, bytes);
    }

    fn log_once(&mut self, what: &str) {
        tracing::info!("{what}");
    }

    fn set_watchdog(&mut self, id: u32, seconds: u32) {
        let after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        self.guest.timers.set(Timer::Watchdog(id), after);
    }
}
