//! Very many events, each by an upcall: `events=N` in all (20,000 if not said), to itself and between two vCPUs, one by one and
//! many by one multicall, in the layout the domain has, by a vector of each vCPU or, with `global`, by the one of all.
//!
//! Every port has at most one send under way. An event without such a send has come twice or from nowhere, a send whose
//! event does not come is lost, and an interrupt that finds `evtchn_upcall_pending` clear or comes inside another one is
//! spurious: each of them fails the test. An upcall whose events have been taken by the one before is none of these: Xen
//! has them too, where an event comes between taking the flag and taking the events. They are counted. KVM sends a vCPU's own
//! vector, and the global one where it goes through local APICs, for every word of the 2-level layout that it selects, the flag set or not: there, unless it is `strict`, the flag may be
//! clear, but no more interrupts may come than words were selected.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use guest::events::{self, Events, bind_ipi};
use guest::hypercall::{self, address};
use guest::page::Page;
use guest::smp::{current, spin_until, start_vcpu};
use guest::{Verdict, acpi, boot, check, check_eq, cpu, fifo, println};
use xen_abi::event_channel::{EvtchnOp, Send};
use xen_abi::hypercall::Hypercall;
use xen_abi::shared_info::{Layout, VCPU_INFO_SIZE};
use xen_abi::xen::{MulticallEntry, Port, Width};
use zerocopy::FromZeros;

guest::test!(run, work, upcall);

const VCPUS: usize = 2;
/// Channels from each vCPU to each.
const CHANNELS: usize = 24;
const PORTS: usize = 128;
/// Vector of vCPU 0 or of all; that of vCPU 1 follows.
const VECTOR: u8 = 0x60;
const LAYOUT: Layout = Layout::of(Width::W64);
const EVENTS: u32 = 20_000;

static INFO: Page = Page::zero();
/// Setting up is over.
static COUNTS: AtomicBool = AtomicBool::new(false);
static READY: AtomicBool = AtomicBool::new(false);
static FIFO: AtomicBool = AtomicBool::new(false);
static CPUS: AtomicU32 = AtomicU32::new(1);
/// Ports by sender and receiver.
static CHANNEL: [[AtomicU32; CHANNELS]; VCPUS * VCPUS] =
    [const { [const { AtomicU32::new(0) }; CHANNELS] }; VCPUS * VCPUS];
/// Whether an event of a port is awaited, and who receives it, plus 1.
static AWAITED: [AtomicBool; PORTS] = [const { AtomicBool::new(false) }; PORTS];
static RECEIVER: [AtomicUsize; PORTS] = [const { AtomicUsize::new(0) }; PORTS];
/// What each vCPU is to send.
static QUOTA: AtomicU64 = AtomicU64::new(0);
static VCPU: [Count; VCPUS] = [const { Count::new() }; VCPUS];

/// What has happened on a vCPU.
struct Count {
    sent: AtomicU64,
    refused: AtomicU64,
    done: AtomicBool,
    taken: AtomicU64,
    interrupts: AtomicU64,
    empty: AtomicU64,
    inside: AtomicBool,
    nested: AtomicU64,
    spurious: AtomicU64,
    unasked: AtomicU64,
    words: AtomicU64,
}

impl Count {
    const fn new() -> Self {
        Self {
            sent: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            done: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            empty: AtomicU64::new(0),
            inside: AtomicBool::new(false),
            nested: AtomicU64::new(0),
            spurious: AtomicU64::new(0),
            unasked: AtomicU64::new(0),
            words: AtomicU64::new(0),
        }
    }
}

/// The ports that one vCPU sends on to one.
fn channels(from: usize, to: usize) -> &'static [AtomicU32; CHANNELS] {
    of(&CHANNEL, from * VCPUS + to)
}

/// An element, where the index is one of this microkernel's own.
fn of<T>(all: &'static [T], index: usize) -> &'static T {
    match all.get(index) {
        Some(found) => found,
        None => cpu::stop(),
    }
}

fn run() -> Verdict {
    let words = boot::Words::read();
    let global = words.has("global");
    let events = if global { Events::init_global(VECTOR)? } else { Events::init(VECTOR)? };
    let cpus = acpi::cpus().count().min(VCPUS);
    CPUS.store(u32::try_from(cpus).unwrap_or(1), SeqCst);
    let by_fifo = fifo::init_control(0).is_ok();
    FIFO.store(by_fifo, SeqCst);
    events.register(0, &INFO, 0)?;
    for vcpu in 1..cpus {
        let number = u32::try_from(vcpu).unwrap_or(0);
        let theirs = events.register(number, &INFO, vcpu * VCPU_INFO_SIZE)?;
        // What is pending for every vCPU that has had no vcpu_info until now is nothing here.
        theirs.take_selector();
        if !global {
            theirs.set_vector(VECTOR + u8::try_from(vcpu).unwrap_or(0))?;
        }
        if by_fifo {
            fifo::init_control(number)?;
        }
    }
    if by_fifo {
        fifo::expand_array(1024)?;
    }
    events.take_selector();
    open(cpus)?;
    let all = u64::from(words.number("events=").unwrap_or(EVENTS));
    QUOTA.store(all.div_ceil(cpus as u64), SeqCst);
    COUNTS.store(true, SeqCst);
    for vcpu in 1..cpus {
        start_vcpu(u32::try_from(vcpu).unwrap_or(0))?;
    }
    if cpus > 1 {
        check!(spin_until(|| READY.load(SeqCst)), "vCPU 1 does not start");
    }
    work(0);
    account(cpus, all, if global { "the global vector" } else { "vectors of vCPUs" })
}

fn open(cpus: usize) -> Result<(), guest::Stop> {
    for from in 0..cpus {
        for to in 0..cpus {
            for channel in channels(from, to) {
                let receiver = u32::try_from(to).unwrap_or(0);
                let port = bind_ipi(receiver)?;
                of(&RECEIVER, port.0 as usize).store(to + 1, SeqCst);
                channel.store(port.0, SeqCst);
                match FIFO.load(SeqCst) {
                    true => fifo::unmask(port)?,
                    false => events::unmask(port)?,
                }
            }
        }
    }
    Ok(())
}

/// What every vCPU does: sends until it has sent its part, and takes what comes.
fn work(vcpu: u32) {
    let me = vcpu as usize;
    let count = of(&VCPU, me);
    let other = (me + 1) % CPUS.load(SeqCst) as usize;
    let (own, far) = (channels(me, me), channels(me, other));
    let quota = QUOTA.load(SeqCst);
    let mut tenths = 0;
    cpu::sti();
    READY.store(true, SeqCst);
    while count.sent.load(SeqCst) < quota {
        for channels in [own, far] {
            send_free(count, channels, 1);
            send_free(count, channels, CHANNELS);
        }
        // The other one cannot take its events as long as we keep the CPU.
        if far.iter().all(|port| of(&AWAITED, port.load(SeqCst) as usize).load(SeqCst)) {
            let _ = hypercall::op_null(Hypercall::SCHED_OP, 0);
        }
        let sent = count.sent.load(SeqCst);
        if me == 0 && sent * 10 / quota > tenths {
            tenths = sent * 10 / quota;
            println!("{sent} of {quota} sent by vCPU 0");
        }
    }
    count.done.store(true, SeqCst);
    if me == 0 {
        return;
    }
    loop {
        cpu::cli();
        cpu::wait_interrupt();
    }
}

/// Sends on up to `most` of the channels that have no event under way: one by EVTCHNOP_send, more by one multicall.
fn send_free(count: &Count, channels: &[AtomicU32; CHANNELS], most: usize) {
    let mut sends = [Send { port: Port(0) }; CHANNELS];
    let mut calls = [MulticallEntry::new_zeroed(); CHANNELS];
    let free = channels.iter().map(|port| port.load(SeqCst));
    let free = free.filter(|&port| !of(&AWAITED, port as usize).swap(true, SeqCst));
    let mut number = 0u32;
    for ((send, call), port) in sends.iter_mut().zip(&mut calls).zip(free.take(most)) {
        send.port = Port(port);
        let [cmd, arg, ..] = &mut call.args;
        (call.op, *cmd, *arg) = (Hypercall::EVENT_CHANNEL_OP.0, EvtchnOp::SEND.0.into(), address(send));
        number += 1;
    }
    let failed = match (number, sends) {
        (0, _) => return,
        (1, [send, ..]) => u64::from(events::send(send.port).is_err()),
        _ => {
            let made = hypercall::call(Hypercall::MULTICALL, &[address(&mut calls), number.into()]);
            let failed = calls.iter().take(number as usize).filter(|call| call.result != 0).count();
            failed as u64 + u64::from(made != Ok(0))
        }
    };
    count.refused.fetch_add(failed, SeqCst);
    count.sent.fetch_add(number.into(), SeqCst);
}

/// The handler of every interrupt.
fn upcall(vector: u8) {
    if !(VECTOR..VECTOR + 2).contains(&vector) {
        return;
    }
    let me = current();
    let count = of(&VCPU, me);
    if !COUNTS.load(SeqCst) {
        // Nothing has been sent yet; vcpu_info is still where it was at first.
        events::shared().u8(0).store(0, SeqCst);
        return;
    }
    count.interrupts.fetch_add(1, SeqCst);
    if count.inside.swap(true, SeqCst) {
        count.nested.fetch_add(1, SeqCst);
    }
    let before = count.taken.load(SeqCst) + count.unasked.load(SeqCst);
    if INFO.u8(me * VCPU_INFO_SIZE).swap(0, SeqCst) == 0 {
        count.spurious.fetch_add(1, SeqCst);
    } else if FIFO.load(SeqCst) {
        fifo::take(me, |port| take(me, port));
    } else {
        take_2level(me);
    }
    if before == count.taken.load(SeqCst) + count.unasked.load(SeqCst) {
        count.empty.fetch_add(1, SeqCst);
    }
    count.inside.store(false, SeqCst);
}

fn take_2level(me: usize) {
    let mut selected = INFO.u64(me * VCPU_INFO_SIZE + LAYOUT.vcpu_pending_sel).swap(0, SeqCst);
    of(&VCPU, me).words.fetch_add(selected.count_ones().into(), SeqCst);
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
            let mine = RECEIVER.get(port as usize).is_none_or(|of| of.load(SeqCst) == me + 1);
            if mine && shared.u64(LAYOUT.pending + at).fetch_and(!bit, SeqCst) & bit != 0 {
                take(me, Port(port));
            }
        }
    }
}

/// An event has come.
fn take(me: usize, port: Port) {
    let awaited = AWAITED.get(port.0 as usize).is_some_and(|awaited| awaited.swap(false, SeqCst));
    let count = of(&VCPU, me);
    if awaited { &count.taken } else { &count.unasked }.fetch_add(1, SeqCst);
}

fn account(cpus: usize, wanted: u64, by: &str) -> Verdict {
    let counts = || VCPU.iter().take(cpus);
    let sum = |field: fn(&Count) -> &AtomicU64| counts().map(|count| field(count).load(SeqCst)).sum::<u64>();
    let finished = spin_until(|| {
        let _ = hypercall::op_null(Hypercall::SCHED_OP, 0);
        counts().all(|count| count.done.load(SeqCst)) && sum(|c| &c.taken) == sum(|c| &c.sent)
    });
    cpu::cli();
    let by_fifo = FIFO.load(SeqCst);
    let words = boot::Words::read();
    let per_word = !by_fifo && !words.has("strict");
    let lost = AWAITED.iter().filter(|awaited| awaited.load(SeqCst)).count();
    let (sent, taken, upcalls) = (sum(|c| &c.sent), sum(|c| &c.taken), sum(|c| &c.interrupts));
    println!(
        "{sent} events to {cpus} vCPUs, {} by {by}: {upcalls} upcalls, {} that found none, {} without the flag",
        if by_fifo { "FIFO" } else { "2-level" },
        sum(|c| &c.empty),
        sum(|c| &c.spurious)
    );
    check_eq!(sum(|c| &c.refused), 0, "sends that were refused");
    match per_word {
        true => check!(upcalls <= sum(|c| &c.words), "{upcalls} upcalls for {} words", sum(|c| &c.words)),
        false => check_eq!(sum(|c| &c.spurious), 0, "interrupts without evtchn_upcall_pending"),
    }
    check_eq!(sum(|c| &c.nested), 0, "interrupts inside the handler of one");
    check_eq!(sum(|c| &c.unasked), 0, "events that nobody sent");
    check!(finished && lost == 0, "{lost} events lost of {sent}, {taken} came");
    check_eq!(taken, sent, "events that came");
    check!(sent >= wanted, "{sent} events of {wanted} wanted");
    Ok(())
}
