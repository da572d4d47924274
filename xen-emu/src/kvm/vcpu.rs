//! One vCPU: its thread, the run loop, and a table of small functions, one per exit.
//!
//! A kick can never be lost between the check for work and KVM_RUN: the signal's handler runs on the vCPU's own
//! thread and sets `immediate_exit`, so the KVM_RUN that follows comes back at once.
#![expect(unsafe_code, reason = "the kick signal's handler and kvm_run.immediate_exit")]

use super::cpuid::HYPERCALL_MSR;
use super::mailbox::Flow;
use super::regs::APIC_BASE;
use super::xen_portable::MSR_EFER;
use super::{VcpuAttr, ioctl, regs, xen_portable};
use crate::core_dump::Registers;
use crate::fx::{self, Fx};
use crate::guest::{Guest, Still, lock, until};
use crate::sched;
use crate::timers::Timer;
use crate::vm::VmEvent;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    kvm_mp_state, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::unistd::gettid;
use std::cell::Cell;
use std::fmt::Write;
use std::io;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};
use xen_abi::xen::Virq;
use xen_domain::Domain;
use xen_domain::effect::{Runstate, StartState};
use xen_domain::hypercall::{Call, Cx, Outcome};
use xen_domain::mem::{Fault, Gpa, Translate};
use xen_emu_api::control::VcpuStatus;

const RFLAGS_IF: u64 = 1 << 9;
/// RUNSTATE_running, RUNSTATE_blocked.
const RUNNING: i32 = 0;
const BLOCKED: i32 = 2;
/// How long a vCPU that is down sleeps between looks for an INIT while something else wants it.
const REST: Duration = Duration::from_millis(10);
/// How long a vCPU that polls with interrupts off sleeps at most.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Work for a vCPU's own thread.
pub enum Mail {
    /// Apply this setting.
    Attr(VcpuAttr),
    /// Inject an NMI.
    Nmi,
    /// Run (VCPUOP_up): in this state, or where it has stopped.
    Start(Option<Box<StartState>>),
    /// Stop running until an INIT or a start (VCPUOP_down).
    Halt,
    /// Stay out of the guest until told otherwise.
    Still(Arc<Still>),
    /// End what [`Outcome::Block`] and [`Outcome::Ask`] began.
    Wake,
    /// Tell the domain whether this vCPU runs: an AP is started by INIT and SIPI, and taken down by halting, without
    /// an exit.
    Look,
    /// The guest's clock has been set.
    Clock,
    /// Take the singleshot timer from KVM.
    Timer,
    /// Tell the registers.
    Registers(Sender<Registers>),
}

/// Exits that reached userspace, by kind.
#[derive(Debug, Default)]
pub struct Counters {
    hypercall: AtomicU64,
    msr: AtomicU64,
    pio: AtomicU64,
    mmio: AtomicU64,
    eoi: AtomicU64,
    signal: AtomicU64,
}

impl Counters {
    /// One line per kind.
    pub fn describe(&self) -> String {
        let kinds = [
            ("hypercall", &self.hypercall),
            ("msr", &self.msr),
            ("pio", &self.pio),
            ("mmio", &self.mmio),
            ("eoi", &self.eoi),
            ("signal", &self.signal),
        ];
        let mut text = String::from("exits to userspace\n");
        for (name, count) in kinds {
            let _ = writeln!(text, "  {name:10} {}", count.load(Ordering::Relaxed));
        }
        text
    }
}

/// A vCPU's thread as others see it.
pub struct Thread {
    id: u32,
    tid: Arc<AtomicI32>,
    handle: Option<JoinHandle<()>>,
    affinity: Vec<usize>,
}

thread_local! {
    /// This vCPU's `kvm_run.immediate_exit`; null on other threads and after the vCPU is gone.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    IMMEDIATE_EXIT.with(|flag| {
        let flag = flag.get();
        if !flag.is_null() {
            // SAFETY: points into the kvm_run mapping of this thread's vCPU, which clears the pointer before
            // the mapping goes.
            unsafe { flag.write_volatile(1) };
        }
    });
}

/// Install the handler of the kick signal, once per process.
pub fn install_kick() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(io::Error::from)
}

impl Thread {
    /// Start the thread of vCPU `id`, one `among` so many. It is parked until the domain is unpaused.
    pub fn start(
        guest: &Arc<Guest>,
        id: u32,
        among: u32,
        fd: VcpuFd,
        affinity: Vec<usize>,
    ) -> io::Result<Thread> {
        let tid = Arc::new(AtomicI32::new(0));
        let (guest, cpus, told) = (guest.clone(), affinity.clone(), tid.clone());
        let handle =
            std::thread::Builder::new().name(format!("vcpu{id}")).stack_size(256 << 10).spawn(move || {
                told.store(gettid().as_raw(), Ordering::Release);
                sched::vcpu(id, &cpus, among);
                Vcpu { guest, fd, id, served: false }.run();
            })?;
        Ok(Thread { id, tid, handle: Some(handle), affinity })
    }

    /// Bring the thread out of KVM_RUN.
    pub fn kick(&self) {
        if let Some(handle) = self.handle.as_ref().filter(|handle| !handle.is_finished()) {
            // Fails only when the thread has just ended.
            let _ = handle.kill(SIGRTMIN());
        }
    }

    /// The thread has ended.
    pub fn finished(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Wait for the thread's end.
    pub fn join(&mut self) {
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            tracing::error!("vCPU {}: its thread panicked", self.id);
        }
    }

    fn proc(&self, file: &str) -> Option<String> {
        let tid = self.tid.load(Ordering::Acquire);
        std::fs::read_to_string(format!("/proc/self/task/{tid}/{file}")).ok()
    }

    /// CPU time of the thread.
    pub fn time_ns(&self) -> u64 {
        let [running, _] = sched::times(&self.proc("schedstat").unwrap_or_default(), u64::MAX);
        running
    }

    /// For `xlr list` and `vcpu-list`; whether the vCPU is online is for the caller to say.
    pub fn status(&self) -> VcpuStatus {
        let stat = self.proc("stat").unwrap_or_default();
        // proc(5): after the command in parentheses field 3 is the state, field 39 the last CPU.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        VcpuStatus {
            id: self.id,
            online: false,
            running: fields.first() == Some(&"R"),
            cpu: fields.get(36).and_then(|cpu| cpu.parse().ok()),
            time_ns: self.time_ns(),
            affinity: self.affinity.clone(),
        }
    }
}

impl Guest {
    /// The times of a vCPU as its thread's scheduler statistics tell them: an approximation for callers that
    /// are not the vCPU itself, and for `own` where KVM does not tell: it runs. When the state began is not known.
    pub fn runstate_from_thread(&self, vcpu: u32, own: bool) -> Runstate {
        let now = self.now().system_ns;
        let threads = lock(&self.threads);
        let thread = threads.iter().find(|t| t.id == vcpu);
        let runs = own || thread.is_some_and(|thread| thread.status().running);
        let schedstat = thread.and_then(|thread| thread.proc("schedstat")).unwrap_or_default();
        let [running, runnable] = sched::times(&schedstat, now);
        let state = if runs { RUNNING } else { BLOCKED };
        Runstate { state, entry_time: now, time: [running, runnable, now - running - runnable, 0] }
    }
}

struct Walker<'a>(&'a VcpuFd);

impl Translate for Walker<'_> {
    fn translate(&self, gva: u64) -> Result<Gpa, Fault> {
        let found = self.0.translate_gva(gva).map_err(|_| Fault)?;
        if found.valid == 0 { Err(Fault) } else { Ok(Gpa(found.physical_address)) }
    }
}

/// Bytes per access of a port exit; string instructions come as several accesses at once.
fn access_size(run: *const kvm_run) -> usize {
    // SAFETY: `run` is the live mapping of the vCPU's kvm_run, and for a port exit the kernel has filled `io`,
    // which does not overlap the data that kvm-ioctls hands out.
    let size = unsafe { (&raw const (*run).__bindgen_anon_1.io.size).read_volatile() };
    usize::from(size).max(1)
}

struct Vcpu {
    guest: Arc<Guest>,
    fd: VcpuFd,
    id: u32,
    /// Mail has been served during the current hypercall.
    served: bool,
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(null_mut());
        if std::thread::panicking() {
            self.guest.shut_down(VmEvent::Failed(format!("vCPU {}: its thread panicked", self.id)));
        }
        self.guest.mailboxes.gone(self.index());
    }
}

impl Vcpu {
    fn index(&self) -> usize {
        usize::try_from(self.id).unwrap_or(usize::MAX)
    }

    fn run(&mut self) {
        IMMEDIATE_EXIT.set(&raw mut self.fd.get_kvm_run().immediate_exit);
        let guest = self.guest.clone();
        loop {
            if guest.mailboxes.wanted(self.index()) && self.serve() == Flow::Stop {
                return;
            }
            if self.enter() == Flow::Stop {
                return;
            }
        }
    }

    fn serve(&mut self) -> Flow {
        self.served = true;
        self.settle();
        let (guest, fd, id) = (&self.guest, &self.fd, self.id);
        guest.mailboxes.serve(self.index(), &mut |mail| deliver(guest, fd, id, mail))
    }

    fn settle(&mut self) {
        if let Err(e) = self.guest.accel.settle(&mut self.fd) {
            self.fail(&format!("the result of a hypercall: {e}"));
        }
    }

    /// Run the guest up to one exit and handle it.
    fn enter(&mut self) -> Flow {
        let guest = &self.guest;
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let run = &raw const *self.fd.get_kvm_run();
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&guest.exits.pio);
                let now = guest.machine_ns();
                let mut machine = lock(&guest.machine);
                data.chunks_mut(access_size(run)).for_each(|data| machine.pio_read(port, data, now));
            }
            Ok(VcpuExit::IoOut(port, [_])) if Some(port) == guest.accel.hypercall_port() => {
                count(&guest.exits.hypercall);
                return self.hypercall();
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&guest.exits.pio);
                let mut actions = Vec::new();
                {
                    let mut machine = lock(&guest.machine);
                    for data in data.chunks(access_size(run)) {
                        machine.pio_write(port, data, &mut actions);
                    }
                }
                guest.act(actions);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&guest.exits.mmio);
                lock(&guest.machine).mmio_read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&guest.exits.mmio);
                let mut actions = Vec::new();
                lock(&guest.machine).mmio_write(address, data, &mut actions);
                guest.act(actions);
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                count(&guest.exits.eoi);
                let mut actions = Vec::new();
                lock(&guest.machine).eoi(vector, &mut actions);
                guest.act(actions);
            }
            Ok(VcpuExit::Unsupported(kvm_bindings::KVM_EXIT_XEN)) => {
                count(&guest.exits.hypercall);
                return self.hypercall();
            }
            Ok(VcpuExit::X86Wrmsr(write)) => {
                count(&guest.exits.msr);
                let (index, data) = (write.index, write.data);
                let done = match index {
                    HYPERCALL_MSR => {
                        self.fd.get_sregs().is_ok_and(|sregs| guest.hypercall_page(data, regs::width(&sregs)))
                    }
                    MSR_EFER => xen_portable::write_efer(guest, &self.fd, data),
                    APIC_BASE => self.apic_base(data),
                    _ => false,
                };
                if !done {
                    ioctl::refuse_msr(&mut self.fd);
                }
            }
            Ok(VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
            Ok(VcpuExit::Shutdown) => self.fail("triple fault"),
            Ok(exit) => {
                let exit = format!("{exit:?}");
                self.fail(&exit);
            }
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
                count(&guest.exits.signal);
                self.fd.set_kvm_immediate_exit(0);
                if e.errno() == libc::EAGAIN {
                    self.rest();
                }
            }
            Err(e) => self.fail(&format!("KVM_RUN: {e}")),
        }
        Flow::Run
    }

    /// KVM_RUN of a vCPU that is down comes back for an interrupt, an NMI or a timer that such a vCPU cannot take, and would again
    /// at once. An INIT, for which it comes back too, is no reason to wait.
    fn rest(&self) {
        if self.fd.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_UNINITIALIZED) {
            self.guest.mailboxes.sleep(self.index(), REST);
        }
    }

    /// The guest can go no further: end the domain as crashed, with the reason and the registers in the log.
    fn fail(&self, why: &str) {
        let text = format!("vCPU {}: {why}\n{}", self.id, regs::dump(&self.fd));
        self.guest.shut_down(VmEvent::Failed(text));
    }

    fn hypercall(&mut self) -> Flow {
        let guest = self.guest.clone();
        let Some(mut call) = guest.accel.decode(&mut self.fd, self.id) else {
            self.fail("a Xen exit that is no hypercall");
            return Flow::Run;
        };
        if guest.accel.attend(&self.fd, self.id, &guest.memory) {
            guest.remind(self.id);
        }
        if guest.accel.awaits_lapics() && regs::lapic_is_on(&self.fd) {
            self.lapics_on();
        }
        if call.is_yield() {
            std::thread::yield_now();
        }
        self.served = false;
        let mut fresh = true;
        let result = loop {
            match self.dispatch(&call, std::mem::take(&mut fresh)) {
                Outcome::Done(value) => break value,
                Outcome::Again(next) => {
                    call = next;
                    if self.guest.mailboxes.wanted(self.index()) && self.serve() == Flow::Stop {
                        return Flow::Stop;
                    }
                }
                Outcome::Ask(next) => {
                    call = next;
                    if self.await_answer() == Flow::Stop {
                        return Flow::Stop;
                    }
                }
                Outcome::Block(until) => {
                    if self.block(until.deadline) == Flow::Stop {
                        return Flow::Stop;
                    }
                    break 0;
                }
                Outcome::Exit(reason) => {
                    self.guest.shut_down(VmEvent::Shutdown(reason.0));
                    break 0;
                }
            }
        };
        if let Err(e) = guest.accel.complete(&mut self.fd, result) {
            self.fail(&format!("the result of a hypercall: {e}"));
        }
        if self.served {
            self.settle();
        }
        Flow::Run
    }

    /// The guest has written IA32_APIC_BASE; false where that is #GP.
    fn apic_base(&self, value: u64) -> bool {
        let Ok(x2apic) = regs::set_apic_base(&self.fd, value) else { return false };
        if x2apic {
            self.lapics_on();
        }
        true
    }

    fn lapics_on(&self) {
        if self.guest.accel.lapics_on() {
            self.with_domain(|domain, cx| domain.announce_callback(cx));
        }
    }

    /// What the core says. `fresh` from the guest the vCPU was, unless another one has taken it down just now.
    fn dispatch(&self, call: &Call, fresh: bool) -> Outcome {
        self.with_domain(|domain, cx| {
            if fresh && !domain.vcpu_online(self.id) {
                domain.note_vcpu_online(self.id, true, (cx.now)().system_ns);
            }
            domain.hypercall(call, cx)
        })
    }

    /// Let the core work for this vCPU.
    fn with_domain<R>(&self, f: impl FnOnce(&mut Domain, &mut Cx<'_>) -> R) -> R {
        let guest = &*self.guest;
        let now = || guest.now();
        let mut fx = Fx::new(guest, Some((&self.fd, self.id)));
        let result = {
            let mut domain = lock(&guest.domain);
            let mut cx = Cx { mem: &*guest.memory, gva: &Walker(&self.fd), fx: &mut fx, now: &now };
            let result = f(&mut domain, &mut cx);
            if std::mem::take(&mut fx.due) {
                let mut cx = Cx { mem: &*guest.memory, gva: &Walker(&self.fd), fx: &mut fx, now: &now };
                domain.raise_virq(Virq::TIMER.0, self.id, &mut cx);
            }
            result
        };
        fx.finish();
        result
    }

    /// Another domain has been asked; meanwhile the vCPU does what others want of it.
    fn await_answer(&mut self) -> Flow {
        while !lock(&self.guest.domain).answered(self.id) {
            if self.guest.mailboxes.wanted(self.index()) && self.serve() == Flow::Stop {
                return Flow::Stop;
            }
            self.guest.mailboxes.sleep(self.index(), LOOK_AGAIN);
        }
        Flow::Run
    }

    /// SCHEDOP_block, and SCHEDOP_poll where the kernel does not handle it: the vCPU halts until an interrupt comes or
    /// mail wakes it, which the core posts for the event and the timers for the deadline. Mail that came before it
    /// halts is still read before it enters the guest. With interrupts off only mail can wake it, which it sleeps for
    /// here: until the event or the deadline comes, or the vCPU is wanted for something else; without a deadline the guest
    /// looks for itself now and then.
    fn block(&mut self, deadline: Option<u64>) -> Flow {
        let now = self.guest.system_ns(&self.fd, self.id);
        let left = deadline.map(|deadline| until(deadline, now));
        let deaf = self.fd.get_regs().is_ok_and(|regs| regs.rflags & RFLAGS_IF == 0);
        // The timeout of an earlier poll must not end this one.
        self.guest.timers.set(Timer::Poll(self.id), left.filter(|_| !deaf));
        if deaf {
            return self.sleep_deaf(deadline);
        }
        let halted = kvm_mp_state { mp_state: KVM_MP_STATE_HALTED };
        if let Err(e) = self.fd.set_mp_state(halted) {
            crate::log::limited!(warn, "vCPU {}: cannot halt: {e}", self.id);
        }
        Flow::Run
    }

    fn sleep_deaf(&mut self, deadline: Option<u64>) -> Flow {
        loop {
            let now = self.guest.system_ns(&self.fd, self.id);
            let left = deadline.map_or(LOOK_AGAIN, |deadline| until(deadline, now));
            self.guest.mailboxes.sleep(self.index(), left.min(LOOK_AGAIN));
            if self.guest.mailboxes.wanted(self.index()) && self.serve() == Flow::Stop {
                return Flow::Stop;
            }
            let over = deadline.is_none() || left.is_zero() || !lock(&self.guest.domain).waits(self.id);
            if over || self.called_away() {
                return Flow::Run;
            }
        }
    }

    /// It has an NMI to take, or is halted or has an INIT: that is for the guest, or KVM, to see.
    fn called_away(&self) -> bool {
        let nmi = self.fd.get_vcpu_events().is_ok_and(|e| e.nmi.pending != 0 || e.nmi.injected != 0);
        nmi || self.fd.get_mp_state().is_ok_and(|state| state.mp_state != KVM_MP_STATE_RUNNABLE)
    }
}

/// Do one piece of mail on the vCPU's own thread.
pub fn deliver(guest: &Guest, fd: &VcpuFd, id: u32, mail: Mail) {
    match mail {
        Mail::Attr(attr) => fx::apply(guest, fd, id, attr),
        Mail::Still(still) => still.arrive(),
        Mail::Wake => wake(fd, id),
        Mail::Timer => fx::apply(guest, fd, id, VcpuAttr::TimerPort(guest.port_of_timer(id))),
        Mail::Clock => guest.accel.clock_set(fd, id, &guest.memory),
        Mail::Registers(to) => match regs::of_core(fd) {
            // Who asks waits for it.
            Ok(registers) => drop(to.send(registers)),
            Err(e) => crate::log::limited!(warn, "vCPU {id}: no registers: {e}"),
        },
        Mail::Start(state) => {
            let running = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
            let set = state.map_or(Ok(()), |state| regs::start(fd, &state));
            if let Err(e) = set.and_then(|()| fd.set_mp_state(running).map_err(io::Error::from)) {
                crate::log::limited!(warn, "vCPU {id}: cannot be started: {e}");
                lock(&guest.domain).note_vcpu_refused(id, guest.now().system_ns);
            }
        }
        Mail::Nmi => {
            if let Err(e) = fd.nmi() {
                crate::log::limited!(warn, "vCPU {id}: NMI: {e}");
            }
        }
        Mail::Halt => {
            let down = kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED };
            if let Err(e) = fd.set_mp_state(down) {
                crate::log::limited!(warn, "vCPU {id}: cannot be taken down: {e}");
            }
            lock(&guest.domain).note_vcpu_halted(id);
        }
        Mail::Look => {
            let (Ok(mp), Ok(regs)) = (fd.get_mp_state(), fd.get_regs()) else { return };
            let mut domain = lock(&guest.domain);
            let now = guest.now().system_ns;
            let online = match mp.mp_state {
                KVM_MP_STATE_INIT_RECEIVED => return domain.note_vcpu_init(id, now),
                KVM_MP_STATE_UNINITIALIZED => false,
                KVM_MP_STATE_HALTED => regs.rflags & RFLAGS_IF != 0,
                _ => true,
            };
            domain.note_vcpu_online(id, online, now);
        }
    }
}

/// Let a vCPU that has halted go on, on its own thread.
fn wake(fd: &VcpuFd, id: u32) {
    let running = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    let halted = fd.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_HALTED);
    if halted && let Err(e) = fd.set_mp_state(running) {
        crate::log::limited!(warn, "vCPU {id}: cannot be woken: {e}");
    }
}
