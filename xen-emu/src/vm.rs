//! What the main thread may ask of the running machine, and what the machine tells it.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use xen_emu_api::control::VcpuStatus;

/// The running machine, as the reactor, the control socket and the supervisor see it.
pub trait Vm: Send + Sync {
    /// Stop all vCPUs and return when they have stopped; idempotent.
    fn pause(&self);
    /// Let all vCPUs run; idempotent.
    fn unpause(&self);
    /// Paused by [`Vm::pause`].
    fn paused(&self) -> bool;
    /// Press the power button; the error says in one line why the guest cannot hear it.
    fn power_button(&self) -> Result<(), String>;
    /// NMI to one vCPU; the error is one line.
    fn nmi(&self, vcpu: u32) -> Result<(), String>;
    /// Every vCPU that exists.
    fn vcpus(&self) -> Vec<VcpuStatus>;
    /// RAM the guest has now, KiB.
    fn memory_kib(&self) -> u64;
    /// `kernel` or `portable`.
    fn backend(&self) -> &'static str;
    /// State as a text tree.
    fn describe(&self, path: &str) -> String;
    /// Write a core of the guest to a new file, its vCPUs stopped meanwhile; `stop` set from elsewhere: given up. Takes its time.
    fn dump_core(&self, path: &Path, stop: &AtomicBool) -> io::Result<()>;
    /// After [`VmEvent::Shutdown`] with SHUTDOWN_soft_reset: the guest's memory stays, and all that it had of Xen is as in a new domain. It
    /// is paused then. Called when no device is connected. An error says in one line why it is not possible; the domain stays shut down.
    fn soft_reset(&self) -> Result<(), String>;
    /// End all vCPU threads and wait for them; the machine cannot run again.
    fn stop(&self);
}

/// What the vCPU threads tell the main thread, over a calloop channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEvent {
    /// The guest has shut down with this SHUTDOWN_* code; its vCPUs have stopped running.
    Shutdown(u32),
    /// Triple fault, emulation failure or a host error: counts as a crash. The text is for the log.
    Failed(String),
}
