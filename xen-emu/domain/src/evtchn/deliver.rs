//! Bringing a port to the guest: one path for every kind of event.

use xen_abi::shared_info::Layout;

use crate::domain::Domain;
use crate::effect::{Effects, Offload, Port, VcpuId};
use crate::evtchn::Kind;
use crate::evtchn::abi::{Place, Raised};
use crate::hypercall::Cx;
use crate::mem::SpecialPage;
use crate::peer::FarPort;
use crate::vcpu::Waiting;

impl Domain {
    /// Where the words of a delivery to `vcpu` lie.
    pub(crate) fn place(&self, vcpu: VcpuId) -> Place {
        Place {
            shared_info: SpecialPage::SharedInfo.home(),
            layout: Layout::of(self.width),
            vcpu,
            vcpu_info: self.vcpu_info(vcpu),
        }
    }

    /// Sets a port pending and notifies its vCPU: by the machine where it can, else word by word.
    pub(crate) fn set_pending(&mut self, port: Port, cx: &mut Cx<'_>) {
        let Some(channel) = self.ports.known(port) else { return };
        let by_machine = self.ports.abi.offloadable() && cx.fx.raise(port, channel.vcpu);
        if !by_machine {
            let at = self.place(channel.vcpu);
            if self.ports.abi.set_pending(cx.mem, &at, port) == Ok(Raised::Upcall) {
                cx.fx.upcall(channel.vcpu);
            }
        }
        self.wake_waiting(port, channel.vcpu, cx.fx);
    }

    /// Wakes the vCPUs whose SCHEDOP_poll or SCHEDOP_block this event ends; a poll ends even behind a mask.
    fn wake_waiting(&mut self, port: Port, notified: VcpuId, fx: &mut dyn Effects) {
        for (id, vcpu) in (0..).zip(self.vcpus.iter_mut()) {
            let woken = match vcpu.waiting {
                Waiting::No => false,
                Waiting::Upcall => id == notified,
                Waiting::Port(polled) => polled == port,
                Waiting::AnyPort => true,
            };
            if woken {
                vcpu.waiting = Waiting::No;
                fx.wake(id);
            }
        }
    }

    /// Offers a port that can be sent on to the machine; again after it has moved to another vCPU.
    pub(crate) fn offload(&mut self, port: Port, cx: &mut Cx<'_>) {
        let Some(channel) = self.ports.known(port) else { return };
        if !self.ports.abi.offloadable() {
            return;
        }
        let how = match channel.kind {
            Kind::Ipi => Offload::Ipi(channel.vcpu),
            Kind::Backend(backend) | Kind::Peer(FarPort { backend, .. }) => {
                Offload::Backend(backend, channel.vcpu)
            }
            Kind::Loopback(other) => {
                let vcpu = self.ports.known(other).map_or(0, |other| other.vcpu);
                Offload::Loopback { port: other, vcpu }
            }
            Kind::Free
            | Kind::Reserved
            | Kind::Held(_)
            | Kind::Unbound { .. }
            | Kind::Virq(_)
            | Kind::Pirq(_) => return,
        };
        let offloaded = cx.fx.offload(port, how);
        self.ports.edit(port, |channel| channel.offloaded = offloaded);
    }

    /// Takes a port back from the machine.
    pub(crate) fn retract(&mut self, port: Port, cx: &mut Cx<'_>) {
        if self.ports.known(port).is_some_and(|channel| channel.offloaded) {
            cx.fx.retract(port);
            self.ports.edit(port, |channel| channel.offloaded = false);
        }
    }
}
