//! The configuration of one domain, after all parsing: what `xlr create` hands to `xen-emu`.

use crate::bootloader::Bootloader;
use crate::device::Device;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What happens when a domain shuts down; the values of `on_poweroff` and its siblings in xl.cfg(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Free everything.
    Destroy,
    /// Build the domain anew with a new domid.
    Restart,
    /// Keep the dead domain under another name and build a new one.
    RenameRestart,
    /// Keep the dead domain for inspection until `xlr destroy`.
    Preserve,
    /// Write a core, then destroy.
    CoredumpDestroy,
    /// Write a core, then restart.
    CoredumpRestart,
    /// Reset the domain in place, keeping its domid.
    SoftReset,
}

impl Action {
    /// Every action with its xl.cfg spelling.
    pub const ALL: [(&'static str, Action); 7] = [
        ("destroy", Action::Destroy),
        ("restart", Action::Restart),
        ("rename-restart", Action::RenameRestart),
        ("preserve", Action::Preserve),
        ("coredump-destroy", Action::CoredumpDestroy),
        ("coredump-restart", Action::CoredumpRestart),
        ("soft-reset", Action::SoftReset),
    ];

    /// The xl.cfg spelling.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|&&(_, a)| a == self).map_or("destroy", |&(n, _)| n)
    }
}

/// How a vCPU hears of its event channels: what `upcall` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Upcall {
    /// By what costs fewer exits on this host.
    #[default]
    Auto,
    /// A vector per vCPU, through its local APIC (`XEN_HVM_CPUID_UPCALL_VECTOR`).
    Vector,
    /// One callback vector for all (`HVM_PARAM_CALLBACK_IRQ`), past the local APIC; the guest is not told of the other.
    Global,
}

impl Upcall {
    /// Every way with its spelling.
    pub const ALL: [(&'static str, Upcall); 3] =
        [("auto", Upcall::Auto), ("vector", Upcall::Vector), ("global", Upcall::Global)];
}

/// What the guest is told of its TSC, which is the host's, at most offset and scaled: what `tsc_mode` says, by its
/// number in Xen's CPUID leaf base+3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TscMode {
    /// Native where that is good enough.
    #[default]
    Default = 0,
    /// Never emulated: guests may keep time by it.
    Native = 2,
}

/// Why a domain has shut down: SHUTDOWN_* of Xen's `public/sched.h`.
pub mod reason {
    /// The guest has powered off.
    pub const POWEROFF: u32 = 0;
    /// It wants to be started again.
    pub const REBOOT: u32 = 1;
    /// It has suspended itself.
    pub const SUSPEND: u32 = 2;
    /// It has crashed.
    pub const CRASH: u32 = 3;
    /// Its watchdog has run out.
    pub const WATCHDOG: u32 = 4;
    /// It wants to be reset in place.
    pub const SOFT_RESET: u32 = 5;
}

/// Which event channel ABI a guest is offered: what `event_channels` says. Every guest starts with 2-level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventChannels {
    /// 2-level, which the kernel delivers; FIFO too where `max_event_channels` goes beyond it.
    #[default]
    Auto,
    /// FIFO too: up to 131071 ports, with priorities.
    Fifo,
    /// 2-level only.
    TwoLevel,
}

impl EventChannels {
    /// Every choice with its spelling.
    pub const ALL: [(&'static str, EventChannels); 3] =
        [("auto", EventChannels::Auto), ("fifo", EventChannels::Fifo), ("2level", EventChannels::TwoLevel)];
}

/// Which of KVM's ways to Xen's interfaces a domain goes: what `accel` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// `Kernel` where the host has it, else `Portable`.
    #[default]
    Auto,
    /// KVM_XEN: the host's kernel sends events, runs timers and keeps the clocks.
    Kernel,
    /// Everything in userspace, on any KVM from Linux 5.10.
    Portable,
}

impl Accel {
    /// Every choice with its spelling.
    pub const ALL: [(&'static str, Accel); 3] =
        [("auto", Accel::Auto), ("kernel", Accel::Kernel), ("portable", Accel::Portable)];
}

/// The `on_*` keys of one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actions {
    /// `on_poweroff`
    pub poweroff: Action,
    /// `on_reboot`
    pub reboot: Action,
    /// `on_crash`
    pub crash: Action,
    /// `on_watchdog`
    pub watchdog: Action,
    /// `on_soft_reset`
    pub soft_reset: Action,
}

impl Default for Actions {
    /// xl's defaults.
    fn default() -> Self {
        Actions {
            poweroff: Action::Destroy,
            reboot: Action::Restart,
            crash: Action::Destroy,
            watchdog: Action::Destroy,
            soft_reset: Action::SoftReset,
        }
    }
}

impl Actions {
    /// What is configured for a shutdown for this [`reason`]; `None` for a suspend and for what is no reason.
    #[must_use]
    pub fn after(&self, reason: u32) -> Option<Action> {
        match reason {
            reason::POWEROFF => Some(self.poweroff),
            reason::REBOOT => Some(self.reboot),
            reason::CRASH => Some(self.crash),
            reason::WATCHDOG => Some(self.watchdog),
            reason::SOFT_RESET => Some(self.soft_reset),
            _ => None,
        }
    }
}

/// Xen's own hypervisor, built to run one PV guest in a PVH one: `pvshim` and its siblings in xl.cfg(5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PvShim {
    /// The shim, which is started by PVH. Absolute.
    pub path: PathBuf,
    /// Its command line; the guest's goes to the guest.
    pub cmdline: String,
}

/// One domain as it shall be built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainConfig {
    /// Unique among the living domains; no `/`, not all digits, not empty.
    pub name: String,
    /// Canonical lower-case text form, 36 characters.
    pub uuid: String,
    /// Kernel image: ELF with a PVH note, or a bzImage that holds one. Absolute; empty with a boot loader.
    pub kernel: PathBuf,
    /// Ramdisk, handed over as the last module. Absolute.
    pub ramdisk: Option<PathBuf>,
    /// Kernel command line; with a boot loader it comes behind the one in the guest's menu.
    pub cmdline: String,
    /// Kernel and ramdisk are on the first disk that can be booted, read anew at every start.
    #[serde(default)]
    pub bootloader: Option<Bootloader>,
    /// The kernel is a PV one, which this runs.
    #[serde(default)]
    pub pvshim: Option<PvShim>,
    /// RAM at start, MiB.
    pub memory_mib: u64,
    /// RAM the balloon may grow to, MiB; at least `memory_mib`.
    pub maxmem_mib: u64,
    /// vCPUs online at start.
    pub vcpus: u32,
    /// vCPUs that exist; at least `vcpus`.
    pub max_vcpus: u32,
    /// Hard affinity: no entry = all host CPUs; one entry = for all vCPUs; else one per vCPU.
    pub cpus: Vec<Vec<usize>>,
    /// The `on_*` actions.
    pub actions: Actions,
    /// Power button, SCI and `\_S5`; false = Xen's own strict PVH tables.
    pub acpi: bool,
    /// Grant table frames the guest may have.
    pub max_grant_frames: u32,
    /// Highest version of the grant table that the guest may choose, 1 or 2.
    #[serde(default = "both")]
    pub max_grant_version: u32,
    /// The ABI of event channels.
    #[serde(default)]
    pub event_channels: EventChannels,
    /// Highest event channel port.
    pub max_event_channels: u32,
    /// How upcalls are delivered.
    #[serde(default)]
    pub upcall: Upcall,
    /// What the guest is told of its TSC.
    #[serde(default)]
    pub tsc_mode: TscMode,
    /// KVM_XEN or not.
    #[serde(default)]
    pub accel: Accel,
    /// Without KVM_XEN: whether the hypercall instructions of a kernel that uses no hypercall page are written over in its
    /// memory. `None`: where that can be done.
    #[serde(default)]
    pub hypercall_rewrite: Option<bool>,
    /// PV devices, in the order of the configuration; no two of one kind have the same id.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// The configuration file this came from, for messages and `list -l`.
    pub source: Option<PathBuf>,
}

/// What `xlr create` writes to `launch.json` in the domain's run directory and `xen-emu` reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// The domid, already reserved.
    pub domid: u16,
    /// The run directory's root (`/run/xlr`).
    pub run_root: PathBuf,
    /// xenstored's socket.
    pub xenstored: PathBuf,
    /// Stay paused after the build: `create -p`; `-c` and `-F` until xlr watches.
    pub paused: bool,
    /// Carry out `on_*`; false (`create -e`) leaves a shut-down domain as it is.
    pub supervise: bool,
    /// The domain.
    pub config: DomainConfig,
}
/// Versions of the grant table.
fn both() -> u32 {
    2
}
