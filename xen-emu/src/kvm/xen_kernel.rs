//! The accelerated backend: KVM_XEN raises events, runs timers and IPIs and keeps the clocks.

use super::cpuid::{HYPERCALL_MSR, apic_id};
use super::irq::{Route, Routes};
use super::{HostError, VcpuAttr, XenAccel, ioctl};
use crate::forward::Forward;
use crate::log::limited;
use crate::machine::IOAPIC_PINS;
use kvm_bindings::*;
use kvm_ioctls::{VcpuFd, VmFd};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use xen_domain::effect::{Backend, CallbackVia, Offload, Port, VcpuId};
use xen_domain::mem::Gpa;

/// Without these the backend cannot work.
const NEEDED: u32 = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
    | KVM_XEN_HVM_CONFIG_SHARED_INFO
    | KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL
    | KVM_XEN_HVM_CONFIG_EVTCHN_SEND;

/// EVTCHNSTAT_* as KVM_XEN_ATTR_TYPE_EVTCHN wants them (public/event_channel.h).
const TYPE_INTERDOMAIN: u32 = 2;
const TYPE_IPI: u32 = 5;

/// Whether KVM_CAP_XEN_HVM has all that is needed.
pub fn check(capabilities: u32) -> Result<(), HostError> {
    match capabilities & NEEDED {
        NEEDED => Ok(()),
        _ => Err(HostError::NoXen { found: capabilities, needed: NEEDED }),
    }
}

/// Whether a per-vCPU upcall vector survives a disabled LAPIC: the fix came with the HVA attributes (6.9).
pub fn has_reliable_vectors(capabilities: u32) -> bool {
    capabilities & KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA != 0
}

/// Event channels of devices at once: KVM has 4096 interrupt routes.
const DEVICES: u32 = 4000;

/// The eventfds of one backend.
#[derive(Debug)]
pub struct BackendFds {
    /// Signalled when the guest notifies the backend.
    pub kick: EventFd,
    /// Signalled by the backend to notify the guest.
    pub notify: EventFd,
}

impl BackendFds {
    /// Two new ones.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> io::Result<BackendFds> {
        let flags = EFD_NONBLOCK | EFD_CLOEXEC;
        Ok(BackendFds { kick: EventFd::new(flags)?, notify: EventFd::new(flags)? })
    }
}

struct Ports {
    offloaded: BTreeSet<Port>,
    by_backend: BTreeMap<Backend, Port>,
    backends: BTreeMap<Backend, Arc<BackendFds>>,
    routes: Routes,
    /// KVM knows where shared_info is. It warns about events that it cannot deliver, so only then are the notify
    /// eventfds irqfds; what was signalled before is delivered when they become that.
    placed: bool,
    /// KVM knows nothing of the FIFO ABI: the notify eventfds are forwarded, and no vCPU has a timer port.
    fifo: bool,
    carrier: Carrier,
}

/// Who listens to the notify eventfds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Nobody,
    Kvm,
    Forward,
}

/// See the module.
pub struct XenKernel {
    vm: Arc<VmFd>,
    capabilities: u32,
    forward: Arc<Forward>,
    ports: Mutex<Ports>,
}

/// The GSI of a backend: those below [`IOAPIC_PINS`] are the pins'.
fn gsi(backend: Backend) -> u32 {
    IOAPIC_PINS
        + match backend {
            Backend::Store => 0,
            Backend::Console => 1,
            Backend::Device(n) => 2 + n,
        }
}

#[expect(clippy::cast_possible_truncation, reason = "attribute types are below 10")]
fn vm_attr(type_: u32) -> kvm_xen_hvm_attr {
    kvm_xen_hvm_attr { type_: type_ as u16, ..Default::default() }
}

#[expect(clippy::cast_possible_truncation, reason = "attribute types are below 10")]
fn vcpu_attr(type_: u32) -> kvm_xen_vcpu_attr {
    kvm_xen_vcpu_attr { type_: type_ as u16, ..Default::default() }
}

/// Interception of hypercalls, and sends and polls in the kernel or not.
fn configure(vm: &VmFd, send: bool) -> io::Result<()> {
    let send = if send { KVM_XEN_HVM_CONFIG_EVTCHN_SEND } else { 0 };
    let config = kvm_xen_hvm_config {
        flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | send,
        msr: HYPERCALL_MSR,
        ..Default::default()
    };
    ioctl::hvm_config(vm, &config)
}

impl Carrier {
    fn listen(self, vm: &VmFd, forward: &Forward, backend: Backend, notify: &EventFd) -> io::Result<()> {
        match self {
            Carrier::Nobody => Ok(()),
            Carrier::Kvm => vm.register_irqfd(notify, gsi(backend)).map_err(io::Error::from),
            Carrier::Forward => forward.add(backend, notify),
        }
    }

    fn leave(self, vm: &VmFd, forward: &Forward, backend: Backend, notify: &EventFd) -> io::Result<()> {
        match self {
            Carrier::Nobody => Ok(()),
            Carrier::Kvm => vm.unregister_irqfd(notify, gsi(backend)).map_err(io::Error::from),
            Carrier::Forward => forward.remove(backend, notify),
        }
    }
}

impl XenKernel {
    /// Turn on interception, in-kernel event sending and XENVER_version for `vm`.
    pub fn new(
        vm: Arc<VmFd>,
        capabilities: u32,
        xen_version: u32,
        backends: BTreeMap<Backend, Arc<BackendFds>>,
        forward: Arc<Forward>,
    ) -> io::Result<Self> {
        configure(&vm, true)?;
        let mut version = vm_attr(KVM_XEN_ATTR_TYPE_XEN_VERSION);
        version.u.xen_version = xen_version;
        ioctl::hvm_set_attr(&vm, &version)?;
        let ports = Ports {
            offloaded: BTreeSet::new(),
            by_backend: BTreeMap::new(),
            backends,
            routes: Routes::default(),
            placed: false,
            fifo: false,
            carrier: Carrier::Nobody,
        };
        Ok(XenKernel { vm, capabilities, forward, ports: Mutex::new(ports) })
    }

    /// The eventfds of a backend.
    pub fn backend(&self, backend: Backend) -> Option<Arc<BackendFds>> {
        self.ports().backends.get(&backend).cloned()
    }

    /// Make room for one more device's event channel.
    ///
    /// # Errors
    /// The host has no descriptors or no interrupt routes left.
    pub fn add_device(&self) -> io::Result<(Backend, Arc<BackendFds>)> {
        let fds = Arc::new(BackendFds::new()?);
        Ok((self.add_peer(fds.clone())?, fds))
    }

    /// The same with eventfds that another domain has as well: its kick is our notify.
    ///
    /// # Errors
    /// The host has no interrupt routes left, or an eventfd is in use already.
    pub fn add_peer(&self, fds: Arc<BackendFds>) -> io::Result<Backend> {
        let mut ports = self.ports();
        let free = |n: &u32| !ports.backends.contains_key(&Backend::Device(*n));
        let backend = (0..DEVICES).find(free).map(Backend::Device);
        let backend = backend.ok_or_else(|| io::Error::other(format!("more than {DEVICES} in use")))?;
        ports.carrier.listen(&self.vm, &self.forward, backend, &fds.notify)?;
        ports.backends.insert(backend, fds);
        Ok(backend)
    }

    /// Forget a device's event channel.
    pub fn remove_device(&self, backend: Backend) {
        let mut ports = self.ports();
        if let Some(&port) = ports.by_backend.get(&backend) {
            ports.forget_logged(&self.vm, port);
        }
        if let Some(fds) = ports.backends.remove(&backend)
            && let Err(e) = ports.carrier.leave(&self.vm, &self.forward, backend, &fds.notify)
        {
            limited!(warn, "{backend:?} stays in the kernel: {e}");
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.capabilities & bit != 0
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
                evtchn.deliver.eventfd.fd = ports.backends.get(&backend)?.kick.as_raw_fd();
            }
        }
        attr.u.evtchn = evtchn;
        Some(attr)
    }
}

impl Ports {
    /// Have what backends signal delivered by who can now. An error keeps no other backend from its carrier.
    fn settle(&mut self, vm: &VmFd, forward: &Forward) -> io::Result<()> {
        let carrier = match (self.fifo, self.placed) {
            (true, _) => Carrier::Forward,
            (false, true) => Carrier::Kvm,
            (false, false) => Carrier::Nobody,
        };
        let before = std::mem::replace(&mut self.carrier, carrier);
        if before == carrier {
            return Ok(());
        }
        let moved = self.backends.iter().map(|(&backend, fds)| {
            let left = before.leave(vm, forward, backend, &fds.notify);
            left.and(carrier.listen(vm, forward, backend, &fds.notify))
        });
        moved.fold(Ok(()), io::Result::and)
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

    fn setup_vcpu(&self, fd: &VcpuFd, vcpu: VcpuId) -> io::Result<()> {
        let mut attr = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID);
        attr.u.vcpu_id = vcpu;
        ioctl::vcpu_set_attr(fd, &attr)
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
            ports.settle(&self.vm, &self.forward)?;
        }
        ioctl::hvm_set_attr(&self.vm, &attr)?;
        ports.settle(&self.vm, &self.forward)
    }

    fn callback(&self, via: CallbackVia) -> io::Result<()> {
        let mut attr = vm_attr(KVM_XEN_ATTR_TYPE_UPCALL_VECTOR);
        attr.u.vector = match via {
            CallbackVia::Vector(vector) => vector,
            _ => 0,
        };
        ioctl::hvm_set_attr(&self.vm, &attr)
    }

    fn runstate_update_flag(&self, on: bool) -> io::Result<()> {
        if !self.has(KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG) {
            return Ok(());
        }
        let mut attr = vm_attr(KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG);
        attr.u.runstate_update_flag = on.into();
        ioctl::hvm_set_attr(&self.vm, &attr)
    }

    fn set_vcpu(&self, fd: &VcpuFd, attr: VcpuAttr, hva: &dyn Fn(Gpa) -> Option<u64>) -> io::Result<()> {
        let at = |gpa: Option<Gpa>| gpa.map_or(u64::MAX, |gpa| gpa.0);
        let mut a;
        match attr {
            VcpuAttr::Info(gpa) if self.has(KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA) => {
                a = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA);
                a.u.hva = gpa.and_then(hva).unwrap_or(0);
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
                a.u.timer.expires_ns = at.unwrap_or(0);
            }
            VcpuAttr::UpcallVector(vector) => {
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
        ports.settle(&self.vm, &self.forward)
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
