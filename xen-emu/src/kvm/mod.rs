//! KVM: what the host offers, the virtual machine, its vCPUs, and the Xen acceleration in the kernel.

pub mod cpuid;
pub mod ioctl;
pub mod irq;
pub mod mailbox;
pub mod regs;
pub mod vcpu;
pub mod vm;
pub mod xen_kernel;

use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde_json::{Value, json};
use std::io;
use xen_domain::effect::{CallbackVia, Offload, Port, VcpuId};
use xen_domain::mem::Gpa;
use xen_domain::version;

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
         it takes a kernel from 5.19 with CONFIG_KVM_XEN=y"
    )]
    NoXen {
        /// KVM_CAP_XEN_HVM.
        found: u32,
        /// The bits that must be there.
        needed: u32,
    },
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

/// Whether guests end their interrupts without an exit (Intel's APICv, AMD's AVIC), by what KVM's modules say.
pub fn virtualises_apic() -> bool {
    ["kvm_intel/parameters/enable_apicv", "kvm_amd/parameters/avic"].iter().any(|parameter| {
        std::fs::read_to_string(format!("/sys/module/{parameter}"))
            .is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    })
}

/// Whether the host's kernel trusts its TSC: it is its clock source only as long as it runs at one rate on all CPUs.
pub fn keeps_time_by_tsc() -> bool {
    std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        .is_ok_and(|source| source.trim() == "tsc")
}

/// What `xen-emu --probe` prints for `xlr info`.
pub fn probe() -> Value {
    let (kvm, bits, error) = match open() {
        Ok(kvm) => {
            let bits = xen_capabilities(&kvm);
            (true, bits, xen_kernel::check(bits).err())
        }
        Err(e) => (false, 0, Some(e)),
    };
    json!({
        "kvm": kvm,
        "xen_hvm": bits,
        "backend": if error.is_none() { "kernel" } else { "none" },
        "reason": error.map(|e| e.to_string()).unwrap_or_default(),
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
}

/// What differs between a KVM with Xen support and one without. Methods other than those that take a
/// [`VcpuFd`] may be called from any thread.
pub trait XenAccel: Send + Sync {
    /// `kernel` or `portable`.
    fn name(&self) -> &'static str;
    /// Prepare one vCPU, before its first run.
    fn setup_vcpu(&self, fd: &VcpuFd, vcpu: VcpuId) -> io::Result<()>;
    /// 64-bit (true) or 32-bit layout of shared_info.
    fn latch_long_mode(&self, long_mode: bool) -> io::Result<()>;
    /// shared_info is at this host address and, if the guest placed it, frame.
    fn shared_info(&self, hva: u64, gfn: Option<u64>) -> io::Result<()>;
    /// The callback of vCPUs without a vector of their own.
    fn callback(&self, via: CallbackVia) -> io::Result<()>;
    /// VMASST_TYPE_runstate_update_flag.
    fn runstate_update_flag(&self, on: bool) -> io::Result<()>;
    /// Apply a setting on the vCPU's own thread. `hva` translates guest-physical addresses.
    fn set_vcpu(&self, fd: &VcpuFd, attr: VcpuAttr, hva: &dyn Fn(Gpa) -> Option<u64>) -> io::Result<()>;
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
