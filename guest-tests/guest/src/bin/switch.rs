//! From the 2-level layout to FIFO and back, over and over, while every vCPU sends: between the vCPUs of each pair, each port
//! with one send under way at most. An event without such a send has come twice, a send whose event does not come is lost.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use guest::events::{self, Events, bind_ipi, evtchn_op};
use guest::page::Page;
use guest::smp::{current, start_vcpu};
use guest::{Stop, Verdict, acpi, check, check_eq, cpu, fail, fifo, hypercall, println, skip};
use xen_abi::Errno;
use xen_abi::event_channel::{EvtchnOp, Reset};
use xen_abi::hypercall::Hypercall;
use xen_abi::sched::SchedOp;
use xen_abi::shared_info::{Layout, VCPU_INFO_SIZE, VCPU_UPCALL_PENDING};
use xen_abi::xen::{Domid, Port, Width};

guest::test!(run, work, upcall);

const VCPUS: usize = 4;
/// Channels of each vCPU to each.
const CHANNELS: usize = 6;
/// Ports that stay unused: by the first ones the console would be heard.
const UNUSED: u32 = 8;
const PORTS: usize = 128;
const ROUNDS: u32 = 3;
/// Events before each switch, and after it.
const EVENTS: u64 = 150;
/// Yields that nothing takes as many as.
const PATIENCE: u32 = 500_000;
/// Vector of vCPU 0; the others' follow.
const VECTOR: u8 = 0x60;
const LAYOUT: Layout = Layout::of(Width::W64);

/// What an upcall looks at: nothing, the 2-level bitmap, the queues.
const NOTHING: u8 = 0;
const TWO_LEVEL: u8 = 1;
const FIFO: u8 = 2;

static INFO: Page = Page::zero();
static BY: AtomicU8 = AtomicU8::new(NOTHING);
static CPUS: AtomicU32 = AtomicU32::new(1);
static SENDING: AtomicBool = AtomicBool::new(false);
/// vCPUs in their handler, and vCPUs that send.
static INSIDE: AtomicU32 = AtomicU32::new(0);
static BUSY: AtomicU32 = AtomicU32::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);
static UNASKED: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static UPCALLS: AtomicU64 = AtomicU64::new(0);
static AWAITED: [AtomicBool; PORTS] = [const { AtomicBool::new(false) }; PORTS];

fn run() -> Verdict {
    let events = Events::init(VECTOR)?;
    let cpus = acpi::cpus().count().min(VCPUS);
    CPUS.store(u32::try_from(cpus).unwrap_or(1), SeqCst);
    if fifo::init_control(0) == Err(Errno::ENOSYS) {
        skip!("this domain has no FIFO event channels");
    }
    reset()?;
    events.register(0, &INFO, 0)?;
    for vcpu in 1..cpus {
        let number = u32::try_from(vcpu).unwrap_or(0);
        let theirs = events.register(number, &INFO, vcpu * VCPU_INFO_SIZE)?;
        theirs.set_vector(VECTOR + u8::try_from(vcpu).unwrap_or(0))?;
    }
    // In a new place everything counts as pending, and no handler takes it yet.
    deselect();
    println!("{cpus} vCPUs");
    for vcpu in 1..cpus {
        start_vcpu(u32::try_from(vcpu).unwrap_or(0))?;
    }
    cpu::sti();
    for round in 1..=ROUNDS {
        switch(round, cpus)?;
    }
    cpu::cli();
    let [sent, taken, upcalls] = [&SENT, &TAKEN, &UPCALLS].map(|count| count.load(SeqCst));
    println!("{ROUNDS} switches, {sent} events in {upcalls} upcalls, none lost and none twice");
    check_eq!(taken, sent, "events that came");
    Ok(())
}

/// One round: 2-level under load, FIFO under load, and back at rest.
fn switch(round: u32, cpus: usize) -> Verdict {
    let last = open(cpus)?;
    BY.store(TWO_LEVEL, SeqCst);
    SENDING.store(true, SeqCst);
    some_events(round, "2-level")?;
    // From here on nobody takes anything, but all go on sending.
    BY.store(NOTHING, SeqCst);
    wait(round, "a handler does not end", || INSIDE.load(SeqCst) == 0)?;
    for vcpu in 0..CPUS.load(SeqCst) {
        fifo::init_control(vcpu)?;
    }
    fifo::expand_array(1024)?;
    BY.store(FIFO, SeqCst);
    for port in UNUSED + 1..=last.0 {
        fifo::unmask(Port(port))?;
    }
    some_events(round, "FIFO")?;
    SENDING.store(false, SeqCst);
    wait(round, "a vCPU does not stop sending", || BUSY.load(SeqCst) == 0)?;
    let lost = || AWAITED.iter().filter(|awaited| awaited.load(SeqCst)).count();
    if wait(round, "", || lost() == 0).is_err() {
        fail!("round {round}: {} events lost of {}", lost(), SENT.load(SeqCst));
    }
    check_eq!(UNASKED.load(SeqCst), 0, "round {round}: events that nobody sent");
    check_eq!(REFUSED.load(SeqCst), 0, "round {round}: sends that were refused");
    BY.store(NOTHING, SeqCst);
    wait(round, "a handler does not end", || INSIDE.load(SeqCst) == 0)?;
    reset()
}

/// 2-level again, without a port.
fn reset() -> Verdict {
    evtchn_op(EvtchnOp::RESET, &mut Reset { dom: Domid::SELF })?;
    fifo::forget();
    deselect();
    Ok(())
}

/// Forgets what was selected while nobody took anything: such a word would interrupt nobody any more.
fn deselect() {
    for vcpu in 0..VCPUS {
        INFO.u64(vcpu * VCPU_INFO_SIZE + LAYOUT.vcpu_pending_sel).store(0, SeqCst);
    }
}

/// Channels between the vCPUs of each pair; the last port.
fn open(cpus: usize) -> Result<Port, Stop> {
    for _ in 0..UNUSED {
        bind_ipi(0)?;
    }
    let mut last = Port(0);
    for receiver in (0..cpus * cpus * CHANNELS).map(receiver) {
        last = bind_ipi(receiver)?;
        events::unmask(last)?;
    }
    check!((last.0 as usize) < PORTS, "port {last} is too many");
    Ok(last)
}

/// Which vCPU the channel with this number leads to; its sender is the channel's number modulo the number of vCPUs.
fn receiver(channel: usize) -> u32 {
    let cpus = CPUS.load(SeqCst);
    u32::try_from(channel).unwrap_or(0) / cpus % cpus
}

fn some_events(round: u32, abi: &str) -> Verdict {
    let wanted = TAKEN.load(SeqCst) + EVENTS;
    for _ in 0..PATIENCE {
        if TAKEN.load(SeqCst) >= wanted {
            return Ok(());
        }
        send_free(0);
        give_way();
    }
    let awaited = AWAITED.iter().filter(|awaited| awaited.load(SeqCst)).count();
    fail!("round {round}: events stop by {abi}: {} came, {awaited} are awaited", TAKEN.load(SeqCst))
}

fn wait(round: u32, what: &str, until: impl Fn() -> bool) -> Verdict {
    for _ in 0..PATIENCE {
        if until() {
            return Ok(());
        }
        give_way();
    }
    fail!("round {round}: {what}")
}

fn give_way() {
    let _ = hypercall::op_null(Hypercall::SCHED_OP, SchedOp::YIELD.0);
}

/// What the other vCPUs do.
fn work(vcpu: u32) {
    cpu::sti();
    loop {
        send_free(vcpu as usize);
        give_way();
    }
}

/// Sends once on each of a vCPU's channels that has no event under way.
fn send_free(me: usize) {
    let cpus = CPUS.load(SeqCst) as usize;
    BUSY.fetch_add(1, SeqCst);
    for channel in (me..cpus * cpus * CHANNELS).step_by(cpus) {
        let port = channel + UNUSED as usize + 1;
        let Some(awaited) = AWAITED.get(port) else { break };
        if !SENDING.load(SeqCst) {
            break;
        }
        if awaited.swap(true, SeqCst) {
            continue;
        }
        SENT.fetch_add(1, SeqCst);
        if events::send(Port(u32::try_from(port).unwrap_or(0))).is_err() {
            REFUSED.fetch_add(1, SeqCst);
        }
    }
    BUSY.fetch_sub(1, SeqCst);
}

/// The handler of every interrupt.
fn upcall(vector: u8) {
    let me = current();
    if usize::from(vector) != usize::from(VECTOR) + me || me >= VCPUS {
        return;
    }
    INSIDE.fetch_add(1, SeqCst);
    UPCALLS.fetch_add(1, SeqCst);
    INFO.u8(me * VCPU_INFO_SIZE + VCPU_UPCALL_PENDING).swap(0, SeqCst);
    match BY.load(SeqCst) {
        TWO_LEVEL => take_2level(me),
        FIFO => fifo::take(me, take),
        // Before vcpu_info had its place.
        _ => events::take_flag(),
    }
    INSIDE.fetch_sub(1, SeqCst);
}

/// A word of events is more than one vCPU's: each takes its own.
fn take_2level(me: usize) {
    let selector = INFO.u64(me * VCPU_INFO_SIZE + LAYOUT.vcpu_pending_sel);
    let mut selected = selector.swap(0, SeqCst);
    while selected != 0 {
        let index = selected.trailing_zeros();
        selected &= selected - 1;
        let at = index as usize * 8;
        let shared = events::shared();
        let mut ready =
            shared.u64(LAYOUT.pending + at).load(SeqCst) & !shared.u64(LAYOUT.mask + at).load(SeqCst);
        while ready != 0 {
            let bit = ready & ready.wrapping_neg();
            let port = index * 64 + ready.trailing_zeros();
            ready &= ready - 1;
            let mine = channel(port).is_some_and(|channel| receiver(channel) as usize == me);
            if mine && shared.u64(LAYOUT.pending + at).fetch_and(!bit, SeqCst) & bit != 0 {
                take(Port(port));
            }
        }
    }
}

fn channel(port: u32) -> Option<usize> {
    Some(port.checked_sub(UNUSED + 1)? as usize)
}

/// An event has come.
fn take(port: Port) {
    let awaited = AWAITED.get(port.0 as usize).is_some_and(|awaited| awaited.swap(false, SeqCst));
    if awaited { &TAKEN } else { &UNASKED }.fetch_add(1, SeqCst);
}
