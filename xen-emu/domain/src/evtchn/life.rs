//! What becomes of ports: VIRQs bound, ports moved, closed, and all of them reset.

use xen_abi::xen::Virq;

use crate::domain::Domain;
use crate::effect::{Port, VcpuId};
use crate::evtchn::Kind;
use crate::hypercall::Cx;

/// Ports that EVTCHNOP_reset closes before other vCPUs have their turn.
const CLOSED_AT_ONCE: u32 = 1024;

impl Domain {
    /// Notes the port of a VIRQ, 0 = none any more. VIRQ_TIMER is the machine's to raise.
    pub(crate) fn set_virq(&mut self, vcpu: VcpuId, virq: Virq, port: Port, cx: &mut Cx<'_>) {
        let state = self.vcpus.get_mut(vcpu as usize);
        if let Some(slot) = state.and_then(|vcpu| vcpu.virqs.get_mut(virq.0 as usize)) {
            *slot = port;
        }
        if virq == Virq::TIMER {
            cx.fx.set_timer_port(vcpu, (port != 0).then_some(port));
        }
    }

    /// EVTCHNOP_bind_vcpu. The other end of a loopback delivers here, so the machine hears of that one too.
    pub(crate) fn move_port(&mut self, port: Port, vcpu: VcpuId, cx: &mut Cx<'_>) {
        self.ports.edit(port, |channel| channel.vcpu = vcpu);
        self.offload(port, cx);
        if let Some(Kind::Loopback(other)) = self.ports.known(port).map(|channel| channel.kind) {
            self.offload(other, cx);
        }
    }

    /// Closes a port: whatever was bound to it lets go, and no event of it stays pending.
    pub(crate) fn close_port(&mut self, port: Port, cx: &mut Cx<'_>) {
        let Some(channel) = self.ports.known(port) else { return };
        self.retract(port, cx);
        match channel.kind {
            Kind::Virq(virq) => {
                // A global VIRQ is noted at vCPU 0 wherever its port has moved.
                let vcpu = if virq.is_per_vcpu() { channel.vcpu } else { 0 };
                self.set_virq(vcpu, virq, 0, cx);
            }
            Kind::Loopback(other) => {
                self.retract(other, cx);
                let remote = self.domid();
                self.ports.edit(other, |channel| channel.kind = Kind::Unbound { remote });
            }
            Kind::Backend(backend) => {
                let far = self.ports.far_port(backend);
                if let Some(end) = far.and_then(|far| self.ports.far_end(far)) {
                    end.near = None;
                }
            }
            Kind::Peer(far) => {
                self.ports.peers.remove(&far.backend);
                cx.fx.leave_peer(far.backend);
            }
            Kind::Free
            | Kind::Reserved
            | Kind::Held(_)
            | Kind::Unbound { .. }
            | Kind::Pirq(_)
            | Kind::Ipi => {}
        }
        let at = self.place(channel.vcpu);
        // Where the guest has no such word there is nothing to clear.
        let _ = self.ports.abi.clear_pending(cx.mem, &at, port);
        self.ports.free(port);
    }

    /// EVTCHNOP_reset: every port closes, the ones to the store and the console too, and the ABI is 2-level again. A
    /// bounded number at a time; false while there are more.
    pub(crate) fn reset_ports(&mut self, cx: &mut Cx<'_>) -> bool {
        self.let_go(cx);
        for _ in 0..CLOSED_AT_ONCE {
            let Some(port) = self.ports.last_in_use() else {
                self.switch_to_2l(cx);
                return true;
            };
            self.close_port(port, cx);
        }
        false
    }
}
