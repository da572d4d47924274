//! KVM: what the host offers, the virtual machine, its vCPUs, and the two ways to Xen's interfaces: with KVM_XEN in the
//! kernel, or with what every KVM has.

pub mod auto_eoi;
pub mod backends;
pub mod cpuid;
pub mod hypercall_page;
pub mod ioctl;
pub mod irq;
pub mod mailbox;
pub mod pvclock;
pub mod regs;
pub mod vcpu;
pub mod vm;
pub mod xen_kernel;
pub mod xen_portable;

use crate::memory::Memory;
use backends::{BackendFds, Backends};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;
use xen_domain::effect::{Backend, Offload, Port, Runstate, VcpuId};
use xen_domain::hypercall::Call;
use xen_domain::mem::Gpa;
use xen_domain::version;
use xen_emu_api::config::Accel;

/// Why this host cannot run a domain; each says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The device is missing.
    #[error("/dev/kvm is missing: load kvm-intel or kvm-amd, or enable virtualisation in the firmware")]
    NoKvm,
    /// The device may not be opened.
    #[error("no permission on /dev/kvm: run as root or join the group that owns it (usually `kvm`)")]
    NoPermission,
    /// Another error on opening it.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// KVM without KVM_XEN.
    #[error(
        "this host's KVM has no Xen support (capabilities {found:#x}, needed {needed:#x}): \
         accel=\"kernel\" takes a kernel from 5.19 with CONFIG_KVM_XEN=y, accel=\"portable\" or \"auto\" does without"
    )]
    NoXen {
        /// KVM_CAP_XEN_HVM.
        found: u32,
        /// The bits that must be there.
        needed: u32,
    },
    /// KVM too old for the portable backend.
    #[error("this host's KVM lacks {}: the portable backend takes Linux 5.10 or later", .0.join(", "))]
    NotPortable(Vec<&'static str>),
    /// The one global vector wants what the host has not.
    #[error(
        "upcall=\"global\" on the portable backend takes a KVM with KVM_CAP_HYPERV_SYNIC2 (CONFIG_KVM_HYPERV): \
         this host's has none; upcall=\"vector\" does without"
    )]
    NoAutoEoi,
}

/// The way a domain goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// KVM_XEN.
    Kernel(xen_kernel::Offers),
    /// Without it.
    Portable(xen_portable::Offers),
}

impl Way {
    /// The one that the configuration asks for, or the best there is.
    ///
    /// # Errors
    /// This host has no such way.
    pub fn choose(kvm: &Kvm, wanted: Accel) -> Result<Way, HostError> {
        let kernel = || xen_kernel::check(kvm).map(Way::Kernel);
        let portable = || xen_portable::check(kvm).map(Way::Portable);
        match wanted {
            Accel::Kernel => kernel(),
            Accel::Portable => portable(),
            Accel::Auto => kernel().or_else(|_| portable()),
        }
    }

    /// `kernel` or `portable`.
    pub fn name(self) -> &'static str {
        match self {
            Way::Kernel(_) => "kernel",
            Way::Portable(_) => "portable",
        }
    }
}

/// Open /dev/kvm with errors that help.
pub fn open() -> Result<Kvm, HostError> {
    Kvm::new().map_err(|e| match io::Error::from_raw_os_error(e.errno()) {
        e if e.kind() == io::ErrorKind::NotFound => HostError::NoKvm,
        e if e.kind() == io::ErrorKind::PermissionDenied => HostError::NoPermission,
        e => HostError::Open(e),
    })
}

/// KVM_CAP_XEN_HVM: the KVM_XEN_HVM_CONFIG_* bits this host has.
pub fn xen_capabilities(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.check_extension_int(Cap::XenHvm)).unwrap_or(0)
}

/// Whether the host's kernel trusts its TSC: it is its clock source only as long as it runs at one rate on all CPUs.
pub fn keeps_time_by_tsc() -> bool {
    std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        .is_ok_and(|source| source.trim() == "tsc")
}

/// What `xen-emu --probe` prints for `xlr info`. `reason` says why the host has no KVM_XEN, or nothing at all.
pub fn probe() -> Value {
    let kvm = open();
    let bits = kvm.as_ref().map_or(0, xen_capabilities);
    let portable = kvm.as_ref().map(xen_portable::capabilities).unwrap_or_default();
    let way = kvm.as_ref().map(|kvm| Way::choose(kvm, Accel::Auto));
    let reason = match (&kvm, &way) {
        (Err(e), _) => e.to_string(),
        (_, Ok(Err(e))) => e.to_string(),
        (Ok(kvm), _) => xen_kernel::check(kvm).err().map(|e| e.to_string()).unwrap_or_default(),
    };
    json!({
        "kvm": kvm.is_ok(),
        "xen_hvm": bits,
        "xen_hvm_names": xen_kernel::names(bits),
        "portable": portable,
        "backend": way.ok().and_then(Result::ok).map_or("none", Way::name),
        "reason": reason,
        "xen": {
            "major": version::XEN_VERSION >> 16,
            "minor": version::XEN_VERSION & 0xffff,
            "extra": version::EXTRAVERSION,
            "caps": version::CAPABILITIES,
            "changeset": version::CHANGESET,
            "compiler": version::COMPILER,
            "virt_start": version::VIRT_START,
        },
    })
}

/// A setting of one vCPU, applied on its own thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuAttr {
    /// vcpu_info, or none.
    Info(Option<Gpa>),
    /// Secondary vcpu_time_info, or none.
    TimeInfo(Option<Gpa>),
    /// vcpu_runstate_info, or none.
    Runstate(Option<Gpa>),
    /// Port of VIRQ_TIMER, or none.
    TimerPort(Option<Port>),
    /// Expiry of the singleshot timer in system time; `None` stops it.
    TimerExpiry(Option<u64>),
    /// Per-vCPU upcall vector; 0 = none.
    UpcallVector(u8),
    /// The vector of vCPUs that have none of their own, as [`XenAccel::callback`] wants it told; 0 = none.
    Callback(u8),
}

/// How a vCPU is told that evtchn_upcall_pending has been set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Not at all: the guest has not said how.
    None,
    /// It comes out of KVM_RUN, and KVM sees the flag when it enters again.
    Kick,
    /// An interrupt with this vector at its local APIC.
    Vector(u8),
}

/// What differs between a KVM with Xen support and one without. Methods other than those that take a
/// [`VcpuFd`] may be called from any thread.
pub trait XenAccel: Send + Sync {
    /// `kernel` or `portable`.
    fn name(&self) -> &'static str;
    /// The eventfds of backends.
    fn backends(&self) -> &Backends;
    /// The eventfds of one backend.
    fn backend(&self, backend: Backend) -> Option<Arc<BackendFds>> {
        self.backends().get(backend)
    }
    /// Make room for one more device's event channel.
    ///
    /// # Errors
    /// The host has no descriptors or no interrupt routes left.
    fn add_device(&self) -> io::Result<(Backend, Arc<BackendFds>)> {
        let fds = Arc::new(BackendFds::new()?);
        Ok((self.add_peer(fds.clone())?, fds))
    }
    /// The same with eventfds that another domain has as well: its kick is our notify.
    ///
    /// # Errors
    /// The host has no interrupt routes left, or an eventfd is in use already.
    fn add_peer(&self, fds: Arc<BackendFds>) -> io::Result<Backend> {
        self.backends().add(fds)
    }
    /// Forget a device's event channel.
    fn remove_device(&self, backend: Backend) {
        self.backends().remove(backend);
    }

    /// Prepare one vCPU, before its first run.
    fn setup_vcpu(&self, fd: &mut VcpuFd, vcpu: VcpuId) -> io::Result<()>;
    /// What the stubs of the hypercall page call by.
    fn hypercall_instruction(&self) -> &'static [u8];
    /// The port whose OUT is a hypercall, if hypercalls come that way.
    fn hypercall_port(&self) -> Option<u16> {
        None
    }
    /// As long as writes to EFER are exits, so that a kernel can be looked at that a boot loader has put into memory: `look`, which
    /// says whether that was the last one. One vCPU does so at a time.
    fn watch(&self, _look: &dyn Fn() -> bool) -> io::Result<()> {
        Ok(())
    }
    /// The hypercall that the last KVM_RUN came back with; `None` when the exit was none.
    fn decode(&self, fd: &mut VcpuFd, vcpu: VcpuId) -> Option<Call>;
    /// What the guest finds in RAX when the vCPU runs again.
    fn complete(&self, fd: &mut VcpuFd, result: i64) -> io::Result<()>;
    /// Have KVM know all registers before something else looks at them, or changes the vCPU's state.
    fn settle(&self, _fd: &mut VcpuFd) -> io::Result<()> {
        Ok(())
    }
    /// What is due on every hypercall, on the vCPU's own thread. True when the vCPU has been reset by an INIT since, and
    /// its local APIC has forgotten a pending upcall.
    fn attend(&self, _fd: &VcpuFd, _vcpu: VcpuId, _memory: &Memory) -> bool {
        false
    }
    /// A vCPU is about to be interrupted, which may have been blocked for long. On any thread.
    fn wakes(&self, _vcpu: VcpuId, _memory: &Memory) {}
    /// The times of a vCPU, on its own thread; `None` where only the scheduler's statistics tell.
    fn runstate(&self, _fd: &VcpuFd) -> Option<Runstate> {
        None
    }

    /// 64-bit (true) or 32-bit layout of shared_info.
    fn latch_long_mode(&self, long_mode: bool) -> io::Result<()>;
    /// shared_info is at this host address and, if the guest placed it, frame.
    fn shared_info(&self, hva: u64, gfn: Option<u64>) -> io::Result<()>;
    /// The vector of vCPUs without one of their own, 0 = none. What comes back every vCPU is to be told as
    /// [`VcpuAttr::Callback`].
    fn callback(&self, vector: u8) -> io::Result<Option<u8>>;
    /// Whether the callback would go through local APICs if they were known to be on. Asked on every hypercall.
    fn awaits_lapics(&self) -> bool {
        false
    }
    /// A vCPU has its local APIC on. True where the callback goes through it from now on and is to be set once more.
    fn lapics_on(&self) -> bool {
        false
    }
    /// How to tell a vCPU with this vector of its own (0 = none) that it has an upcall.
    fn interrupt(&self, own: u8) -> Interrupt;
    /// VMASST_TYPE_runstate_update_flag; an error where there is none.
    fn runstate_update_flag(&self, on: bool) -> io::Result<()>;
    /// Whether a secondary vcpu_time_info can be kept there.
    fn has_time_info(&self, vcpu: VcpuId, gpa: Gpa, memory: &Memory) -> bool;
    /// The guest's clock has been set, which KVM tells a vCPU as it enters the guest. On the vCPU's own thread, before that.
    fn clock_set(&self, _fd: &VcpuFd, _vcpu: VcpuId, _memory: &Memory) {}
    /// Apply a setting on the vCPU's own thread.
    fn set_vcpu(&self, fd: &VcpuFd, vcpu: VcpuId, attr: VcpuAttr, memory: &Memory) -> io::Result<()>;
    /// See [`xen_domain::effect::Effects::offload`].
    fn offload(&self, port: Port, how: Offload) -> bool;
    /// See [`xen_domain::effect::Effects::retract`].
    fn retract(&self, port: Port);
    /// See [`xen_domain::effect::Effects::retract_all`].
    fn retract_all(&self);
    /// See [`xen_domain::effect::Effects::set_fifo`].
    fn set_fifo(&self, on: bool) -> io::Result<()>;
    /// Whether singleshot timers are to be set here; otherwise [`crate::timers`] runs them.
    fn has_timers(&self) -> bool;
    /// Take the running singleshot timer back from a vCPU, on its own thread: when it would have run out.
    fn take_timer(&self, fd: &VcpuFd) -> io::Result<Option<u64>>;
    /// See [`xen_domain::effect::Effects::raise`].
    fn raise(&self, port: Port, vcpu: VcpuId) -> bool;
    /// A redirection entry of the IOAPIC has changed.
    fn route_ioapic(&self, pin: u32, msi: Option<(u64, u32)>) -> io::Result<()>;
}
