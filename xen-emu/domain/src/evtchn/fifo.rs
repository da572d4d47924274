//! Switching to the FIFO ABI, the pages it lives in, and back.

use xen_abi::errno::Errno;
use xen_abi::event_channel::FifoControlBlock;

use crate::domain::Domain;
use crate::effect::{Port, VcpuId};
use crate::evtchn::abi::PortOps;
use crate::evtchn::abi_2l::TwoLevel;
use crate::evtchn::abi_fifo::Fifo;
use crate::hypercall::Cx;
use crate::mem::{Gfn, Gpa};

/// What a vCPU's control block needs of the caller's switch to FIFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// All is as it must be.
    Done,
    /// The machine has been told to let go; when it has, ask again.
    Pending,
}

impl Domain {
    /// The place of a control block, as the guest names it.
    ///
    /// # Errors
    /// -EINVAL where it crosses a page, is not 8-byte aligned, or does not lie in RAM that the guest has.
    pub(crate) fn control_block(&self, gfn: u64, offset: u32) -> Result<Gpa, Errno> {
        let last = xen_abi::xen::PAGE_SIZE - size_of::<FifoControlBlock>();
        if offset as usize > last || !offset.is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        Ok(self.event_page(gfn)?.gpa().offset(offset.into()))
    }

    /// A page for events: plain RAM only. Special pages and grants of others can go away under our hands.
    fn event_page(&self, gfn: u64) -> Result<Gfn, Errno> {
        if self.physmap.is_present(Gfn(gfn)) { Ok(Gfn(gfn)) } else { Err(Errno::EINVAL) }
    }

    /// Makes FIFO the ABI, for a call of `vcpu`. The machine lets go of every port first, which other vCPUs may take part in; what was
    /// pending by then waits for the event array. A call of another vCPU meanwhile finds FIFO.
    pub(crate) fn switch_to_fifo(&mut self, vcpu: VcpuId, cx: &mut Cx<'_>) -> Switch {
        let Some(fifo) = self.ports.abi.fifo() else {
            cx.fx.set_fifo(true);
            self.let_go(cx);
            self.ports.abi = Box::new(Fifo::new(self.vcpus.len(), vcpu));
            self.retell_timers(cx);
            return Switch::Pending;
        };
        if fifo.settler.take_if(|settler| *settler == vcpu).is_some() {
            self.take_over(cx);
        }
        Switch::Done
    }

    /// Takes what is pending in the 2-level bitmap. A port's priority is the default one.
    fn take_over(&mut self, cx: &mut Cx<'_>) {
        let ports: Vec<(Port, VcpuId)> = self.ports.in_use().map(|(port, c)| (port, c.vcpu)).collect();
        for (port, vcpu) in ports {
            let at = self.place(vcpu);
            // A vCPU that is still at its 2-level bitmap takes the event, or it is taken here: never both.
            if TwoLevel.clear_pending(cx.mem, &at, port) == Ok(true) {
                // It waits for the event array, unless another vCPU has been so quick as to provide that.
                self.set_pending(port, cx);
            }
        }
    }

    /// EVTCHNOP_expand_array.
    ///
    /// # Errors
    /// -EOPNOTSUPP under 2-level, -ENOSPC when the array is full, -EINVAL where the guest has no RAM.
    pub(crate) fn expand_array(&mut self, gfn: u64, cx: &mut Cx<'_>) -> Result<(), Errno> {
        let page = self.event_page(gfn);
        let fifo = self.ports.abi.fifo().ok_or(Errno::EOPNOTSUPP)?;
        fifo.has_room()?;
        for port in fifo.add_page(page?) {
            self.set_pending(port, cx);
        }
        Ok(())
    }

    /// All ports are closed: 2-level again, with nothing pending.
    pub(crate) fn switch_to_2l(&mut self, cx: &mut Cx<'_>) {
        if self.ports.abi.fifo().is_some() {
            self.ports.abi = Box::new(TwoLevel);
            cx.fx.set_fifo(false);
        }
    }

    /// The machine forgets every port that it handles.
    pub(crate) fn let_go(&mut self, cx: &mut Cx<'_>) {
        cx.fx.retract_all();
        self.ports.edit_all(|channel| channel.offloaded = false);
    }

    /// The machine hears again of the timers' ports, now that the ABI is another one.
    fn retell_timers(&mut self, cx: &mut Cx<'_>) {
        for (id, vcpu) in (0..).zip(&self.vcpus) {
            if let Some(port) = vcpu.virq_port(xen_abi::xen::Virq::TIMER) {
                cx.fx.set_timer_port(id, Some(port));
            }
        }
    }
}
