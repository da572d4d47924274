//! The seam between the port table and the words in guest memory, with the verbs of Xen's `evtchn_port_ops`.
//!
//! [`TwoLevel`](crate::evtchn::abi_2l::TwoLevel) is the ABI every domain starts with, [`Fifo`] the one it may switch to.

use std::fmt::Debug;

use xen_abi::Width;
use xen_abi::errno::Errno;
use xen_abi::shared_info::Layout;

use crate::effect::{Port, VcpuId};
use crate::evtchn::abi_fifo::Fifo;
use crate::mem::{Fault, Gpa, GuestMem};

/// Where the words of one delivery lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The shared_info page.
    pub shared_info: Gpa,
    /// Which layout shared_info and vcpu_info have.
    pub layout: Layout,
    /// The vCPU that the port notifies.
    pub vcpu: VcpuId,
    /// Its vcpu_info; `None` for vCPUs from 32 that have not registered one.
    pub vcpu_info: Option<Gpa>,
}

/// What setting a port pending came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Raised {
    /// It was pending or is masked, or the vCPU knows already that something is pending.
    Quiet,
    /// `evtchn_upcall_pending` went from 0 to 1: the vCPU must be interrupted.
    Upcall,
}

/// One event channel ABI. A [`Fault`] means that the guest has no such word (any more); the event is lost, as on Xen.
pub(crate) trait PortOps: Debug + Send {
    /// How guests call it.
    fn name(&self) -> &'static str;
    /// Ports that its words can express.
    fn max_ports(&self, width: Width) -> u32;
    /// Whether the machine knows this ABI and may raise ports by itself.
    fn offloadable(&self) -> bool;
    /// The port has been allocated.
    fn init(&mut self, _port: Port) {}
    /// Whether a free port is not to be allocated yet, as its last event is still queued.
    fn is_busy(&self, _mem: &dyn GuestMem, _port: Port) -> bool {
        false
    }
    /// Sets the port pending and notifies the vCPU as far as memory goes.
    fn set_pending(&mut self, mem: &dyn GuestMem, at: &Place, port: Port) -> Result<Raised, Fault>;
    /// Forgets a pending event, which the port's vCPU may take at the same moment. True: there was one.
    fn clear_pending(&mut self, mem: &dyn GuestMem, at: &Place, port: Port) -> Result<bool, Fault>;
    /// Unmasks the port. True: an event waits behind the mask; raise it again.
    fn unmask(&mut self, mem: &dyn GuestMem, at: &Place, port: Port) -> Result<bool, Fault>;
    /// Whether an event is pending.
    fn is_pending(&self, mem: &dyn GuestMem, at: &Place, port: Port) -> Result<bool, Fault>;
    /// EVTCHNOP_set_priority.
    fn set_priority(&mut self, _port: Port, _priority: u32) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    /// The FIFO ABI, if this is it.
    fn fifo(&mut self) -> Option<&mut Fifo> {
        None
    }
}
