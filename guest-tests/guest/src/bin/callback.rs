//! The global callback vector: no EOI is written, and what is pending when it is set comes at once. With `off` on the command
//! line first with the local APIC off, where a vector of a vCPU's own would not come. In xAPIC mode, and then in x2APIC mode.
//! A callback by an interrupt line changes nothing.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::boot::Words;
use guest::events::{self, Events, bind_ipi, selector_bit, send, set_ap_port, wait_count};
use guest::{Verdict, apic, check, check_eq, hypercall, println, smp, traps};
use xen_abi::hvm::params::{HvmParam, callback};
use xen_abi::xen::Port;

guest::test!(run, smp::idle, upcall);

const VECTOR: u8 = 0x40;
/// Of lower priority: it waits as long as an interrupt with the other is in service.
const LOWER: u8 = 0x31;

fn run() -> Verdict {
    traps::set_no_eoi(VECTOR);
    let events = Events::map()?;
    let off = Words::read().has("off");
    if !off {
        apic::enable_xapic();
    }
    let port = bind_ipi(0)?;
    events.take_selector();
    events.clear_mask(port);
    send(port)?;
    let via = callback::TYPE_VECTOR << callback::TYPE_SHIFT | u64::from(VECTOR);
    hypercall::hvm_set_param(HvmParam::CALLBACK_IRQ, via)?;
    check!(wait_count(VECTOR, 1), "no upcall of what was pending");
    took(&events, port)?;
    upcalls(&events, port, || Ok(send(port)?))?;
    if off {
        println!("upcalls with the local APIC off");
        apic::enable_xapic();
        // A call that reaches the host, which sees the local APIC then.
        hypercall::hvm_get_param(HvmParam::CALLBACK_IRQ)?;
        upcalls(&events, port, || Ok(send(port)?))?;
    }
    println!("upcalls in xAPIC mode");
    apic::enable();
    upcalls(&events, port, || Ok(send(port)?))?;
    for round in 1..=10 {
        apic::command(apic::id(), 0x4000 | u32::from(LOWER));
        check!(wait_count(LOWER, round), "an interrupt of lower priority waits for the end of an upcall");
    }
    println!("upcalls need no EOI");
    // A machine without interrupt lines takes a callback by one, and goes on as before.
    for line in [1, 0, callback::TYPE_PCI_INTX << callback::TYPE_SHIFT | 0x1_0801] {
        hypercall::hvm_set_param(HvmParam::CALLBACK_IRQ, line)?;
        check_eq!(hypercall::hvm_get_param(HvmParam::CALLBACK_IRQ), Ok(line), "CALLBACK_IRQ");
        upcalls(&events, port, || Ok(send(port)?))?;
    }
    println!("upcalls after a callback by an interrupt line");
    check!(smp::start(1 << 1), "vCPU 1 does not start");
    set_ap_port(port);
    upcalls(&events, port, || {
        check!(smp::send_from_other(), "vCPU 1 sends nothing");
        Ok(())
    })
}

/// It comes for as long as the flag is set.
fn upcall(vector: u8) {
    if vector == VECTOR {
        events::take_flag();
    }
}

fn took(events: &Events, port: Port) -> Verdict {
    check_eq!(events.take_selector(), selector_bit(port), "selector");
    check!(events.clear_pending(port), "the port is not pending");
    Ok(())
}

/// 1000 events, an upcall each.
fn upcalls(events: &Events, port: Port, send: impl Fn() -> Verdict) -> Verdict {
    for round in 1..=1000 {
        let before = traps::count(VECTOR);
        send()?;
        check!(wait_count(VECTOR, before + 1), "event {round}: no upcall");
        took(events, port)?;
        check_eq!(traps::count(VECTOR), before + 1, "event {round}: upcalls");
    }
    Ok(())
}
