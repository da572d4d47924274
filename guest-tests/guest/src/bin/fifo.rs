//! The FIFO layout: order and priorities, masks, events and polls between vCPUs, the timer.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};
use guest::events::{Events, bind_ipi, bind_virq, evtchn_op, send, wait_count};
use guest::hypercall::{self, vcpu_op};
use guest::page::Page;
use guest::smp::{spin_until, start_vcpu};
use guest::{Verdict, acpi, check, check_eq, clock, cpu, fail, fifo, println, skip, traps};
use xen_abi::Errno;
use xen_abi::event_channel::{Close, EvtchnOp, Reset, fifo as abi};
use xen_abi::hypercall::Hypercall;
use xen_abi::sched::{SchedOp, SchedPoll};
use xen_abi::shared_info::VCPU_TIME;
use xen_abi::vcpu::{SetSingleshotTimer, VcpuOp};
use xen_abi::xen::{Domid, Port, Virq};

guest::test!(run, other);

const VECTOR: u8 = 0x40;
const OTHER_VECTOR: u8 = 0x50;
const MS: u64 = 1_000_000;
static INFO: Page = Page::zero();
static POLLED: Page = Page::zero();

/// What the other vCPU sends to when told, and how often it was told and has done so.
static TO: AtomicU32 = AtomicU32::new(0);
static TOLD: AtomicU32 = AtomicU32::new(0);
static SENT: AtomicU32 = AtomicU32::new(0);
/// The other vCPU hears: an interrupt that comes before its local APIC is on may be late.
static HEARS: AtomicU32 = AtomicU32::new(0);

fn run() -> Verdict {
    let events = Events::init(VECTOR)?;
    match fifo::init_control(0) {
        Err(Errno::ENOSYS) => skip!("this domain has no FIFO event channels"),
        bits => check_eq!(bits?, abi::LINK_BITS, "link bits"),
    }
    check_eq!(fifo::init_control(0), Err(Errno::EINVAL), "a second control block");
    // The console may have been heard before its port was masked.
    events.take_selector();
    let early = bind_ipi(0)?;
    send(early)?;
    fifo::expand_array(1024)?;
    check!(fifo::is_pending(early), "an event from before the array is lost");
    check_eq!(events.upcall_pending(), 0, "upcall_pending for a masked event");
    fifo::unmask(early)?;
    taken(&events, &[early], "an early event")?;

    order(&events)?;
    masks(&events)?;
    timer(&events)?;
    if acpi::cpus().count() > 1 {
        between(&events)?;
    }
    evtchn_op(EvtchnOp::RESET, &mut Reset { dom: Domid::SELF })?;
    check_eq!(bind_ipi(0)?, Port(1), "the first port after a reset");
    // An event of before may have set the flag, which no reset clears.
    events.take_selector();
    events.clear_mask(Port(1));
    let before = traps::count(VECTOR);
    send(Port(1))?;
    check!(wait_count(VECTOR, before + 1), "no upcall after going back to 2-level");
    check!(events.is_pending(Port(1)), "not pending after going back to 2-level");
    Ok(())
}

/// Takes the flag and every event, which must be these.
fn taken(events: &Events, want: &[Port], what: &str) -> Verdict {
    events.take_selector();
    let (mut count, mut wrong) = (0, None);
    fifo::take(0, |port| {
        if want.get(count) != Some(&port) {
            wrong = wrong.or(Some((count, port)));
        }
        count += 1;
    });
    if let Some((at, port)) = wrong {
        fail!("{what}: event {at} is of port {port}");
    }
    check_eq!(count, want.len(), "{what}: events");
    Ok(())
}

fn order(events: &Events) -> Verdict {
    let mut ports = [Port(0); 6];
    for port in &mut ports {
        *port = bind_ipi(0)?;
        fifo::unmask(*port)?;
    }
    let [a, b, c, high, low, again] = ports;
    fifo::set_priority(high, abi::PRIORITY_MAX)?;
    fifo::set_priority(low, abi::PRIORITY_MIN)?;
    check_eq!(fifo::set_priority(low, 16), Err(Errno::EINVAL), "a priority beyond the last");
    for round in 1..=100 {
        let before = traps::count(VECTOR);
        for port in [low, b, a, again, high, c, a, low] {
            send(port)?;
        }
        check!(wait_count(VECTOR, before + 1), "round {round}: no upcall");
        taken(events, &[high, b, a, again, c, low], "order")?;
        check_eq!(traps::count(VECTOR), before + 1, "round {round}: upcalls");
    }
    for port in ports {
        evtchn_op(EvtchnOp::CLOSE, &mut Close { port })?;
    }
    println!("100 rounds in order");
    Ok(())
}

fn masks(events: &Events) -> Verdict {
    let (port, other) = (bind_ipi(0)?, bind_ipi(0)?);
    fifo::unmask(other)?;
    for round in 1..=100 {
        fifo::mask(port);
        send(port)?;
        check!(fifo::is_pending(port), "round {round}: not pending behind the mask");
        check_eq!(events.upcall_pending(), 0, "round {round}: upcall_pending behind the mask");
        send(other)?;
        let before = traps::count(VECTOR);
        fifo::unmask(port)?;
        // Not the next instruction but the one after it is the first that can be interrupted.
        cpu::sti();
        cpu::pause();
        cpu::cli();
        check!(traps::count(VECTOR) <= before + 1, "round {round}: upcalls");
        taken(events, &[other, port], "after the mask")?;
    }
    println!("masked events wait");
    Ok(())
}

fn timer(events: &Events) -> Verdict {
    let now = || clock::now(events.shared, VCPU_TIME).unwrap_or(0);
    let port = bind_virq(Virq::TIMER, 0)?;
    fifo::unmask(port)?;
    for ms in [0, 1, 5] {
        let (before, target) = (traps::count(VECTOR), now() + ms * MS);
        let mut arg = SetSingleshotTimer { timeout_abs_ns: target, flags: 0, pad: 0 };
        vcpu_op(VcpuOp::SET_SINGLESHOT_TIMER.0, 0, &mut arg)?;
        check!(wait_count(VECTOR, before + 1), "a timer of {ms} ms does not fire");
        check!(now() >= target, "a timer of {ms} ms fires early");
        taken(events, &[port], "the timer")?;
    }
    // Every millisecond, and once in between, long after: that one still comes when there are no ticks any more.
    let mut period = MS;
    let target = now() + 300 * MS;
    vcpu_op(VcpuOp::SET_PERIODIC_TIMER.0, 0, &mut period)?;
    let mut once = SetSingleshotTimer { timeout_abs_ns: target, flags: 0, pad: 0 };
    vcpu_op(VcpuOp::SET_SINGLESHOT_TIMER.0, 0, &mut once)?;
    let begin = now();
    ticks(events, port, 50)?;
    let took = now() - begin;
    check!(took >= 40 * MS, "50 ticks of 1 ms in {took} ns");
    // A tick may be under way.
    fifo::mask(port);
    guest::smp::vcpu_op(VcpuOp::STOP_PERIODIC_TIMER, 0)?;
    cpu::sti();
    cpu::pause();
    cpu::cli();
    events.take_selector();
    fifo::take(0, |_| ());
    // Unless the ticks have taken that long, on a slow host. One of them may have been under way when they were stopped.
    if now() + 100 * MS < target {
        fifo::word(port).fetch_and(!abi::PENDING, Ordering::SeqCst);
        fifo::unmask(port)?;
        ticks(events, port, 1)?;
        if now() < target {
            ticks(events, port, 1)?;
        }
        check!(now() >= target, "the timer behind the ticks fires early");
    }
    println!("timers fire");
    Ok(())
}

/// So many events of the timer and no others, while the vCPU halts. An upcall may have none, whose event was taken with the one before.
fn ticks(events: &Events, timer: Port, wanted: u32) -> Verdict {
    let (mut came, mut others) = (0, 0);
    while came < wanted {
        let before = traps::count(VECTOR);
        while traps::count(VECTOR) == before {
            cpu::wait_interrupt();
        }
        events.take_selector();
        fifo::take(0, |port| if port == timer { came += 1 } else { others += 1 });
    }
    check_eq!(others, 0, "events of other ports than the timer's");
    Ok(())
}

/// Events to the other vCPU and back, and polls that it ends.
fn between(events: &Events) -> Verdict {
    let theirs = events.register(1, &INFO, 64)?;
    theirs.set_vector(OTHER_VECTOR)?;
    fifo::init_control(1)?;
    let (to_us, to_them, polled) = (bind_ipi(0)?, bind_ipi(1)?, bind_ipi(0)?);
    fifo::unmask(to_us)?;
    fifo::unmask(to_them)?;
    start_vcpu(1)?;
    check!(spin_until(|| HEARS.load(Ordering::SeqCst) != 0), "vCPU 1 does not start");
    for round in 1..=200 {
        let before = traps::count(OTHER_VECTOR);
        send(to_them)?;
        check!(spin_until(|| traps::count(OTHER_VECTOR) > before), "round {round}: no upcall on vCPU 1");
        check!(spin_until(|| !fifo::is_pending(to_them)), "round {round}: vCPU 1 takes no event");
        let before = traps::count(VECTOR);
        tell(to_us);
        check!(wait_count(VECTOR, before + 1), "round {round}: no upcall from vCPU 1");
        taken(events, &[to_us], "from vCPU 1")?;
    }
    println!("200 events both ways");
    let mut early = 0;
    for _ in 0..100 {
        // A masked port, interrupts off: only the poll can notice. It may end early, as the header allows, and always does where
        // KVM answers it, for which it is a yield under FIFO; how often is printed.
        fifo::mask(polled);
        tell(polled);
        poll(polled, 0)?;
        while !fifo::is_pending(polled) {
            early += 1;
            poll(polled, 0)?;
        }
        fifo::word(polled).fetch_and(!abi::PENDING, Ordering::SeqCst);
    }
    println!("100 polls, and {early} that ended early");
    let now = || clock::now(events.shared, VCPU_TIME).unwrap_or(0);
    let until = now() + 20 * MS;
    let mut polls = 0;
    while now() < until {
        polls += 1;
        poll(polled, until)?;
    }
    println!("{polls} polls until a time");
    Ok(())
}

fn poll(port: Port, timeout: u64) -> Result<(), Errno> {
    POLLED.u32(0).store(port.0, Ordering::SeqCst);
    let mut arg = SchedPoll { ports: POLLED.addr(), nr_ports: 1, pad: 0, timeout };
    hypercall::op(Hypercall::SCHED_OP, SchedOp::POLL.0, &mut arg).map(drop)
}

fn tell(port: Port) {
    TO.store(port.0, Ordering::SeqCst);
    TOLD.fetch_add(1, Ordering::SeqCst);
}

fn other(vcpu: u32) {
    cpu::sti();
    HEARS.store(1, Ordering::SeqCst);
    loop {
        let told = TOLD.load(Ordering::SeqCst);
        if SENT.load(Ordering::SeqCst) != told {
            SENT.store(told, Ordering::SeqCst);
            let _ = send(Port(TO.load(Ordering::SeqCst)));
        }
        if INFO.u8(64).swap(0, Ordering::SeqCst) != 0 {
            fifo::take(vcpu as usize, |_| ());
        }
        cpu::pause();
    }
}
