//! event_channel_op(cmd, arg): Xen's checks in Xen's order.

use xen_abi::Domid;
use xen_abi::errno::Errno;
use xen_abi::event_channel::{
    AllocUnbound, BindInterdomain, BindIpi, BindPirq, BindVcpu, BindVirq, Close, EvtchnOp, EvtchnStat,
    ExpandArray, InitControl, Reset, Send, SetPriority, Status, Unmask, fifo,
};
use xen_abi::xen::{Port as AbiPort, Virq};

use crate::domain::Domain;
use crate::effect::Port;
use crate::evtchn::{Kind, Switch};
use crate::hypercall::{Answer, Call, Cx, DONE, Handler, Outcome};
use crate::peer::{About, Ask, FarPort, Held, PeerBind, Told};

/// PIRQs that a domain can name: those of a small host and 32 more, as Xen's `nr_pirqs`.
const NR_PIRQS: u32 = 24 + 32;

pub(super) const OPS: &[(u32, Handler)] = &[
    (EvtchnOp::BIND_INTERDOMAIN.0, bind_interdomain),
    (EvtchnOp::BIND_VIRQ.0, bind_virq),
    (EvtchnOp::BIND_PIRQ.0, bind_pirq),
    (EvtchnOp::CLOSE.0, close),
    (EvtchnOp::SEND.0, send),
    (EvtchnOp::STATUS.0, status),
    (EvtchnOp::ALLOC_UNBOUND.0, alloc_unbound),
    (EvtchnOp::BIND_IPI.0, bind_ipi),
    (EvtchnOp::BIND_VCPU.0, bind_vcpu),
    (EvtchnOp::UNMASK.0, unmask),
    (EvtchnOp::RESET.0, reset),
    (EvtchnOp::INIT_CONTROL.0, init_control),
    (EvtchnOp::EXPAND_ARRAY.0, expand_array),
    (EvtchnOp::SET_PRIORITY.0, set_priority),
    (EvtchnOp::RESET_CONT.0, reset_cont),
];

/// A guest works on its own ports only: -EPERM for those of another domain that lives, of which that one's process is asked.
///
/// # Errors
/// That, or -ESRCH.
fn only_own(domain: &mut Domain, call: &Call, dom: Domid, cx: &mut Cx<'_>) -> Result<Option<Outcome>, Errno> {
    let mine = |about| matches!(about, About::Lives).then_some(());
    if let Some(((), told)) = domain.told(call.vcpu, mine, cx) {
        return Err(if told == Told::Nobody { Errno::ESRCH } else { Errno::EPERM });
    }
    match (domain.target(dom), domain.resolve(dom)) {
        (Err(Errno::ESRCH), other) if other.is_ordinary() => {
            domain.ask(call.vcpu, other, Ask::Lives, About::Lives, cx)?;
            Ok(Some(Outcome::Ask(*call)))
        }
        (permitted, _) => permitted.map(|()| None),
    }
}

fn alloc_unbound(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let mut alloc: AllocUnbound = cx.get(call.arg(1))?;
    if let Some(asked) = only_own(domain, call, alloc.dom, cx)? {
        return Ok(asked);
    }
    let remote = domain.resolve(alloc.remote_dom);
    let port = domain.ports.allocate(Kind::Unbound { remote }, 0, domain.width, cx.mem)?;
    alloc.port = AbiPort(port);
    cx.put(call.arg(1), &alloc)?;
    DONE
}

fn bind_interdomain(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let mine = |about| match about {
        About::Bind(bind) => Some(bind),
        _ => None,
    };
    if let Some((bind, told)) = domain.told(call.vcpu, mine, cx) {
        return bound_to_peer(domain, call, bind, &told, cx);
    }
    let mut bind: BindInterdomain = cx.get(call.arg(1))?;
    let far = bind.remote_port.0;
    let port = match domain.resolve(bind.remote_dom) {
        own if own == domain.domid() => bind_loopback(domain, far, cx)?,
        Domid::DOM0 => domain.bind_near(far, cx)?,
        other if other.is_ordinary() => return bind_peer(domain, call, other, far, cx),
        _ => return Err(Errno::ESRCH),
    };
    bind.local_port = AbiPort(port);
    cx.put(call.arg(1), &bind)?;
    DONE
}

/// The far end is another domain's, whose process has to agree; the port is held until it has.
fn bind_peer(domain: &mut Domain, call: &Call, remote: Domid, far: Port, cx: &mut Cx<'_>) -> Answer {
    let question = domain.questions;
    let local = domain.ports.allocate(Kind::Held(question), 0, domain.width, cx.mem)?;
    let held = Held { question, local };
    let about = About::Bind(PeerBind { remote, far, held });
    let asked = domain.ask(call.vcpu, remote, Ask::Bind { local, remote: far }, about, cx);
    asked.inspect_err(|_| domain.let_go_of(held)).map(|()| Outcome::Ask(*call))
}

/// It has agreed, or not. As with loopback, one event is made up.
fn bound_to_peer(
    domain: &mut Domain,
    call: &Call,
    PeerBind { remote, far, held }: PeerBind,
    told: &Told,
    cx: &mut Cx<'_>,
) -> Answer {
    let Told::Bound(backend) = *told else {
        domain.let_go_of(held);
        return Err(told.errno());
    };
    let local = held.local;
    if !domain.is_held(held) {
        cx.fx.leave_peer(backend);
        return Err(Errno::EINVAL);
    }
    domain.join_peer(local, FarPort { domid: remote, port: far, backend }, cx);
    domain.set_pending(local, cx);
    let (remote_port, local_port) = (AbiPort(far), AbiPort(local));
    cx.put(call.arg(1), &BindInterdomain { remote_dom: remote, pad: 0, remote_port, local_port })?;
    DONE
}

/// Both ends in this domain. What was sent on the far end while it was unbound is lost, so one event is made up. As everywhere
/// here a port of one's own is wanted before the far end is looked at.
fn bind_loopback(domain: &mut Domain, far: Port, cx: &mut Cx<'_>) -> Result<Port, Errno> {
    domain.ports.vacant(domain.width, cx.mem)?;
    let remote = domain.domid();
    if domain.ports.get(far, domain.width)?.kind != (Kind::Unbound { remote }) {
        return Err(Errno::EINVAL);
    }
    let port = domain.ports.allocate(Kind::Loopback(far), 0, domain.width, cx.mem)?;
    domain.ports.edit(far, |channel| channel.kind = Kind::Loopback(port));
    domain.offload(port, cx);
    domain.offload(far, cx);
    domain.set_pending(port, cx);
    Ok(port)
}

fn bind_virq(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let mut bind: BindVirq = cx.get(call.arg(1))?;
    let virq = Virq(bind.virq);
    if bind.virq >= Virq::NR_VIRQS || (!virq.is_per_vcpu() && bind.vcpu != 0) {
        return Err(Errno::EINVAL);
    }
    if domain.vcpu(bind.vcpu)?.virq_port(virq).is_some() {
        return Err(Errno::EEXIST);
    }
    let port = domain.ports.allocate(Kind::Virq(virq), bind.vcpu, domain.width, cx.mem)?;
    domain.set_virq(bind.vcpu, virq, port, cx);
    bind.port = AbiPort(port);
    cx.put(call.arg(1), &bind)?;
    DONE
}

/// As Xen for an HVM guest: the port is there, but no physical interrupt is routed to this domain, and nobody looks at the flags.
fn bind_pirq(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let mut bind: BindPirq = cx.get(call.arg(1))?;
    if bind.pirq >= NR_PIRQS {
        return Err(Errno::EINVAL);
    }
    if domain.ports.in_use().any(|(_, channel)| channel.kind == Kind::Pirq(bind.pirq)) {
        return Err(Errno::EEXIST);
    }
    let port = domain.ports.allocate(Kind::Pirq(bind.pirq), 0, domain.width, cx.mem)?;
    bind.port = AbiPort(port);
    cx.put(call.arg(1), &bind)?;
    DONE
}

fn bind_ipi(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let mut bind: BindIpi = cx.get(call.arg(1))?;
    domain.vcpu(bind.vcpu)?;
    let port = domain.ports.allocate(Kind::Ipi, bind.vcpu, domain.width, cx.mem)?;
    domain.offload(port, cx);
    bind.port = AbiPort(port);
    cx.put(call.arg(1), &bind)?;
    DONE
}

fn close(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let Close { port } = cx.get(call.arg(1))?;
    if !domain.ports.get(port.0, domain.width)?.kind.is_open() {
        return Err(Errno::EINVAL);
    }
    domain.close_port(port.0, cx);
    DONE
}

fn send(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let Send { port } = cx.get(call.arg(1))?;
    match domain.ports.get(port.0, domain.width)?.kind {
        Kind::Backend(backend) | Kind::Peer(FarPort { backend, .. }) => cx.fx.kick(backend),
        Kind::Loopback(other) => domain.set_pending(other, cx),
        Kind::Ipi => domain.set_pending(port.0, cx),
        // Nobody there to hear it.
        Kind::Unbound { .. } => {}
        Kind::Free | Kind::Reserved | Kind::Held(_) | Kind::Virq(_) | Kind::Pirq(_) => {
            return Err(Errno::EINVAL);
        }
    }
    DONE
}

fn status(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let mut status: Status = cx.get(call.arg(1))?;
    // Xen looks for the port first, and there is none so high in any domain.
    let beyond = status.port.0 >= fifo::NR_CHANNELS;
    let asked = only_own(domain, call, status.dom, cx);
    if let Some(asked) = asked.map_err(|e| if e == Errno::EPERM && beyond { Errno::EINVAL } else { e })? {
        return Ok(asked);
    }
    let channel = domain.ports.get(status.port.0, domain.width)?;
    let own = domain.domid().0.into();
    (status.status, status.u, status.u_port) = match channel.kind {
        Kind::Free | Kind::Reserved | Kind::Held(_) => (EvtchnStat::CLOSED, status.u, status.u_port),
        Kind::Unbound { remote } => (EvtchnStat::UNBOUND, remote.0.into(), status.u_port),
        Kind::Loopback(port) => (EvtchnStat::INTERDOMAIN, own, AbiPort(port)),
        Kind::Peer(far) => (EvtchnStat::INTERDOMAIN, far.domid.0.into(), AbiPort(far.port)),
        Kind::Backend(backend) => {
            let far = domain.ports.far_port(backend).unwrap_or(0);
            (EvtchnStat::INTERDOMAIN, Domid::DOM0.0.into(), AbiPort(far))
        }
        Kind::Virq(virq) => (EvtchnStat::VIRQ, virq.0, status.u_port),
        Kind::Pirq(pirq) => (EvtchnStat::PIRQ, pirq, status.u_port),
        Kind::Ipi => (EvtchnStat::IPI, status.u, status.u_port),
    };
    status.vcpu = channel.vcpu;
    cx.put(call.arg(1), &status)?;
    DONE
}

fn bind_vcpu(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let BindVcpu { port, vcpu } = cx.get(call.arg(1))?;
    domain.vcpu(vcpu)?;
    match domain.ports.get(port.0, domain.width)?.kind {
        Kind::Unbound { .. } | Kind::Backend(_) | Kind::Peer(_) | Kind::Loopback(_) | Kind::Pirq(_) => {}
        Kind::Virq(virq) if !virq.is_per_vcpu() => {}
        Kind::Free | Kind::Reserved | Kind::Held(_) | Kind::Virq(_) | Kind::Ipi => return Err(Errno::EINVAL),
    }
    domain.move_port(port.0, vcpu, cx);
    DONE
}

/// An event that waited behind the mask is raised anew, by whoever raises events on this domain. The words of closed ports
/// are the guest's own.
fn unmask(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let Unmask { port } = cx.get(call.arg(1))?;
    let channel = domain.ports.get(port.0, domain.width)?;
    if !channel.kind.is_open() {
        return DONE;
    }
    let at = domain.place(channel.vcpu);
    if domain.ports.abi.unmask(cx.mem, &at, port.0)? {
        domain.set_pending(port.0, cx);
    }
    DONE
}

fn reset(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let Reset { dom } = cx.get(call.arg(1))?;
    if let Some(asked) = only_own(domain, call, dom, cx)? {
        return Ok(asked);
    }
    if domain.reset_ports(cx) { DONE } else { Ok(Outcome::Again(*call)) }
}

/// Xen's own continuation of a reset, which no guest is in the middle of.
fn reset_cont(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let Reset { dom } = cx.get(call.arg(1))?;
    only_own(domain, call, dom, cx)?.ok_or(Errno::EBUSY)
}

fn set_priority(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let SetPriority { port, priority } = cx.get(call.arg(1))?;
    let kind = domain.ports.get(port.0, domain.width)?.kind;
    if domain.ports.abi.fifo().is_some() && !kind.is_open() {
        return Err(Errno::EACCES);
    }
    domain.ports.abi.set_priority(port.0, priority)?;
    DONE
}

/// The first one makes FIFO the ABI; each gives a vCPU its control block.
fn init_control(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    if !domain.config.fifo {
        return Err(Errno::ENOSYS);
    }
    let mut init: InitControl = cx.get(call.arg(1))?;
    domain.vcpu(init.vcpu)?;
    let block = domain.control_block(init.control_gfn, init.offset)?;
    if domain.switch_to_fifo(call.vcpu, cx) == Switch::Pending {
        return Ok(Outcome::Again(*call));
    }
    domain.ports.abi.fifo().ok_or(Errno::EINVAL)?.set_control(init.vcpu, block)?;
    init.link_bits = fifo::LINK_BITS;
    cx.put(call.arg(1), &init)?;
    DONE
}

fn expand_array(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    if !domain.config.fifo {
        return Err(Errno::ENOSYS);
    }
    let ExpandArray { array_gfn } = cx.get(call.arg(1))?;
    domain.expand_array(array_gfn, cx)?;
    DONE
}
