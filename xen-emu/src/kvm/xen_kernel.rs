//! The accelerated backend: KVM_XEN raises events, runs timers and IPIs and keeps the clocks.

use super::backends::{Backends, Carrier, gsi};
use super::cpuid::{HYPERCALL_MSR, apic_id};
use super::irq::{Route, Routes};
use super::regs::APIC_BASE;
use super::{HostError, Interrupt, VcpuAttr, XenAccel, auto_eoi, ioctl};
use crate::forward::Forward;
use crate::log::limited;
use crate::memory::Memory;
use kvm_bindings::*;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xen_abi::shared_info::VcpuTimeInfo;
use xen_domain::effect::{Backend, Offload, Port, Runstate, VcpuId};
use xen_domain::hypercall::Call;
use xen_domain::mem::Gpa;

/// Without these the backend cannot work.
const NEEDED: u32 = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
    | KVM_XEN_HVM_CONFIG_SHARED_INFO
    | KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL
    | KVM_XEN_HVM_CONFIG_EVTCHN_SEND;

/// EVTCHNSTAT_* as KVM_XEN_ATTR_TYPE_EVTCHN wants them (public/event_channel.h).
const TYPE_INTERDOMAIN: u32 = 2;
const TYPE_IPI: u32 = 5;

/// What the backend finds on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offers {
    /// KVM_CAP_XEN_HVM.
    capabilities: u32,
    /// Vectors of vCPUs can be had, a disabled local APIC notwithstanding: that came with the HVA attributes (6.9).
    pub vectors: bool,
    /// So can such without an EOI, and that saves an exit.
    pub auto_eoi: bool,
}

/// Whether the host has all that is needed.
///
/// # Errors
/// What it lacks.
pub fn check(kvm: &Kvm) -> Result<Offers, HostError> {
    let capabilities = super::xen_capabilities(kvm);
    let vectors = capabilities & KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA != 0;
    let auto_eoi = vectors && auto_eoi::offered(kvm) && !auto_eoi::needless();
    match capabilities & NEEDED {
        NEEDED => Ok(Offers { capabilities, vectors, auto_eoi }),
        _ => Err(HostError::NoXen { found: capabilities, needed: NEEDED }),
    }
}

/// KVM_CAP_XEN_HVM's bits in their order.
const NAMES: [&str; 9] = [
    "hypercall_msr",
    "intercept_hcall",
    "shared_info",
    "runstate",
    "evtchn_2level",
    "evtchn_send",
    "runstate_update_flag",
    "pvclock_tsc_unstable",
    "shared_info_hva",
];

/// The names of the bits that a host has.
pub fn names(capabilities: u32) -> Vec<&'static str> {
    (0..).zip(NAMES).filter(|(bit, _)| capabilities >> bit & 1 != 0).map(|(_, name)| name).collect()
}

struct Ports {
    offloaded: BTreeSet<Port>,
    by_backend: BTreeMap<Backend, Port>,
    routes: Routes,
    /// KVM knows where shared_info is. It warns about events that it cannot deliver, so only then are the notify
    /// eventfds irqfds; what was signalled before is delivered when they become that.
    placed: bool,
    /// KVM knows nothing of the FIFO ABI: the notify eventfds are forwarded, and no vCPU has a timer port.
    fifo: bool,
}

/// See the module.
pub struct XenKernel {
    vm: Arc<VmFd>,
    offers: Offers,
    backends: Backends,
    ports: Mutex<Ports>,
    /// The global callback vector; 0 = none.
    callback: AtomicU8,
    /// The guest has its local APICs on, and the callback goes through them.
    through_lapic: AtomicBool,
}

#[expect(clippy::cast_possible_truncation, reason = "attribute types are below 10")]
fn vm_attr(type_: u32) -> kvm_xen_hvm_attr {
    kvm_xen_hvm_attr { type_: type_ as u16, ..Default::default() }
}

#[expect(clippy::cast_possible_truncation, reason = "attribute types are below 10")]
fn vcpu_attr(type_: u32) -> kvm_xen_vcpu_attr {
    kvm_xen_vcpu_attr { type_: type_ as u16, ..Default::default() }
}

/// Interception of hypercalls, and sends and polls in the kernel or not. Without, KVM answers SCHEDOP_poll as if it were
/// SCHEDOP_yield (`kvm_xen_hcall_sched_op` falls through): nothing makes it come to userspace.
fn configure(vm: &VmFd, send: bool) -> io::Result<()> {
    let send = if send { KVM_XEN_HVM_CONFIG_EVTCHN_SEND } else { 0 };
    let config = kvm_xen_hvm_config {
        flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | send,
        msr: HYPERCALL_MSR,
        ..Default::default()
    };
    ioctl::hvm_config(vm, &config)
}

impl XenKernel {
    /// Turn on interception, in-kernel event sending and XENVER_version for `vm`.
    pub fn new(vm: Arc<VmFd>, offers: Offers, xen_version: u32, forward: Arc<Forward>) -> io::Result<Self> {
        configure(&vm, true)?;
        // KVM would write the hypercall page itself, and tell nobody that the guest has said its width by that.
        ioctl::trap_writes(
            &vm,
            if offers.auto_eoi { &[HYPERCALL_MSR, APIC_BASE] } else { &[HYPERCALL_MSR] },
        )?;
        let mut version = vm_attr(KVM_XEN_ATTR_TYPE_XEN_VERSION);
        version.u.xen_version = xen_version;
        ioctl::hvm_set_attr(&vm, &version)?;
        let ports = Ports {
            offloaded: BTreeSet::new(),
            by_backend: BTreeMap::new(),
            routes: Routes::default(),
            placed: false,
            fifo: false,
        };
        let backends = Backends::new(vm.clone(), forward, Carrier::Nobody)?;
        Ok(XenKernel {
            vm,
            offers,
            backends,
            ports: Mutex::new(ports),
            callback: AtomicU8::new(0),
            through_lapic: AtomicBool::new(false),
        })
    }

    fn has(&self, bit: u32) -> bool {
        self.offers.capabilities & bit != 0
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attribute that makes KVM handle sends on `port`.
    fn evtchn(&self, ports: &Ports, port: Port, how: Offload) -> Option<kvm_xen_hvm_attr> {
        let known = ports.offloaded.contains(&port);
        let mut attr = vm_attr(KVM_XEN_ATTR_TYPE_EVTCHN);
        let mut evtchn = kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2 {
            send_port: port,
            type_: TYPE_INTERDOMAIN,
            flags: if known { KVM_XEN_EVTCHN_UPDATE } else { 0 },
            ..Default::default()
        };
        let deliver = |port, vcpu| kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2__bindgen_ty_1__bindgen_ty_1 {
            port,
            vcpu: apic_id(vcpu),
            priority: ioctl::PRIORITY_2L,
        };
        match how {
            Offload::Ipi(vcpu) => {
                evtchn.type_ = TYPE_IPI;
                evtchn.deliver.port = deliver(port, vcpu);
            }
            Offload::Loopback { port, vcpu } => evtchn.deliver.port = deliver(port, vcpu),
            Offload::Backend(backend, _) => {
                evtchn.deliver.eventfd.fd = self.backends.get(backend)?.kick.as_raw_fd();
            }
        }
        attr.u.evtchn = evtchn;
        Some(attr)
    }
}

impl Ports {
    /// Who can deliver now what backends signal.
    fn carrier(&self) -> Carrier {
        match (self.fifo, self.placed) {
            (true, _) => Carrier::Forward,
            (false, true) => Carrier::Kvm,
            (false, false) => Carrier::Nobody,
        }
    }

    fn forget_logged(&mut self, vm: &VmFd, port: Port) {
        if let Err(e) = self.forget(vm, port) {
            limited!(warn, "port {port} stays in the kernel: {e}");
        }
    }

    fn forget(&mut self, vm: &VmFd, port: Port) -> io::Result<()> {
        if let Some((&backend, _)) = self.by_backend.iter().find(|&(_, &p)| p == port) {
            self.by_backend.remove(&backend);
            self.routes.set(vm, gsi(backend), None)?;
        }
        if self.offloaded.remove(&port) {
            let mut attr = vm_attr(KVM_XEN_ATTR_TYPE_EVTCHN);
            attr.u.evtchn.send_port = port;
            attr.u.evtchn.flags = KVM_XEN_EVTCHN_DEASSIGN;
            ioctl::hvm_set_attr(vm, &attr)?;
        }
        Ok(())
    }
}

impl XenAccel for XenKernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn backends(&self) -> &Backends {
        &self.backends
    }

    fn remove_device(&self, backend: Backend) {
        let mut ports = self.ports();
        if let Some(&port) = ports.by_backend.get(&backend) {
            ports.forget_logged(&self.vm, port);
        }
        self.backends.remove(backend);
    }

    fn setup_vcpu(&self, fd: &mut VcpuFd, vcpu: VcpuId) -> io::Result<()> {
        let mut attr = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID);
        attr.u.vcpu_id = vcpu;
        ioctl::vcpu_set_attr(fd, &attr)
    }

    fn hypercall_instruction(&self) -> &'static [u8] {
        let vendor = std::arch::x86_64::__cpuid(0).ebx.to_le_bytes();
        // `Auth`enticAMD and `Hygo`nGenuine have VMMCALL, all others VMCALL.
        if [*b"Auth", *b"Hygo"].contains(&vendor) { &[0x0f, 0x01, 0xd9] } else { &[0x0f, 0x01, 0xc1] }
    }

    fn decode(&self, fd: &mut VcpuFd, vcpu: VcpuId) -> Option<Call> {
        ioctl::hypercall(fd, vcpu)
    }

    fn complete(&self, fd: &mut VcpuFd, result: i64) -> io::Result<()> {
        ioctl::complete_hypercall(fd, result);
        Ok(())
    }

    fn runstate(&self, fd: &VcpuFd) -> Option<Runstate> {
        let [state, entry_time, time @ ..] = ioctl::vcpu_runstate(fd).ok()?;
        Some(Runstate { state: i32::try_from(state).unwrap_or(0), entry_time, time })
    }

    fn latch_long_mode(&self, long_mode: bool) -> io::Result<()> {
        let mut attr = vm_attr(KVM_XEN_ATTR_TYPE_LONG_MODE);
        attr.u.long_mode = long_mode.into();
        ioctl::hvm_set_attr(&self.vm, &attr)
    }

    fn shared_info(&self, hva: u64, gfn: Option<u64>) -> io::Result<()> {
        let mut attr;
        if self.has(KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA) {
            attr = vm_attr(KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA);
            attr.u.shared_info.hva = hva;
        } else {
            attr = vm_attr(KVM_XEN_ATTR_TYPE_SHARED_INFO);
            attr.u.shared_info.gfn = gfn.unwrap_or(u64::MAX);
        }
        let mut ports = self.ports();
        ports.placed = gfn.is_some();
        if !ports.placed {
            self.backends.carry(ports.carrier())?;
        }
        ioctl::hvm_set_attr(&self.vm, &attr)?;
        self.backends.carry(ports.carrier())
    }

    fn callback(&self, vector: u8) -> io::Result<Option<u8>> {
        let through_lapic = self.through_lapic.load(Ordering::Acquire);
        let mut attr = vm_attr(KVM_XEN_ATTR_TYPE_UPCALL_VECTOR);
        attr.u.vector = if through_lapic { 0 } else { vector };
        ioctl::hvm_set_attr(&self.vm, &attr)?;
        let old = self.callback.swap(vector, Ordering::AcqRel);
        Ok((through_lapic && (old, vector) != (0, 0)).then_some(vector))
    }

    fn awaits_lapics(&self) -> bool {
        self.offers.auto_eoi
            && self.callback.load(Ordering::Acquire) != 0
            && !self.through_lapic.load(Ordering::Acquire)
    }

    fn lapics_on(&self) -> bool {
        self.offers.auto_eoi && !self.through_lapic.swap(true, Ordering::AcqRel)
    }

    fn interrupt(&self, own: u8) -> Interrupt {
        match (own, self.callback.load(Ordering::Acquire)) {
            (0, 0) => Interrupt::None,
            (0, global) if self.through_lapic.load(Ordering::Acquire) => Interrupt::Vector(global),
            // KVM looks at upcall_pending on every entry.
            (0, _) => Interrupt::Kick,
            (own, _) => Interrupt::Vector(own),
        }
    }

    fn runstate_update_flag(&self, on: bool) -> io::Result<()> {
        if !self.has(KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG) {
            return if on { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) };
        }
        let mut attr = vm_attr(KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG);
        attr.u.runstate_update_flag = on.into();
        ioctl::hvm_set_attr(&self.vm, &attr)
    }

    /// KVM keeps none that crosses a page.
    fn has_time_info(&self, _vcpu: VcpuId, gpa: Gpa, _memory: &Memory) -> bool {
        gpa.gfn() == gpa.offset(size_of::<VcpuTimeInfo>() as u64 - 1).gfn()
    }

    fn set_vcpu(&self, fd: &VcpuFd, _vcpu: VcpuId, attr: VcpuAttr, memory: &Memory) -> io::Result<()> {
        let at = |gpa: Option<Gpa>| gpa.map_or(u64::MAX, |gpa| gpa.0);
        let mut a;
        match attr {
            VcpuAttr::Info(gpa) if self.has(KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA) => {
                a = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA);
                a.u.hva = gpa.and_then(|gpa| memory.hva(gpa).ok()).unwrap_or(0);
            }
            VcpuAttr::Info(gpa) => {
                a = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO);
                a.u.gpa = at(gpa);
            }
            VcpuAttr::TimeInfo(gpa) => {
                a = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO);
                a.u.gpa = at(gpa);
            }
            // A host without scheduler accounting keeps no runstate; its guests see one that stands still.
            VcpuAttr::Runstate(_) if !self.has(KVM_XEN_HVM_CONFIG_RUNSTATE) => return Ok(()),
            VcpuAttr::Runstate(gpa) => {
                a = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR);
                a.u.gpa = at(gpa);
            }
            VcpuAttr::TimerPort(port) => {
                a = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_TIMER);
                a.u.timer.port = port.unwrap_or(0);
                a.u.timer.priority = ioctl::PRIORITY_2L;
            }
            VcpuAttr::TimerExpiry(at) => {
                a = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_TIMER);
                ioctl::vcpu_get_attr(fd, &mut a)?;
                // 0 would be none: a time long past is due at once.
                a.u.timer.expires_ns = at.map_or(0, |at| at.max(1));
            }
            VcpuAttr::UpcallVector(vector) => {
                a = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR);
                a.u.vector = vector;
            }
            VcpuAttr::Callback(vector) => {
                auto_eoi::set(fd, vector)?;
                a = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR);
                a.u.vector = vector;
            }
        }
        ioctl::vcpu_set_attr(fd, &a)
    }

    fn offload(&self, port: Port, how: Offload) -> bool {
        let mut ports = self.ports();
        let known = ports.offloaded.contains(&port);
        if let Offload::Backend(backend, vcpu) = how {
            ports.by_backend.insert(backend, port);
            let route = Route::Evtchn { port, kvm_vcpu: apic_id(vcpu) };
            if let Err(e) = ports.routes.set(&self.vm, gsi(backend), Some(route)) {
                limited!(warn, "route of port {port}: {e}");
                ports.forget_logged(&self.vm, port);
                return false;
            }
            if known {
                return true;
            }
        }
        let Some(attr) = self.evtchn(&ports, port, how) else { return false };
        match ioctl::hvm_set_attr(&self.vm, &attr) {
            Ok(()) => {
                ports.offloaded.insert(port);
                true
            }
            Err(e) => {
                limited!(warn, "port {port} stays in userspace: {e}");
                ports.forget_logged(&self.vm, port);
                false
            }
        }
    }

    fn retract(&self, port: Port) {
        self.ports().forget_logged(&self.vm, port);
    }

    fn retract_all(&self) {
        let mut ports = self.ports();
        let all: Vec<Port> = ports.offloaded.iter().chain(ports.by_backend.values()).copied().collect();
        all.into_iter().for_each(|port| ports.forget_logged(&self.vm, port));
    }

    fn set_fifo(&self, on: bool) -> io::Result<()> {
        configure(&self.vm, !on)?;
        let mut ports = self.ports();
        ports.fifo = on;
        self.backends.carry(ports.carrier())
    }

    fn has_timers(&self) -> bool {
        !self.ports().fifo
    }

    fn take_timer(&self, fd: &VcpuFd) -> io::Result<Option<u64>> {
        let mut timer = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_TIMER);
        ioctl::vcpu_get_attr(fd, &mut timer)?;
        let none = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_TIMER);
        ioctl::vcpu_set_attr(fd, &none)?;
        Ok(Some(ioctl::timer_expiry(&timer)).filter(|&at| at != 0))
    }

    fn raise(&self, port: Port, vcpu: VcpuId) -> bool {
        ioctl::evtchn_send(&self.vm, port, apic_id(vcpu)).is_ok()
    }

    fn route_ioapic(&self, pin: u32, msi: Option<(u64, u32)>) -> io::Result<()> {
        let route = msi.map(|(address, data)| Route::Msi(address, data));
        self.ports().routes.set(&self.vm, pin, route)
    }
}
