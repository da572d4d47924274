//! Events a guest sends to itself: bits, upcalls, masks, and the state of ports. With `off` on the command line also those that come while
//! the local APIC accepts nothing.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::boot::Words;
use guest::events::{self, Events, bind_ipi, evtchn_op, selector_bit, send, status, unmask, wait_count};
use guest::{Verdict, apic, check, check_eq, cpu, println, traps};
use xen_abi::Errno;
use xen_abi::event_channel::{AllocUnbound, BindInterdomain, Close, EvtchnOp, EvtchnStat};
use xen_abi::xen::{Domid, Port, Virq};

guest::test!(run);

const VECTOR: u8 = 0x40;

fn run() -> Verdict {
    let events = Events::init(VECTOR)?;
    let ipi = bind_ipi(0)?;
    check!(ipi.0 > 0, "port 0 was given away");
    check_eq!(status(ipi)?.status, EvtchnStat::IPI, "status of port {ipi}");
    unmasked(&events, ipi)?;
    masked(&events, ipi)?;
    if Words::read().has("off") {
        refused(&events, ipi)?;
    }
    loopback(&events)?;
    debug_virq()?;
    closed(&events, ipi)
}

/// Takes what is pending and forgets it.
fn drain(events: &Events, port: Port) {
    events.take_selector();
    events.clear_pending(port);
}

fn unmasked(events: &Events, port: Port) -> Verdict {
    events.clear_mask(port);
    drain(events, port);
    for round in 1..=100 {
        let before = traps::count(VECTOR);
        send(port)?;
        check!(wait_count(VECTOR, before + 1), "round {round}: no upcall");
        check_eq!(events.upcall_pending(), 1, "round {round}: upcall_pending");
        check_eq!(events.selector(), selector_bit(port), "round {round}: selector");
        check!(events.is_pending(port), "round {round}: the port is not pending");
        // A second send to a pending port is no second upcall.
        send(port)?;
        check_eq!(events.take_selector(), selector_bit(port), "round {round}: selector after a second send");
        check!(events.clear_pending(port), "round {round}: pending after a second send");
        check_eq!(traps::count(VECTOR), before + 1, "round {round}: upcalls");
    }
    println!("100 events, 100 upcalls");
    Ok(())
}

fn masked(events: &Events, port: Port) -> Verdict {
    let before = traps::count(VECTOR);
    events.mask(port);
    send(port)?;
    check!(events.is_pending(port), "a masked port does not become pending");
    check_eq!((events.upcall_pending(), events.selector()), (0, 0), "flag and selector of a masked port");
    unmask(port)?;
    check!(!events.is_masked(port), "EVTCHNOP_unmask left the mask");
    check!(wait_count(VECTOR, before + 1), "no upcall after unmasking a pending port");
    check_eq!(events.take_selector(), selector_bit(port), "selector after unmasking");
    check!(events.clear_pending(port), "unmasking cleared the port");
    unmask(port)?;
    check_eq!((events.upcall_pending(), events.selector()), (0, 0), "after unmasking an idle port");
    println!("masked events wait");
    Ok(())
}

/// An upcall that the local APIC has refused comes when it accepts interrupts again, and once.
fn refused(events: &Events, port: Port) -> Verdict {
    for round in 1..=20 {
        let before = traps::count(VECTOR);
        apic::accept(false);
        send(port)?;
        // For the host to try again, sometimes.
        open_for(round);
        check_eq!(traps::count(VECTOR), before, "round {round}: upcalls by a local APIC that is off");
        check_eq!(events.upcall_pending(), 1, "round {round}: upcall_pending");
        apic::accept(true);
        check!(wait_count(VECTOR, before + 1), "round {round}: no upcall when the local APIC is on");
        drain(events, port);
        open_for(round);
        check_eq!(traps::count(VECTOR), before + 1, "round {round}: upcalls");
    }
    println!("refused upcalls come later");
    Ok(())
}

/// With interrupts on, for so long.
fn open_for(time: u32) {
    cpu::sti();
    (0..time * 100_000).for_each(|_| cpu::pause());
    cpu::cli();
}

fn loopback(events: &Events) -> Verdict {
    let mut unbound = AllocUnbound { dom: Domid::SELF, remote_dom: Domid::SELF, port: Port(0) };
    evtchn_op(EvtchnOp::ALLOC_UNBOUND, &mut unbound)?;
    check_eq!(status(unbound.port)?.status, EvtchnStat::UNBOUND, "status of an unbound port");
    events.mask(unbound.port);
    let mut bind =
        BindInterdomain { remote_dom: Domid::SELF, pad: 0, remote_port: unbound.port, local_port: Port(0) };
    evtchn_op(EvtchnOp::BIND_INTERDOMAIN, &mut bind)?;
    let (near, far) = (bind.local_port, unbound.port);
    check!(near != far && near.0 > 0, "local port {near}, remote port {far}");
    check!(events.is_pending(near), "a bound port is not pending at once");
    let state = status(near)?;
    check_eq!((state.status, state.u_port), (EvtchnStat::INTERDOMAIN, far), "status of the near port");
    drain(events, near);
    for port in [near, far] {
        events.clear_mask(port);
    }
    for (from, to) in [(near, far), (far, near)] {
        let before = traps::count(VECTOR);
        send(from)?;
        check!(wait_count(VECTOR, before + 1), "no upcall from port {from}");
        check!(events.is_pending(to) && !events.is_pending(from), "port {from} does not ring {to}");
        drain(events, to);
    }
    evtchn_op(EvtchnOp::CLOSE, &mut Close { port: near })?;
    check_eq!(status(far)?.status, EvtchnStat::UNBOUND, "the far port after closing the near one");
    evtchn_op(EvtchnOp::CLOSE, &mut Close { port: far })?;
    println!("loopback works both ways");
    Ok(())
}

fn debug_virq() -> Verdict {
    let port = events::bind_virq(Virq::DEBUG, 0)?;
    let state = status(port)?;
    check_eq!(
        (state.status, state.u, state.vcpu),
        (EvtchnStat::VIRQ, Virq::DEBUG.0, 0),
        "status of the VIRQ"
    );
    check_eq!(events::bind_virq(Virq::DEBUG, 0), Err(Errno::EEXIST), "binding a VIRQ twice");
    evtchn_op(EvtchnOp::CLOSE, &mut Close { port })?;
    check_eq!(events::bind_virq(Virq::DEBUG, 0), Ok(port), "binding it again takes the lowest free port");
    Ok(())
}

fn closed(events: &Events, port: Port) -> Verdict {
    drain(events, port);
    evtchn_op(EvtchnOp::CLOSE, &mut Close { port })?;
    check_eq!(status(port)?.status, EvtchnStat::CLOSED, "status after closing");
    check!(send(port).is_err(), "a closed port can be sent to");
    check!(!events.is_pending(port), "a closed port is pending");
    Ok(())
}
