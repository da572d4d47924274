//! What event channel operations answer, by a table of calls and errnos: in the 2-level layout and, where the domain has it,
//! in FIFO. Before and after, every port is what it was.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use Errno as E;
use EvtchnOp as Op;
use guest::events::{Events, bind_ipi, bind_virq, evtchn_op, status};
use guest::page::Page;
use guest::{Stop, Verdict, boot, check_eq, fail, fifo, hypercall, println};
use xen_abi::Errno;
use xen_abi::event_channel::{
    AllocUnbound, BindInterdomain, BindPirq, Close, EvtchnOp, EvtchnStat, ExpandArray, Reset, Status,
};
use xen_abi::hvm::params::HvmParam;
use xen_abi::hypercall::Hypercall;
use xen_abi::xen::{Domid, Port, Virq};

guest::test!(run);

const OK: Result<(), Errno> = Ok(());
const SELF: u32 = 0x7ff0;
const DOM0: u32 = 0;
/// Of no domain: an ordinary number, and one of those that Xen keeps.
const NOBODY: u32 = 0x1234;
const INVALID: u32 = 0x7ff4;
/// A vCPU, and a port, that no domain has.
const NO_VCPU: u32 = 9999;
const NO_PORT: u32 = u32::MAX;
const PIRQ: u32 = 3;
/// A global VIRQ.
const CONSOLE: u32 = 2;
/// Xen makes ports by so many.
const BUCKET: u32 = 64;
/// As many ports as FIFO has.
const PORTS_MAX: u32 = 1 << 17;
/// There is no memory.
const NOWHERE: u64 = 0x7fff_ffff_f000;

static SPARE: Page = Page::zero();

/// A call: the operation, the words of its argument, and what it answers.
type Row<'a> = (Op, &'a [u32], Result<(), Errno>);

/// A port of each kind.
struct Ports {
    ipi: u32,
    timer: u32,
    global: u32,
    pirq: u32,
    unbound: u32,
    near: u32,
    far: u32,
    closed: u32,
    /// The store's, and where that leads to in domain 0.
    store: u32,
    remote: u32,
}

impl Ports {
    fn bind() -> Result<Self, Stop> {
        let store = u32::try_from(hypercall::hvm_get_param(HvmParam::STORE_EVTCHN)?).unwrap_or(0);
        let mut pirq = BindPirq { pirq: PIRQ, flags: 0, port: Port(0) };
        evtchn_op(Op::BIND_PIRQ, &mut pirq)?;
        let unbound = |remote_dom| -> Result<u32, Errno> {
            let mut alloc = AllocUnbound { dom: Domid::SELF, remote_dom, port: Port(0) };
            evtchn_op(Op::ALLOC_UNBOUND, &mut alloc)?;
            Ok(alloc.port.0)
        };
        let far = unbound(Domid::SELF)?;
        let mut near =
            BindInterdomain { remote_dom: Domid::SELF, pad: 0, remote_port: Port(far), local_port: Port(0) };
        evtchn_op(Op::BIND_INTERDOMAIN, &mut near)?;
        let ports = Self {
            ipi: bind_ipi(0)?.0,
            timer: bind_virq(Virq::TIMER, 0)?.0,
            global: bind_virq(Virq(CONSOLE), 0)?.0,
            pirq: pirq.port.0,
            unbound: unbound(Domid::DOM0)?,
            near: near.local_port.0,
            far,
            closed: bind_ipi(0)?.0,
            store,
            remote: status(Port(store))?.u_port.0,
        };
        evtchn_op(Op::CLOSE, &mut Close { port: Port(ports.closed) })?;
        Ok(ports)
    }

    fn all(&self) -> [u32; 9] {
        let Self { ipi, timer, global, pirq, unbound, near, far, closed, store, .. } = *self;
        [ipi, timer, global, pirq, unbound, near, far, closed, store]
    }

    /// What EVTCHNOP_status says of each: status, vCPU, what follows, and the remote port where there is one.
    fn states(&self) -> Result<[[u32; 4]; 9], Errno> {
        let mut states = [[0; 4]; 9];
        for (state, port) in states.iter_mut().zip(self.all()) {
            let Status { status, vcpu, u, u_port, .. } = status(Port(port))?;
            *state = [status.0, vcpu, u, u_port.0];
        }
        Ok(states)
    }
}

fn run() -> Verdict {
    let _ = Events::map()?;
    let ports = Ports::bind()?;
    let [ipi, timer, global, pirq, unbound, near, far, closed, store] =
        ports.states()?.map(|[status, vcpu, ..]| (EvtchnStat(status), vcpu));
    let virq = (EvtchnStat::VIRQ, 0);
    let interdomain = (EvtchnStat::INTERDOMAIN, 0);
    check_eq!([timer, global], [virq; 2], "status of VIRQs");
    check_eq!([near, far, store], [interdomain; 3], "status of interdomain ports");
    check_eq!([ipi, pirq], [(EvtchnStat::IPI, 0), (EvtchnStat::PIRQ, 0)], "status of an IPI and a PIRQ");
    check_eq!([unbound.0, closed.0], [EvtchnStat::UNBOUND, EvtchnStat::CLOSED], "status of the others");
    table(&ports, "2-level", without_fifo)?;
    match fifo::init_control(0) {
        Err(E::ENOSYS) => println!("no FIFO here"),
        answer => {
            answer?;
            fifo::expand_array(1024)?;
            table(&ports, "FIFO", with_fifo)?;
            array_full()?;
        }
    }
    full()?;
    evtchn_op(Op::RESET, &mut Reset { dom: Domid::SELF })?;
    let all = status(Port(ports.ipi))?.status;
    check_eq!(all, EvtchnStat::CLOSED, "status after a reset");
    check_eq!(bind_ipi(0), Ok(Port(1)), "the first port after a reset");
    Ok(())
}

fn ask(op: Op, words: &[u32]) -> Result<(), Errno> {
    let mut arg = [0; 8];
    for (to, from) in arg.iter_mut().zip(words) {
        *to = *from;
    }
    evtchn_op(op, &mut arg).map(drop)
}

fn table(ports: &Ports, abi: &str, layout: fn(&Ports) -> Verdict) -> Verdict {
    let before = ports.states()?;
    binds(ports)?;
    uses(ports)?;
    layout(ports)?;
    for op in (0..15).map(Op) {
        let answer = hypercall::call(Hypercall::EVENT_CHANNEL_OP, &[op.0.into(), NOWHERE]);
        // Where there is no FIFO at all the two are not known.
        let unknown = [Op::INIT_CONTROL, Op::EXPAND_ARRAY].contains(&op) && answer == Err(E::ENOSYS);
        check_eq!(unknown || answer == Err(E::EFAULT), true, "{op} without an argument ({abi}): {answer:?}");
    }
    check_eq!(ask(Op::RESET_CONT, &[u32::from(Domid::SELF.0)]), Err(E::EBUSY), "no reset goes on ({abi})");
    for op in [15, 99, u32::MAX] {
        check_eq!(ask(Op(op), &[]), Err(E::ENOSYS), "operation {op} ({abi})");
    }
    let after = ports.states()?;
    for ((port, before), after) in ports.all().into_iter().zip(before).zip(after) {
        check_eq!(after, before, "{abi}: port {port} after the table");
    }
    println!("{abi}: as in the table");
    Ok(())
}

fn rows(rows: &[Row<'_>]) -> Verdict {
    for &(op, words, want) in rows {
        let answer = ask(op, words);
        if answer != want {
            fail!("{op} {words:x?}: want {want:?}, got {answer:?}");
        }
    }
    Ok(())
}

fn binds(ports: &Ports) -> Verdict {
    let Ports { ipi, unbound, near, closed, remote, .. } = *ports;
    rows(&[
        (Op::ALLOC_UNBOUND, &[DOM0, 0], Err(E::EPERM)),
        (Op::ALLOC_UNBOUND, &[NOBODY, 0], Err(E::ESRCH)),
        (Op::ALLOC_UNBOUND, &[INVALID, 0], Err(E::ESRCH)),
        (Op::BIND_INTERDOMAIN, &[NOBODY, 1], Err(E::ESRCH)),
        (Op::BIND_INTERDOMAIN, &[INVALID, 1], Err(E::ESRCH)),
        (Op::BIND_INTERDOMAIN, &[SELF, 0], Err(E::EINVAL)),
        (Op::BIND_INTERDOMAIN, &[SELF, NO_PORT], Err(E::EINVAL)),
        (Op::BIND_INTERDOMAIN, &[SELF, closed], Err(E::EINVAL)),
        (Op::BIND_INTERDOMAIN, &[SELF, ipi], Err(E::EINVAL)),
        (Op::BIND_INTERDOMAIN, &[SELF, near], Err(E::EINVAL)),
        // It waits for domain 0.
        (Op::BIND_INTERDOMAIN, &[SELF, unbound], Err(E::EINVAL)),
        (Op::BIND_INTERDOMAIN, &[DOM0, NO_PORT], Err(E::EINVAL)),
        (Op::BIND_INTERDOMAIN, &[DOM0, remote], Err(E::EINVAL)),
        (Op::BIND_VIRQ, &[24, 0], Err(E::EINVAL)),
        (Op::BIND_VIRQ, &[u32::MAX, 0], Err(E::EINVAL)),
        (Op::BIND_VIRQ, &[Virq::DEBUG.0, NO_VCPU], Err(E::ENOENT)),
        (Op::BIND_VIRQ, &[Virq::TIMER.0, 0], Err(E::EEXIST)),
        (Op::BIND_VIRQ, &[CONSOLE, 0], Err(E::EEXIST)),
        (Op::BIND_VIRQ, &[CONSOLE, 1], Err(E::EINVAL)),
        (Op::BIND_VIRQ, &[CONSOLE, NO_VCPU], Err(E::EINVAL)),
        (Op::BIND_IPI, &[NO_VCPU], Err(E::ENOENT)),
        (Op::BIND_IPI, &[u32::MAX], Err(E::ENOENT)),
        (Op::BIND_PIRQ, &[PIRQ, 0], Err(E::EEXIST)),
        (Op::BIND_PIRQ, &[u32::MAX, 0], Err(E::EINVAL)),
    ])
}

fn uses(ports: &Ports) -> Verdict {
    let Ports { ipi, timer, global, pirq, unbound, closed, .. } = *ports;
    rows(&[
        (Op::CLOSE, &[0], Err(E::EINVAL)),
        (Op::CLOSE, &[closed], Err(E::EINVAL)),
        (Op::CLOSE, &[BUCKET], Err(E::EINVAL)),
        (Op::CLOSE, &[NO_PORT], Err(E::EINVAL)),
        (Op::SEND, &[0], Err(E::EINVAL)),
        (Op::SEND, &[closed], Err(E::EINVAL)),
        (Op::SEND, &[timer], Err(E::EINVAL)),
        (Op::SEND, &[global], Err(E::EINVAL)),
        (Op::SEND, &[pirq], Err(E::EINVAL)),
        (Op::SEND, &[NO_PORT], Err(E::EINVAL)),
        // Nobody is there to hear it.
        (Op::SEND, &[unbound], OK),
        (Op::STATUS, &[SELF, 0], OK),
        (Op::STATUS, &[SELF, closed], OK),
        // As far as ports have been made.
        (Op::STATUS, &[SELF, BUCKET - 1], OK),
        (Op::STATUS, &[SELF, BUCKET], Err(E::EINVAL)),
        (Op::STATUS, &[SELF, NO_PORT], Err(E::EINVAL)),
        (Op::STATUS, &[DOM0, 1], Err(E::EPERM)),
        // None is so high in any domain.
        (Op::STATUS, &[DOM0, PORTS_MAX], Err(E::EINVAL)),
        (Op::STATUS, &[DOM0, NO_PORT], Err(E::EINVAL)),
        (Op::STATUS, &[NOBODY, NO_PORT], Err(E::ESRCH)),
        (Op::STATUS, &[NOBODY, 1], Err(E::ESRCH)),
        (Op::STATUS, &[INVALID, 1], Err(E::ESRCH)),
        (Op::BIND_VCPU, &[unbound, NO_VCPU], Err(E::ENOENT)),
        (Op::BIND_VCPU, &[NO_PORT, NO_VCPU], Err(E::ENOENT)),
        (Op::BIND_VCPU, &[ipi, 0], Err(E::EINVAL)),
        (Op::BIND_VCPU, &[timer, 0], Err(E::EINVAL)),
        (Op::BIND_VCPU, &[closed, 0], Err(E::EINVAL)),
        (Op::BIND_VCPU, &[0, 0], Err(E::EINVAL)),
        (Op::BIND_VCPU, &[NO_PORT, 0], Err(E::EINVAL)),
        (Op::BIND_VCPU, &[global, 0], OK),
        (Op::BIND_VCPU, &[pirq, 0], OK),
        (Op::BIND_VCPU, &[unbound, 0], OK),
        (Op::UNMASK, &[BUCKET], Err(E::EINVAL)),
        (Op::UNMASK, &[NO_PORT], Err(E::EINVAL)),
        (Op::UNMASK, &[closed], OK),
        (Op::RESET, &[DOM0], Err(E::EPERM)),
        (Op::RESET, &[NOBODY], Err(E::ESRCH)),
        (Op::RESET, &[INVALID], Err(E::ESRCH)),
    ])
}

fn without_fifo(ports: &Ports) -> Verdict {
    rows(&[
        (Op::SET_PRIORITY, &[ports.ipi, 3], Err(E::ENOSYS)),
        (Op::SET_PRIORITY, &[ports.ipi, 16], Err(E::ENOSYS)),
        (Op::SET_PRIORITY, &[NO_PORT, 3], Err(E::EINVAL)),
    ])?;
    // -ENOSYS where the domain has no FIFO.
    let expand = ask(Op::EXPAND_ARRAY, &[1]);
    check_eq!([E::EOPNOTSUPP, E::ENOSYS].map(Err).contains(&expand), true, "expand_array: {expand:?}");
    let Some(hole) = boot::hole_gfn(0) else { fail!("no hole below 4 GiB") };
    let hole = u32::try_from(hole).unwrap_or(0);
    let unknown = if expand == Err(E::ENOSYS) { Some(E::ENOSYS) } else { None };
    let or = |errno| Err(unknown.unwrap_or(errno));
    // A control block is 72 bytes, at a multiple of 8, in one page, and there.
    rows(&[
        (Op::INIT_CONTROL, &[spare(), 0, 0, NO_VCPU], or(E::ENOENT)),
        (Op::INIT_CONTROL, &[spare(), 0, 4, 0], or(E::EINVAL)),
        (Op::INIT_CONTROL, &[spare(), 0, 4032, 0], or(E::EINVAL)),
        (Op::INIT_CONTROL, &[spare(), 0, u32::MAX, 0], or(E::EINVAL)),
        (Op::INIT_CONTROL, &[hole, 0, 0, 0], or(E::EINVAL)),
        (Op::INIT_CONTROL, &[0, 0x100, 0, 0], or(E::EINVAL)),
        // None of them has begun FIFO.
        (Op::EXPAND_ARRAY, &[spare()], or(E::EOPNOTSUPP)),
    ])
}

fn spare() -> u32 {
    u32::try_from(SPARE.gfn()).unwrap_or(0)
}

fn with_fifo(ports: &Ports) -> Verdict {
    let Ports { ipi, closed, .. } = *ports;
    let Some(hole) = boot::hole_gfn(0) else { fail!("no hole below 4 GiB") };
    let hole = u32::try_from(hole).unwrap_or(0);
    rows(&[
        (Op::SET_PRIORITY, &[ipi, 16], Err(E::EINVAL)),
        (Op::SET_PRIORITY, &[closed, 3], Err(E::EACCES)),
        (Op::SET_PRIORITY, &[closed, 16], Err(E::EACCES)),
        (Op::SET_PRIORITY, &[0, 3], Err(E::EACCES)),
        (Op::SET_PRIORITY, &[NO_PORT, 3], Err(E::EINVAL)),
        (Op::SET_PRIORITY, &[ipi, 15], OK),
        (Op::INIT_CONTROL, &[spare(), 0, 0, NO_VCPU], Err(E::ENOENT)),
        (Op::INIT_CONTROL, &[spare(), 0, 0, 0], Err(E::EINVAL)),
        (Op::INIT_CONTROL, &[spare(), 0, 4, 0], Err(E::EINVAL)),
        (Op::INIT_CONTROL, &[hole, 0, 0, 1], Err(E::EINVAL)),
        (Op::EXPAND_ARRAY, &[hole], Err(E::EINVAL)),
        (Op::EXPAND_ARRAY, &[0, 0x100], Err(E::EINVAL)),
    ])
}

/// The event array has 128 pages, which may be the same.
fn array_full() -> Verdict {
    for page in 1..128 {
        check_eq!(
            evtchn_op(Op::EXPAND_ARRAY, &mut ExpandArray { array_gfn: SPARE.gfn() }),
            Ok(0),
            "page {page} of the event array"
        );
    }
    let more = evtchn_op(Op::EXPAND_ARRAY, &mut ExpandArray { array_gfn: SPARE.gfn() });
    check_eq!(more, Err(E::ENOSPC), "a page more");
    Ok(())
}

/// No port is left. Errors that have nothing to do with that come first.
fn full() -> Verdict {
    let mut last = bind_ipi(0)?;
    loop {
        match bind_ipi(0) {
            Ok(port) => last = port,
            Err(E::ENOSPC) => break,
            Err(e) => fail!("binding a port behind {last}: {e}"),
        }
    }
    rows(&[
        (Op::STATUS, &[SELF, last.0], OK),
        (Op::STATUS, &[SELF, last.0 + 1], Err(E::EINVAL)),
        (Op::ALLOC_UNBOUND, &[SELF, 0], Err(E::ENOSPC)),
        (Op::ALLOC_UNBOUND, &[SELF | NOBODY << 16], Err(E::ENOSPC)),
        // A port of one's own is wanted before the far end is looked at, but not before its domain.
        (Op::BIND_INTERDOMAIN, &[SELF, NO_PORT], Err(E::ENOSPC)),
        (Op::BIND_INTERDOMAIN, &[SELF, last.0], Err(E::ENOSPC)),
        (Op::BIND_INTERDOMAIN, &[DOM0, NO_PORT], Err(E::ENOSPC)),
        (Op::BIND_INTERDOMAIN, &[INVALID, 1], Err(E::ESRCH)),
        (Op::BIND_VIRQ, &[Virq::DEBUG.0, 0], Err(E::ENOSPC)),
        (Op::BIND_VIRQ, &[Virq::TIMER.0, 0], Err(E::EEXIST)),
        (Op::BIND_IPI, &[0], Err(E::ENOSPC)),
        (Op::BIND_IPI, &[NO_VCPU], Err(E::ENOENT)),
        (Op::BIND_PIRQ, &[PIRQ + 1, 0], Err(E::ENOSPC)),
        (Op::BIND_PIRQ, &[PIRQ, 0], Err(E::EEXIST)),
    ])?;
    println!("port {last} is the last");
    Ok(())
}
