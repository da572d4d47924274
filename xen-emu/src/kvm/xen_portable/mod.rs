//! The portable backend: Xen's interfaces on any KVM from Linux 5.10, without KVM_XEN.
//!
//! Hypercalls are OUTs to a port, written into the hypercall page or, by [`crate::boot::rewrite`], over the instructions
//! of a kernel that uses none. Upcalls are messages to local APICs, the clock is KVM's own, kept in vcpu_info, and
//! everything else happens in userspace.

mod areas;
mod calls;
mod loaded;

pub use calls::HYPERCALL_PORT;
pub use loaded::{MSR_EFER, write_efer};

use super::backends::{Backends, Carrier};
use super::cpuid::HYPERCALL_MSR;
use super::irq::{Route, Routes};
use super::{HostError, Interrupt, VcpuAttr, XenAccel, auto_eoi, ioctl, pvclock};
use crate::forward::Forward;
use crate::log::limited;
use crate::memory::Memory;
use areas::Areas;
use kvm_bindings::{KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS};
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuFd, VmFd};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xen_abi::Width;
use xen_domain::effect::{Offload, Port, VcpuId};
use xen_domain::hypercall::Call;
use xen_domain::mem::Gpa;

/// Without these the backend cannot work. Of KVM_CAP_SYNC_REGS two bits are needed.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
    (Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR"),
    (Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
];

/// A boot loader and what it starts write EFER once or twice; more than this does a guest that has something else in mind.
const LOOKS: u32 = 16;

/// What the backend finds on a host beyond what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offers {
    /// KVM_CAP_HYPERV_SYNIC2: interrupts without an EOI, for the global callback vector.
    pub auto_eoi: bool,
}

fn has(kvm: &Kvm, cap: Cap) -> bool {
    let bits = match cap {
        Cap::SyncRegs => KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS,
        _ => 0,
    };
    let found = u32::try_from(kvm.check_extension_int(cap)).unwrap_or(0);
    found > 0 && found & bits == bits
}

/// Whether the host has all that is needed.
///
/// # Errors
/// What it lacks.
pub fn check(kvm: &Kvm) -> Result<Offers, HostError> {
    let missing: Vec<_> = NEEDED.iter().filter(|(cap, _)| !has(kvm, *cap)).map(|(_, name)| *name).collect();
    match missing.as_slice() {
        [] => Ok(Offers { auto_eoi: auto_eoi::offered(kvm) }),
        _ => Err(HostError::NotPortable(missing)),
    }
}

/// Those of the capabilities that matter here which a host has, for `xlr info`.
pub fn capabilities(kvm: &Kvm) -> Vec<&'static str> {
    let all = NEEDED.into_iter().chain([(Cap::HypervSynic2, "KVM_CAP_HYPERV_SYNIC2")]);
    all.filter(|(cap, _)| has(kvm, *cap)).map(|(_, name)| name).collect()
}

/// See the module.
pub struct XenPortable {
    vm: Arc<VmFd>,
    offers: Offers,
    backends: Backends,
    routes: Mutex<Routes>,
    long_mode: AtomicBool,
    /// How often memory is looked through for a kernel yet.
    looks: Mutex<u32>,
    update_flag: AtomicBool,
    /// The global callback vector; 0 = none.
    callback: AtomicU8,
    vcpus: Vec<Mutex<Areas>>,
}

impl XenPortable {
    /// Have `vm` report writes to the hypercall page's MSR.
    ///
    /// With `watch` a Linux that a boot loader in the guest starts is looked for, as [`super::XenAccel::watch`] tells.
    pub fn new(
        vm: Arc<VmFd>,
        offers: Offers,
        vcpus: u32,
        forward: Arc<Forward>,
        watch: bool,
    ) -> io::Result<Self> {
        ioctl::trap_writes(&vm, if watch { &[HYPERCALL_MSR, MSR_EFER] } else { &[HYPERCALL_MSR] })?;
        Ok(XenPortable {
            backends: Backends::new(vm.clone(), forward, Carrier::Forward)?,
            vm,
            offers,
            routes: Mutex::default(),
            long_mode: AtomicBool::new(false),
            looks: Mutex::new(if watch { LOOKS } else { 0 }),
            update_flag: AtomicBool::new(false),
            callback: AtomicU8::new(0),
            vcpus: (0..vcpus).map(|_| Mutex::default()).collect(),
        })
    }

    fn areas(&self, vcpu: VcpuId) -> Option<MutexGuard<'_, Areas>> {
        let areas = self.vcpus.get(usize::try_from(vcpu).ok()?)?;
        Some(areas.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Guest system time, nanoseconds.
    fn system_ns(&self) -> u64 {
        self.vm.get_clock().map_or(0, |clock| clock.clock)
    }

    fn width(&self) -> Width {
        if self.long_mode.load(Ordering::Acquire) { Width::W64 } else { Width::W32 }
    }

    fn write_runstate(&self, areas: &mut Areas, memory: &Memory) {
        let flagged = self.update_flag.load(Ordering::Acquire);
        areas.write_runstate(memory, self.width(), flagged, self.system_ns());
    }

    /// Interrupts with this vector need no EOI on this vCPU.
    fn auto_eoi(&self, fd: &VcpuFd, vector: u8) -> io::Result<()> {
        if vector == 0 && self.callback.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        if !self.offers.auto_eoi {
            let why =
                "this host's KVM has no KVM_CAP_HYPERV_SYNIC2: the guest must end these interrupts itself";
            return Err(io::Error::other(why));
        }
        auto_eoi::set(fd, vector)
    }
}

impl XenAccel for XenPortable {
    fn name(&self) -> &'static str {
        "portable"
    }

    fn backends(&self) -> &Backends {
        &self.backends
    }

    fn setup_vcpu(&self, fd: &mut VcpuFd, _vcpu: VcpuId) -> io::Result<()> {
        fd.set_sync_valid_reg(SyncReg::Register);
        fd.set_sync_valid_reg(SyncReg::SystemRegister);
        Ok(())
    }

    fn watch(&self, look: &dyn Fn() -> bool) -> io::Result<()> {
        let mut left = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if *left == 0 {
            return Ok(());
        }
        *left = if look() { 0 } else { *left - 1 };
        if *left == 0 { ioctl::trap_writes(&self.vm, &[HYPERCALL_MSR]) } else { Ok(()) }
    }

    fn hypercall_instruction(&self) -> &'static [u8] {
        // OUT %al to the port.
        &[0xe6, HYPERCALL_PORT]
    }

    fn hypercall_port(&self) -> Option<u16> {
        Some(HYPERCALL_PORT.into())
    }

    fn decode(&self, fd: &mut VcpuFd, vcpu: VcpuId) -> Option<Call> {
        Some(calls::decode(&fd.sync_regs(), vcpu))
    }

    fn complete(&self, fd: &mut VcpuFd, result: i64) -> io::Result<()> {
        fd.sync_regs_mut().regs.rax = result.cast_unsigned();
        fd.set_sync_dirty_reg(SyncReg::Register);
        Ok(())
    }

    /// The KVM_RUN of a vCPU that is down comes back before it has taken the dirty registers, and overwrites them.
    fn settle(&self, fd: &mut VcpuFd) -> io::Result<()> {
        let dirty = fd.get_kvm_run().kvm_dirty_regs & u64::from(KVM_SYNC_X86_REGS) != 0;
        if dirty {
            fd.set_regs(&fd.sync_regs().regs)?;
            fd.clear_sync_dirty_reg(SyncReg::Register);
        }
        Ok(())
    }

    fn attend(&self, fd: &VcpuFd, vcpu: VcpuId, memory: &Memory) -> bool {
        let Some(mut areas) = self.areas(vcpu) else { return false };
        areas.mirror_time(memory);
        if !areas.due() {
            return false;
        }
        self.write_runstate(&mut areas, memory);
        areas.restore_clock(fd).unwrap_or_else(|e| {
            limited!(warn, "vCPU {vcpu}: its clock: {e}");
            false
        })
    }

    fn wakes(&self, vcpu: VcpuId, memory: &Memory) {
        if let Some(mut areas) = self.areas(vcpu).filter(|areas| areas.stale()) {
            self.write_runstate(&mut areas, memory);
        }
    }

    fn latch_long_mode(&self, long_mode: bool) -> io::Result<()> {
        self.long_mode.store(long_mode, Ordering::Release);
        Ok(())
    }

    fn shared_info(&self, _hva: u64, _gfn: Option<u64>) -> io::Result<()> {
        Ok(())
    }

    fn callback(&self, vector: u8) -> io::Result<Option<u8>> {
        // vCPUs are told before the first interrupt of this kind, and the first ones of the other before it ends.
        let old = self.callback.swap(vector, Ordering::AcqRel);
        Ok((old != vector).then_some(vector))
    }

    fn interrupt(&self, own: u8) -> Interrupt {
        match (own, self.callback.load(Ordering::Acquire)) {
            (0, 0) => Interrupt::None,
            (0, global) => Interrupt::Vector(global),
            (own, _) => Interrupt::Vector(own),
        }
    }

    fn runstate_update_flag(&self, on: bool) -> io::Result<()> {
        self.update_flag.store(on, Ordering::Release);
        Ok(())
    }

    fn has_time_info(&self, vcpu: VcpuId, _gpa: Gpa, memory: &Memory) -> bool {
        self.areas(vcpu).is_some_and(|areas| areas.has_stable_time(memory))
    }

    fn clock_set(&self, fd: &VcpuFd, vcpu: VcpuId, memory: &Memory) {
        if let (Some(mut areas), Some(tsc)) = (self.areas(vcpu), pvclock::tsc(fd)) {
            areas.clock_set(memory, tsc, self.system_ns());
        }
    }

    fn set_vcpu(&self, fd: &VcpuFd, vcpu: VcpuId, attr: VcpuAttr, memory: &Memory) -> io::Result<()> {
        if let VcpuAttr::Callback(vector) = attr {
            return self.auto_eoi(fd, vector);
        }
        let first = self.areas(0).and_then(|areas| areas.info);
        let Some(mut areas) = self.areas(vcpu) else { return Ok(()) };
        match attr {
            VcpuAttr::Info(gpa) => {
                areas.info = gpa;
                areas.borrow_time(memory, first);
                areas.restore_clock(fd).map(drop)
            }
            VcpuAttr::TimeInfo(gpa) => {
                areas.set_time(gpa);
                areas.mirror_time(memory);
                Ok(())
            }
            VcpuAttr::Runstate(gpa) => {
                areas.set_runstate(gpa);
                self.write_runstate(&mut areas, memory);
                Ok(())
            }
            // Timers and vectors are userspace's alone.
            VcpuAttr::TimerPort(_)
            | VcpuAttr::TimerExpiry(_)
            | VcpuAttr::UpcallVector(_)
            | VcpuAttr::Callback(_) => Ok(()),
        }
    }

    fn offload(&self, _port: Port, _how: Offload) -> bool {
        false
    }

    fn retract(&self, _port: Port) {}

    fn retract_all(&self) {}

    fn set_fifo(&self, _on: bool) -> io::Result<()> {
        Ok(())
    }

    fn has_timers(&self) -> bool {
        false
    }

    fn take_timer(&self, _fd: &VcpuFd) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn raise(&self, _port: Port, _vcpu: VcpuId) -> bool {
        false
    }

    fn route_ioapic(&self, pin: u32, msi: Option<(u64, u32)>) -> io::Result<()> {
        let route = msi.map(|(address, data)| Route::Msi(address, data));
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.set(&self.vm, pin, route)
    }
}
