//! The running machine: what all its threads share, and how it is paused, stopped and described.
//!
//! Lock order: `domain`, then `threads`, then `machine`, then `slots`, then the accelerator's own. No lock is held across anything
//! that blocks: work for another vCPU is posted under the domain's lock and awaited after it.

use crate::clock::Clock;
use crate::core_dump::{self, Registers};
use crate::forward::Forward;
use crate::fx::Fx;
use crate::kvm::backends::BackendFds;
use crate::kvm::hypercall_page;
use crate::kvm::ioctl::take;
use crate::kvm::mailbox::{Mailboxes, Ticket};
use crate::kvm::pvclock;
use crate::kvm::vcpu::{self, Mail, Thread};
use crate::kvm::vm::Slots;
use crate::kvm::{Interrupt, XenAccel, cpuid::apic_id};
use crate::log::Dmesg;
use crate::machine::{Action, Machine};
use crate::memory::Memory;
use crate::peers::{Order, Peers};
use crate::timers::{Timer, Timers};
use crate::vm::{Vm, VmEvent};
use calloop::channel::Sender;
use kvm_bindings::kvm_msi;
use kvm_ioctls::{VcpuFd, VmFd};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use xen_abi::errno::Errno;
use xen_domain::Domain;
use xen_domain::effect::{Backend, Port};
use xen_domain::hypercall::{Cx, Width};
use xen_domain::mem::{Gpa, GuestMem, NoCaller};
use xen_domain::time::Now;
use xen_emu_api::config::reason;
use xen_emu_api::control::VcpuStatus;

/// What every thread of the domain shares.
pub struct Guest {
    /// The virtual machine.
    pub vm: Arc<VmFd>,
    /// Guest memory.
    pub memory: Arc<Memory>,
    /// KVM's part of Xen's interfaces.
    pub accel: Box<dyn XenAccel>,
    /// Xen semantics.
    pub domain: Mutex<Domain>,
    /// The few emulated devices.
    pub machine: Mutex<Machine>,
    /// Memory slots.
    pub slots: Mutex<Slots>,
    /// Whether system time stands still.
    pub clock: Clock,
    /// Pausing, stopping, and work for vCPUs.
    pub mailboxes: Mailboxes<Mail>,
    /// Where each vCPU has its clock, a vcpu_time_info; 0 = nowhere yet.
    pub clocks: Vec<AtomicU64>,
    /// Per-vCPU upcall vectors; 0 = none set.
    pub vectors: Vec<AtomicU8>,
    /// Ports of the vCPUs' VIRQ_TIMER; 0 = none.
    pub timer_ports: Vec<AtomicU32>,
    /// How often in a row each vCPU's local APIC has refused an upcall.
    pub refused: Vec<AtomicU32>,
    /// Notifications of backends that the kernel does not carry.
    pub forward: Arc<Forward>,
    /// Timers that the kernel does not run.
    pub timers: Timers,
    /// Other domains of this host.
    pub peers: Peers,
    /// The threads of the three above.
    pub workers: Mutex<Vec<JoinHandle<()>>>,
    /// To the main thread.
    pub events: Mutex<Sender<VmEvent>>,
    /// Where the guest's debug output goes.
    pub log: Dmesg,
    /// Domain id.
    pub domid: u16,
    /// The vCPU threads.
    pub threads: Mutex<Vec<Thread>>,
    /// When the machine was made; its devices count time from here.
    pub started: Instant,
    /// Exits to userspace, by kind.
    pub exits: vcpu::Counters,
}

/// A moment in which no vCPU is in the guest or in a hypercall.
#[derive(Default)]
pub struct Still {
    /// How many vCPUs stand still, and whether they may go on.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Still {
    /// On a vCPU's thread: stands still until it may go on.
    pub fn arrive(&self) {
        let mut state = lock(&self.state);
        state.0 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, over)| !*over));
    }

    /// Waits until so many stand still, a little while.
    fn await_some(&self, count: usize) -> bool {
        let state = lock(&self.state);
        let waited = self.changed.wait_timeout_while(state, LOOK_AROUND, |(here, _)| *here < count);
        waited.unwrap_or_else(PoisonError::into_inner).0.0 >= count
    }

    fn end(&self) {
        lock(&self.state).1 = true;
        self.changed.notify_all();
    }
}

/// How long vCPUs may take to stand still, in steps.
const STAND_STILL: Duration = Duration::from_secs(5);
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// Pages beside RAM that a domain is charged for, as under Xen: libxl gives a PVH guest eight special pages.
const SPECIAL_PAGES: u64 = 8;

/// Those of the store and of the console in a domain that has no others yet.
const FIRST_PORTS: [Port; 2] = [1, 2];

/// MSI address of the LAPIC with id 0, physical destination.
const LAPIC_MSI: u64 = 0xfee0_0000;
/// After how long a refused upcall is tried again, at first; each time twice as long, up to 64 times.
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// How long another domain's process may keep a vCPU that signals it.
const HANGS: Duration = Duration::from_millis(10);

/// Lock without caring whether another thread died with it: the state behind is always whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long it is until a system time; none at all until a negative one, as Xen's are signed.
pub fn until(at: u64, now: u64) -> Duration {
    let negative = i64::try_from(at).is_err();
    Duration::from_nanos(if negative { 0 } else { at.saturating_sub(now) })
}

impl Guest {
    /// The clocks as the guest sees them.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            system_ns: self.vm.get_clock().map_or(0, |clock| clock.clock),
            wall_ns: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// System time by a vCPU's own clock where it has one, nanoseconds. On its own thread.
    pub fn system_ns(&self, fd: &VcpuFd, vcpu: u32) -> u64 {
        let clock = usize::try_from(vcpu).ok().and_then(|vcpu| self.clocks.get(vcpu));
        let at = clock.map_or(0, |clock| clock.load(Ordering::Acquire));
        let read = (at != 0).then(|| pvclock::system_ns(fd, &self.memory, Gpa(at))).flatten();
        read.unwrap_or_else(|| self.now().system_ns)
    }

    /// The devices' clock, nanoseconds.
    pub fn machine_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Tell the main thread something; it may be gone already.
    pub fn tell(&self, event: VmEvent) {
        let _ = lock(&self.events).send(event);
    }

    /// The domain has shut down: stop every vCPU and say so once.
    pub fn shut_down(&self, event: VmEvent) {
        if self.mailboxes.shut_down() {
            self.kick_all();
            self.tell(event);
        }
    }

    /// Bring a vCPU out of KVM_RUN.
    pub fn kick(&self, vcpu: usize) {
        if let Some(thread) = lock(&self.threads).get(vcpu) {
            thread.kick();
        }
    }

    /// Bring all vCPUs out of KVM_RUN.
    pub fn kick_all(&self) {
        lock(&self.threads).iter().for_each(Thread::kick);
    }

    /// Leave work for a vCPU and bring it out of KVM_RUN.
    pub fn post(&self, vcpu: u32, mail: Mail) -> Option<Ticket> {
        let vcpu = usize::try_from(vcpu).ok()?;
        let ticket = self.mailboxes.post(vcpu, mail);
        self.kick(vcpu);
        ticket
    }

    /// Run `act` while no vCPU is in the guest. Not with a lock held that a vCPU may want.
    ///
    /// # Errors
    /// They do not stand still, or what `act` says.
    pub fn standing_still(&self, act: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let still = Arc::new(Still::default());
        let vcpus = (0..).take(lock(&self.threads).len());
        let count = vcpus.filter_map(|vcpu| self.post(vcpu, Mail::Still(still.clone()))).count();
        let until = Instant::now() + STAND_STILL;
        let mut all = still.await_some(count);
        while !all && !self.mailboxes.stopping() && Instant::now() < until {
            all = still.await_some(count);
        }
        let done = if all { act() } else { Err(io::Error::other("a vCPU does not stand still")) };
        still.end();
        done
    }

    /// Which vCPUs run, in the sense of VCPUOP_is_up: started, and not halted with interrupts off.
    pub fn online(&self) -> Vec<bool> {
        let all = (0..).take(lock(&self.threads).len());
        let tickets: Vec<_> = all.clone().filter_map(|vcpu| self.post(vcpu, Mail::Look)).collect();
        tickets.into_iter().for_each(|ticket| self.mailboxes.wait(ticket, None));
        let online: Vec<bool> = {
            let domain = lock(&self.domain);
            all.map(|vcpu| domain.vcpu_online(vcpu)).collect()
        };
        if !online.contains(&true) && self.mailboxes.running() {
            // KVM never reports this: a guest without `\_S5` has powered off.
            tracing::info!("all vCPUs are halted with interrupts off: the guest has powered off");
            self.shut_down(VmEvent::Shutdown(reason::POWEROFF));
        }
        online
    }

    /// Run `f` on the domain from a thread that is no vCPU, and wait until its effects are there.
    pub fn with_domain<R>(&self, f: impl FnOnce(&mut Domain, &mut Cx<'_>) -> R) -> R {
        let now = || self.now();
        let mut fx = Fx::new(self, None);
        let result = {
            let mut domain = lock(&self.domain);
            let mut cx = Cx { mem: &*self.memory, gva: &NoCaller, fx: &mut fx, now: &now };
            f(&mut domain, &mut cx)
        };
        fx.finish();
        result
    }

    /// Raises a backend's port where it has signalled and no other listener was faster. Who looks has the domain's lock: what was
    /// signalled is nowhere but in the eventfd or in the port.
    pub fn take_signal(&self, from: Backend, domain: &mut Domain, cx: &mut Cx<'_>) {
        if self.accel.backend(from).is_some_and(|fds| take(&fds.notify)) {
            domain.raise_backend(from, cx);
        }
    }

    /// Run a vCPU's singleshot VIRQ_TIMER here: raised at this system time, or never. `own` on the vCPU's own thread.
    pub fn set_singleshot(&self, vcpu: u32, at: Option<u64>, own: Option<&VcpuFd>) {
        let after = at.map(|at| self.time_until(at, vcpu, own));
        self.timers.set(Timer::Singleshot(vcpu), after);
    }

    /// KVM lets go of a vCPU's singleshot timer, on its own thread; one that runs goes on here. KVM has the next one when that is
    /// set, which comes to userspace, because KVM knows no port meanwhile.
    pub fn take_timer(&self, vcpu: u32, fd: &VcpuFd) {
        match self.accel.take_timer(fd) {
            Ok(None) => {}
            Ok(running) => self.set_singleshot(vcpu, running, Some(fd)),
            Err(e) => crate::log::limited!(warn, "vCPU {vcpu}: its timer stays in the kernel: {e}"),
        }
    }

    /// Where a vCPU's VIRQ_TIMER is bound from now on. On its own thread.
    pub fn set_timer_port(&self, vcpu: u32, port: Option<Port>) {
        if let Some(known) = usize::try_from(vcpu).ok().and_then(|vcpu| self.timer_ports.get(vcpu)) {
            known.store(port.unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// Where it is bound.
    pub fn port_of_timer(&self, vcpu: u32) -> Option<Port> {
        let known = self.timer_ports.get(usize::try_from(vcpu).ok()?)?;
        Some(known.load(Ordering::Relaxed)).filter(|&port| port != 0)
    }

    /// How long it is until this system time of a vCPU; `own` on its own thread.
    pub fn time_until(&self, at: u64, vcpu: u32, own: Option<&VcpuFd>) -> Duration {
        let now = own.map_or_else(|| self.now().system_ns, |fd| self.system_ns(fd, vcpu));
        until(at, now)
    }

    /// A vCPU's registers; zeros where there are none.
    fn registers(&self, vcpu: u32) -> Registers {
        let (to, from) = mpsc::channel();
        if let Some(ticket) = self.post(vcpu, Mail::Registers(to)) {
            self.mailboxes.wait(ticket, None);
        }
        from.try_recv().unwrap_or([0; 27])
    }

    /// Do what the devices ask for.
    pub fn act(&self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Msi { address, data } => self.msi(address, data),
                Action::Route { pin, msi } => {
                    if let Err(e) = self.accel.route_ioapic(pin, msi) {
                        crate::log::limited!(warn, "IOAPIC pin {pin} is not routed: {e}");
                    }
                }
                Action::PowerOff => self.shut_down(VmEvent::Shutdown(reason::POWEROFF)),
                Action::Reset => self.shut_down(VmEvent::Shutdown(reason::REBOOT)),
                Action::Debug(bytes) => self.log.guest(self.domid, &bytes),
            }
        }
    }

    /// Signal a backend, without waiting: a timer's signal ends a write of vCPU `own` that does.
    pub fn signal_backend(&self, fds: &BackendFds, own: Option<u32>) {
        fds.signal(|on| {
            if let Some(vcpu) = own {
                self.timers.set(Timer::Signalling(vcpu), on.then_some(HANGS));
            }
        });
    }

    /// Interrupt a vCPU whose evtchn_upcall_pending has just gone from 0 to 1. A local APIC that is disabled takes
    /// nothing: then it is tried again, as long as the flag is set.
    pub fn upcall(&self, vcpu: u32) {
        let Ok(index) = usize::try_from(vcpu) else { return };
        let (Some(own), Some(refused)) = (self.vectors.get(index), self.refused.get(index)) else { return };
        match self.accel.interrupt(own.load(Ordering::Acquire)) {
            Interrupt::None => {}
            Interrupt::Kick => self.kick(index),
            Interrupt::Vector(vector) => {
                self.accel.wakes(vcpu, &self.memory);
                if self.signal(LAPIC_MSI | u64::from(apic_id(vcpu)) << 12, vector.into()).is_ok_and(|n| n > 0)
                {
                    if refused.swap(0, Ordering::AcqRel) > 0 {
                        self.timers.set(Timer::Upcall(vcpu), None);
                    }
                    return;
                }
                let times = refused.fetch_add(1, Ordering::Relaxed).min(6);
                self.timers.set(Timer::Upcall(vcpu), Some(TRY_AGAIN * (1 << times)));
            }
        }
    }

    /// Interrupt a vCPU again whose local APIC has refused it, unless a later interrupt was taken meanwhile: the flag would be
    /// set by what that one has brought.
    pub fn try_again(&self, vcpu: u32) {
        let refused = usize::try_from(vcpu).ok().and_then(|vcpu| self.refused.get(vcpu));
        self.with_domain(|domain, cx| {
            if refused.is_some_and(|refused| refused.load(Ordering::Acquire) > 0) {
                domain.remind_upcall(vcpu, cx);
            }
        });
    }

    /// Interrupt a vCPU again if its evtchn_upcall_pending is still set.
    pub fn remind(&self, vcpu: u32) {
        self.with_domain(|domain, cx| domain.remind_upcall(vcpu, cx));
    }

    /// Write the hypercall page where the guest wants it; false where there is no memory of its, or it asks for a
    /// further page.
    pub fn hypercall_page(&self, at: u64, width: Width) -> bool {
        let at = Gpa(at);
        // Beyond what a guest can name there are pages that are made when they are first touched.
        let there = at.0 & 0xfff == 0 && lock(&self.domain).has_ram(at.gfn());
        let stubs = hypercall_page::stubs(self.accel.hypercall_instruction());
        if !there || self.memory.write(at, &stubs).is_err() {
            return false;
        }
        self.with_domain(|domain, cx| domain.hypercall_page_written(width, cx));
        true
    }

    /// Send a message-signalled interrupt: how many local APICs have taken it.
    #[expect(clippy::cast_possible_truncation, reason = "the low and high half")]
    fn signal(&self, address: u64, data: u32) -> Result<i32, kvm_ioctls::Error> {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        self.vm.signal_msi(msi)
    }

    /// Send a message-signalled interrupt of a device.
    pub fn msi(&self, address: u64, data: u32) {
        if let Err(e) = self.signal(address, data) {
            crate::log::limited!(warn, "MSI {address:#x}/{data:#x}: {e}");
        }
    }
}

impl Vm for Guest {
    fn pause(&self) {
        self.mailboxes.pause(true);
        self.kick_all();
        self.mailboxes.await_parked();
        self.stop_clock();
    }

    fn unpause(&self) {
        self.start_clock();
        self.mailboxes.pause(false);
    }

    fn paused(&self) -> bool {
        self.mailboxes.paused()
    }

    fn power_button(&self) -> Result<(), String> {
        let mut actions = Vec::new();
        let pressed = lock(&self.machine).press_power_button(&mut actions);
        self.act(actions);
        pressed
    }

    fn nmi(&self, vcpu: u32) -> Result<(), String> {
        let ticket = self.post(vcpu, Mail::Nmi).ok_or_else(|| format!("there is no vCPU {vcpu}"))?;
        self.mailboxes.wait(ticket, None);
        Ok(())
    }

    fn vcpus(&self) -> Vec<VcpuStatus> {
        // The threads first: a look at the vCPUs wakes them all.
        let threads: Vec<_> = lock(&self.threads).iter().map(Thread::status).collect();
        let online = self.online();
        threads.into_iter().zip(online).map(|(status, online)| VcpuStatus { online, ..status }).collect()
    }

    fn memory_kib(&self) -> u64 {
        (lock(&self.domain).pages() + SPECIAL_PAGES) * 4
    }

    fn backend(&self) -> &'static str {
        self.accel.name()
    }

    fn describe(&self, path: &str) -> String {
        match path {
            "exits" => self.exits.describe(),
            "machine" => lock(&self.machine).describe(),
            "backend" => format!("backend {}\n", self.backend()),
            "" => [
                self.describe("backend"),
                lock(&self.domain).describe(""),
                self.exits.describe(),
                lock(&self.machine).describe(),
            ]
            .join("\n"),
            path => lock(&self.domain).describe(path),
        }
    }

    fn dump_core(&self, path: &Path, stop: &AtomicBool) -> io::Result<()> {
        let paused = self.paused();
        self.pause();
        let vcpus = lock(&self.threads).len();
        let vcpus: Vec<Registers> = (0..).take(vcpus).map(|vcpu| self.registers(vcpu)).collect();
        let regions: Vec<_> =
            self.memory.regions().iter().map(|region| (region.base, region.size())).collect();
        let written = core_dump::write(path, &*self.memory, &regions, &vcpus, stop);
        if !paused {
            self.unpause();
        }
        written
    }

    fn soft_reset(&self) -> Result<(), String> {
        if self.accel.hypercall_port().is_some() {
            return Err("the portable backend knows the hypercalls of the first kernel only".into());
        }
        self.mailboxes.await_parked();
        for (id, refused) in (0..).zip(&self.refused) {
            refused.store(0, Ordering::Release);
            self.timers.set(Timer::Upcall(id), None);
            self.timers.set(Timer::Poll(id), None);
            self.timers.set(Timer::Singleshot(id), None);
        }
        let connected: Result<_, Errno> = self.with_domain(|domain, cx| {
            domain.soft_reset(cx)?;
            Ok([domain.connect_backend(Backend::Store, cx)?, domain.connect_backend(Backend::Console, cx)?])
        });
        match connected {
            // The ports that the store knows.
            Ok(ports) if ports == FIRST_PORTS => {}
            Ok(ports) => return Err(format!("store and console have got ports {ports:?}")),
            Err(e) => return Err(format!("the machine cannot undo what the guest has done: {e:?}")),
        }
        self.mailboxes.revive();
        Ok(())
    }

    fn stop(&self) {
        self.mailboxes.stop();
        self.timers.stop();
        self.forward.stop();
        self.peers.post(Order::Stop);
        let mut threads = std::mem::take(&mut *lock(&self.threads));
        // A thread between its check and KVM_RUN misses no kick (see kvm::vcpu), but one that is just being
        // started may: repeat until all are gone.
        while threads.iter().any(|thread| !thread.finished()) {
            threads.iter().for_each(Thread::kick);
            std::thread::sleep(Duration::from_millis(1));
        }
        threads.iter_mut().for_each(Thread::join);
        for worker in std::mem::take(&mut *lock(&self.workers)) {
            if worker.join().is_err() {
                tracing::error!("a thread of the domain panicked");
            }
        }
        // The next domain may want the memory before this process is gone.
        self.memory.discard_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_have_passed_or_are_negative_are_due_at_once() {
        let ns = Duration::from_nanos;
        assert_eq!([until(7, 5), until(5, 5), until(3, 5)], [ns(2), ns(0), ns(0)]);
        assert_eq!(until(i64::MAX.unsigned_abs(), 7), ns(i64::MAX.unsigned_abs() - 7));
        assert_eq!([until(1 << 63, 5), until(u64::MAX, 5)], [ns(0); 2]);
    }
}
