//! The timers of a vCPU: single-shot, in the past too or too far ahead, and periodic.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::events::{Events, bind_virq, evtchn_op, selector_bit, wait_count};
use guest::hypercall::{self, vcpu_op};
use guest::{Verdict, check, check_eq, clock, cpu, println, smp, traps};
use xen_abi::Errno;
use xen_abi::event_channel::{Close, EvtchnOp};
use xen_abi::hypercall::Hypercall;
use xen_abi::shared_info::VCPU_TIME;
use xen_abi::vcpu::{SetSingleshotTimer, VCPU_SSHOTTMR_FUTURE, VcpuOp};
use xen_abi::xen::{Port, Virq};

guest::test!(run);

const VECTOR: u8 = 0x41;
const MS: u64 = 1_000_000;

fn now(events: &Events) -> u64 {
    clock::now(events.shared, VCPU_TIME).unwrap_or(0)
}

fn set(timeout_abs_ns: u64, flags: u32) -> Result<i64, Errno> {
    let mut arg = SetSingleshotTimer { timeout_abs_ns, flags, pad: 0 };
    vcpu_op(VcpuOp::SET_SINGLESHOT_TIMER.0, 0, &mut arg)
}

fn stop(op: VcpuOp) -> Result<i64, Errno> {
    hypercall::call(Hypercall::VCPU_OP, &[op.0.into(), 0, 0])
}

fn set_periodic(mut period: u64) -> Result<i64, Errno> {
    vcpu_op(VcpuOp::SET_PERIODIC_TIMER.0, 0, &mut period)
}

fn run() -> Verdict {
    let events = Events::init(VECTOR)?;
    check_eq!(stop(VcpuOp::STOP_PERIODIC_TIMER), Ok(0), "stop_periodic_timer");
    for period in [0, MS - 1, u64::MAX] {
        check_eq!(set_periodic(period), Err(Errno::EINVAL), "a period of {period} ns");
    }
    // A timer runs without a port, and is heard where there is one when it runs out.
    let target = now(&events) + 50 * MS;
    check_eq!(set(target, 0), Ok(0), "set_singleshot_timer without a port");
    let port = bind_virq(Virq::TIMER, 0)?;
    evtchn_op(EvtchnOp::CLOSE, &mut Close { port })?;
    let port = bind_virq(Virq::TIMER, 0)?;
    check!(smp::spin_until(|| events.is_pending(port)), "a timer set before its port was bound is lost");
    check!(now(&events) >= target, "a timer set before its port was bound fires early");
    check_eq!(set(now(&events) + 20 * MS, 0), Ok(0), "set_singleshot_timer");
    events.clear_pending(port);
    check!(smp::spin_until(|| events.is_pending(port)), "the next timer is lost");
    events.clear_mask(port);
    events.take_selector();
    events.clear_pending(port);

    for ms in [0, 1, 2, 5, 10] {
        fires(&events, port, ms)?;
    }
    sleeps(&events, port)?;
    stopped(&events, port)?;
    // Xen ignores the flag, and so does the KVM of the lab.
    check_eq!(set(1, VCPU_SSHOTTMR_FUTURE), Ok(0), "a time in the past, FUTURE asked");
    by_set_timer_op(&events, port)?;
    too_far(&events, port)?;
    long_past(&events, port)?;
    periodic(&events, port)
}

fn took(events: &Events, port: Port, what: &str) -> Verdict {
    check_eq!(events.take_selector(), selector_bit(port), "selector after {what}");
    check!(events.clear_pending(port), "VIRQ_TIMER is not pending after {what}");
    Ok(())
}

fn fires(events: &Events, port: Port, ms: u64) -> Verdict {
    let before = traps::count(VECTOR);
    let target = now(events) + ms * MS;
    check_eq!(set(target, 0), Ok(0), "set_singleshot_timer");
    check!(wait_count(VECTOR, before + 1), "a timer of {ms} ms does not fire");
    let late = now(events).checked_sub(target);
    check!(late.is_some(), "a timer of {ms} ms fires early");
    println!("timer of {ms} ms: {} us late", late.unwrap_or(0) / 1000);
    took(events, port, "a timer")?;
    check_eq!(traps::count(VECTOR), before + 1, "upcalls of one timer");
    Ok(())
}

/// The vCPU halts meanwhile, as an idle guest does.
fn sleeps(events: &Events, port: Port) -> Verdict {
    for _ in 0..20 {
        let before = traps::count(VECTOR);
        check_eq!(set(now(events) + MS, 0), Ok(0), "set_singleshot_timer");
        while traps::count(VECTOR) == before {
            cpu::wait_interrupt();
        }
        took(events, port, "a sleep")?;
    }
    println!("20 sleeps");
    Ok(())
}

fn stopped(events: &Events, port: Port) -> Verdict {
    let before = traps::count(VECTOR);
    let target = now(events) + 50 * MS;
    check_eq!(set(target, 0), Ok(0), "set_singleshot_timer");
    check_eq!(stop(VcpuOp::STOP_SINGLESHOT_TIMER), Ok(0), "stop_singleshot_timer");
    quiet_for(events, 70);
    check_eq!(traps::count(VECTOR), before, "upcalls of a stopped timer");
    check!(!events.is_pending(port), "a stopped timer is pending");
    Ok(())
}

fn by_set_timer_op(events: &Events, port: Port) -> Verdict {
    // What FUTURE may have set goes away first, with its interrupt if that already waits.
    check_eq!(hypercall::call(Hypercall::SET_TIMER_OP, &[0]), Ok(0), "set_timer_op 0");
    quiet_for(events, 10);
    events.take_selector();
    events.clear_pending(port);
    let before = traps::count(VECTOR);
    let target = now(events) + MS;
    check_eq!(hypercall::call(Hypercall::SET_TIMER_OP, &[target]), Ok(0), "set_timer_op");
    check!(wait_count(VECTOR, before + 1), "set_timer_op does not fire");
    check!(now(events) >= target, "set_timer_op fires early");
    took(events, port, "set_timer_op")
}

/// More than 2^50 ns ahead, or negative: Xen takes that for a mistake, and comes in a tenth of a second.
fn too_far(events: &Events, port: Port) -> Verdict {
    for timeout in [now(events) + (1 << 50) + 1000 * MS, u64::MAX - 5] {
        let (before, begin) = (traps::count(VECTOR), now(events));
        check_eq!(hypercall::call(Hypercall::SET_TIMER_OP, &[timeout]), Ok(0), "set_timer_op {timeout:#x}");
        check!(wait_count(VECTOR, before + 1), "set_timer_op {timeout:#x} does not fire");
        let after = now(events) - begin;
        check!(after >= 100 * MS, "set_timer_op {timeout:#x} fires after {after} ns");
        took(events, port, "set_timer_op")?;
    }
    Ok(())
}

/// At once, once.
fn long_past(events: &Events, port: Port) -> Verdict {
    for target in [1, now(events) / 2] {
        let before = traps::count(VECTOR);
        check_eq!(set(target, 0), Ok(0), "set_singleshot_timer in the past");
        check!(wait_count(VECTOR, before + 1), "a timer in the past does not fire");
        took(events, port, "a timer in the past")?;
    }
    Ok(())
}

fn periodic(events: &Events, port: Port) -> Verdict {
    let (ticks, begin) = (10, now(events));
    check_eq!(set_periodic(5 * MS), Ok(0), "set_periodic_timer");
    for _ in 0..ticks {
        let before = traps::count(VECTOR);
        while traps::count(VECTOR) == before {
            cpu::wait_interrupt();
        }
        took(events, port, "a tick")?;
    }
    let after = now(events) - begin;
    check!(after >= 40 * MS, "{ticks} ticks of 5 ms after {after} ns");
    check_eq!(stop(VcpuOp::STOP_PERIODIC_TIMER), Ok(0), "stop_periodic_timer");
    // One may be under way.
    quiet_for(events, 20);
    events.take_selector();
    events.clear_pending(port);
    let before = traps::count(VECTOR);
    quiet_for(events, 50);
    check_eq!(traps::count(VECTOR), before, "ticks of a timer that was stopped");
    println!("{ticks} ticks");
    Ok(())
}

/// Lets interrupts in for so many ms.
fn quiet_for(events: &Events, ms: u64) {
    let until = now(events) + ms * MS;
    cpu::sti();
    let _ = smp::spin_until(|| now(events) > until);
    cpu::cli();
}
