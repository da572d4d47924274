//! Every vCPU sends on random ports while it masks, moves, closes and binds some of its own; every event is accounted
//! for. By the FIFO layout where the domain has it, else by 2-level.
//!
//! Per port it is counted how often it was sent on (before each send) and how often an event of it was handled, and
//! noted how many sends the last handled event stands for. At the end every send must have been followed by an event,
//! and no port have had more events than sends. Some ports are never closed and never sent on while an event of theirs is
//! on its way: there an event that comes twice is seen for certain.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use guest::events::{self, Events, bind_ipi, evtchn_op, send};
use guest::page::Page;
use guest::smp::start_vcpu;
use guest::{Verdict, acpi, apic, check, check_eq, cpu, fifo, println, smp, traps};
use xen_abi::Errno;
use xen_abi::event_channel::{AllocUnbound, BindInterdomain, BindVcpu, Close, EvtchnOp};
use xen_abi::shared_info::{Layout, VCPU_INFO_SIZE};
use xen_abi::xen::{Domid, Port, Width};

guest::test!(run, work);

const PORTS: u32 = 4096;
const SLOTS: usize = 2600;
const VCPUS: usize = 4;
/// What a vCPU does before it stops.
const ROUNDS: u32 = 10_000;
/// Vector of vCPU 0; the others' follow.
const VECTOR: u8 = 0x60;
const LAYOUT: Layout = Layout::of(Width::W64);

static INFO: Page = Page::zero();
static FIFO: AtomicBool = AtomicBool::new(false);
static CPUS: AtomicU32 = AtomicU32::new(1);
static OPEN: AtomicUsize = AtomicUsize::new(1);
static GO: AtomicBool = AtomicBool::new(false);
static FINISHED: AtomicU32 = AtomicU32::new(0);
static TROUBLE: AtomicU32 = AtomicU32::new(0);
/// Events that nobody had sent.
static TWICE: AtomicU32 = AtomicU32::new(0);

/// The channels that are sent on one event at a time: IPIs and others.
fn one_at_a_time(index: usize) -> bool {
    matches!(index % 16, 5 | 6)
}

/// A channel: a lock, the port that gets the events, the one they are sent on (the same for an IPI).
struct Slot {
    lock: AtomicBool,
    port: AtomicU32,
    sent: AtomicU32,
}

/// What happened on a port.
struct Account {
    /// One event at a time: 1 = none is on its way, 2 = one is; 0 on all other ports.
    awaited: AtomicU32,
    sends: AtomicU32,
    handled: AtomicU32,
    seen: AtomicU32,
}

static SLOT: [Slot; SLOTS] =
    [const { Slot { lock: AtomicBool::new(false), port: AtomicU32::new(0), sent: AtomicU32::new(0) } };
        SLOTS];
static ACCOUNT: [Account; PORTS as usize] = [const {
    Account {
        awaited: AtomicU32::new(0),
        sends: AtomicU32::new(0),
        handled: AtomicU32::new(0),
        seen: AtomicU32::new(0),
    }
}; PORTS as usize];

fn run() -> Verdict {
    let events = Events::init(VECTOR)?;
    let cpus = acpi::cpus().count().min(VCPUS);
    CPUS.store(u32::try_from(cpus).unwrap_or(1), SeqCst);
    let fifo = fifo::init_control(0).is_ok();
    FIFO.store(fifo, SeqCst);
    events.register(0, &INFO, 0)?;
    for vcpu in 1..cpus {
        let number = u32::try_from(vcpu).unwrap_or(0);
        let theirs = events.register(number, &INFO, vcpu * VCPU_INFO_SIZE)?;
        theirs.set_vector(vector(vcpu))?;
        if fifo {
            fifo::init_control(number)?;
        }
    }
    if fifo {
        fifo::expand_array(PORTS)?;
    }
    let slots = open_all()?;
    OPEN.store(slots, SeqCst);
    println!("{} of {slots} channels and {cpus} vCPUs", if fifo { "FIFO" } else { "2-level" });
    for vcpu in 1..cpus {
        start_vcpu(u32::try_from(vcpu).unwrap_or(0))?;
    }
    GO.store(true, SeqCst);
    work(0);
    check_eq!(TROUBLE.load(SeqCst), 0, "calls that failed (-errno + 1000 * what)");
    check_eq!(TWICE.load(SeqCst), 0, "events that came twice");
    account()
}

/// Channels until there is no port left, every third an IPI.
fn open_all() -> Result<usize, Errno> {
    for (index, slot) in SLOT.iter().enumerate() {
        match open(slot, index) {
            Ok(()) => {}
            Err(Errno::ENOSPC) => return Ok(index),
            Err(errno) => return Err(errno),
        }
    }
    Ok(SLOTS)
}

fn vector(vcpu: usize) -> u8 {
    VECTOR + u8::try_from(vcpu).unwrap_or(0)
}

fn account_of(port: Port) -> &'static Account {
    let [first, ..] = &ACCOUNT;
    ACCOUNT.get(port.0 as usize).unwrap_or(first)
}

/// Binds a channel, its port unmasked.
fn open(slot: &Slot, index: usize) -> Result<(), Errno> {
    let cpus = CPUS.load(SeqCst);
    let (port, sent) = if index.is_multiple_of(3) {
        let port = bind_ipi(u32::try_from(index).unwrap_or(0) / 3 % cpus)?;
        account_of(port).awaited.store(one_at_a_time(index).into(), SeqCst);
        (port, port)
    } else {
        let mut far = AllocUnbound { dom: Domid::SELF, remote_dom: Domid::SELF, port: Port(0) };
        evtchn_op(EvtchnOp::ALLOC_UNBOUND, &mut far)?;
        let mut near =
            BindInterdomain { remote_dom: Domid::SELF, pad: 0, remote_port: far.port, local_port: Port(0) };
        if let Err(errno) = evtchn_op(EvtchnOp::BIND_INTERDOMAIN, &mut near) {
            close(far.port);
            return Err(errno);
        }
        // It is pending at once.
        let account = account_of(near.local_port);
        account.awaited.store(2 * u32::from(one_at_a_time(index)), SeqCst);
        account.sends.fetch_add(1, SeqCst);
        (near.local_port, far.port)
    };
    slot.port.store(port.0, SeqCst);
    slot.sent.store(sent.0, SeqCst);
    unmask(port);
    Ok(())
}

/// A call that must not fail has.
fn trouble(what: u32, result: Result<(), Errno>) {
    if let Err(errno) = result {
        TROUBLE.store(what * 1000 + u32::try_from(-errno.to_ret()).unwrap_or(999), SeqCst);
    }
}

fn close(port: Port) {
    trouble(1, evtchn_op(EvtchnOp::CLOSE, &mut Close { port }).map(drop));
}

fn mask(port: Port) {
    match FIFO.load(SeqCst) {
        true => fifo::mask(port),
        false => _ = events::shared().u64(LAYOUT.mask + word(port)).fetch_or(bit(port), SeqCst),
    }
}

fn unmask(port: Port) {
    let result = match FIFO.load(SeqCst) {
        true => fifo::unmask(port),
        false => events::unmask(port),
    };
    trouble(2, result);
}

const fn word(port: Port) -> usize {
    (port.0 / 64 * 8) as usize
}

const fn bit(port: Port) -> u64 {
    1 << (port.0 % 64)
}

/// An event has come.
fn handle(port: Port) {
    let account = account_of(port);
    // What is sent from here on comes as another event.
    account.seen.fetch_max(account.sends.load(SeqCst), SeqCst);
    account.handled.fetch_add(1, SeqCst);
    if account.awaited.load(SeqCst) != 0 && account.awaited.swap(1, SeqCst) != 2 {
        TWICE.fetch_add(1, SeqCst);
    }
}

/// The upcall handler of a vCPU, if an interrupt has come since the last time.
fn upcall(vcpu: usize, known: &Cell<u32>) {
    cpu::sti();
    cpu::pause();
    cpu::cli();
    let count = traps::count(vector(vcpu));
    if known.replace(count) == count {
        return;
    }
    let info = vcpu * VCPU_INFO_SIZE;
    INFO.u8(info).swap(0, SeqCst);
    if FIFO.load(SeqCst) {
        return fifo::take(vcpu, handle);
    }
    let mut selected = INFO.u64(info + LAYOUT.vcpu_pending_sel).swap(0, SeqCst);
    while selected != 0 {
        let index = selected.trailing_zeros();
        selected &= selected - 1;
        let at = index as usize * 8;
        let shared = events::shared();
        let mut ready =
            shared.u64(LAYOUT.pending + at).load(SeqCst) & !shared.u64(LAYOUT.mask + at).load(SeqCst);
        while ready != 0 {
            let port = Port(index * 64 + ready.trailing_zeros());
            ready &= ready - 1;
            // Another vCPU may look at the same word.
            if shared.u64(LAYOUT.pending + word(port)).fetch_and(!bit(port), SeqCst) & bit(port) != 0 {
                handle(port);
            }
        }
    }
}

/// What every vCPU does.
fn work(vcpu: u32) {
    let me = vcpu as usize;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(vcpu) + 1);
    let known = Cell::new(0);
    while !GO.load(SeqCst) {
        cpu::pause();
    }
    for _ in 0..ROUNDS {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        act(me, random, &known);
        upcall(me, &known);
    }
    FINISHED.fetch_add(1, SeqCst);
    if me == 0 {
        // Until all have finished and everything is handled.
        let _ = smp::spin_until(|| {
            upcall(me, &known);
            FINISHED.load(SeqCst) == CPUS.load(SeqCst) && settled()
        });
        return;
    }
    loop {
        upcall(me, &known);
        cpu::pause();
    }
}

fn settled() -> bool {
    ACCOUNT.iter().all(|account| account.seen.load(SeqCst) == account.sends.load(SeqCst))
}

fn act(me: usize, random: u64, known: &Cell<u32>) {
    let [what, any, vcpu] = [0, 16, 48].map(|bits| usize::try_from(random >> bits & 0xffff).unwrap_or(0));
    let any = any % OPEN.load(SeqCst);
    let own = any - any % VCPUS + me;
    let what = what % 32;
    let index = if what < 24 { any } else { own };
    let Some(slot) = SLOT.get(index) else { return };
    if slot.lock.swap(true, SeqCst) {
        return;
    }
    let (port, sent) = (Port(slot.port.load(SeqCst)), Port(slot.sent.load(SeqCst)));
    if port.0 != 0 {
        match what {
            0..28 if account_of(port).awaited.compare_exchange(1, 2, SeqCst, SeqCst) == Err(2) => {}
            0..24 => {
                account_of(port).sends.fetch_add(1, SeqCst);
                trouble(3, send(sent));
            }
            24..28 => {
                mask(port);
                account_of(port).sends.fetch_add(1, SeqCst);
                trouble(4, send(sent));
                unmask(port);
            }
            28..31 if port != sent => {
                let vcpu = u32::try_from(vcpu).unwrap_or(0) % CPUS.load(SeqCst);
                trouble(5, evtchn_op(EvtchnOp::BIND_VCPU, &mut BindVcpu { port, vcpu }).map(drop));
            }
            _ if one_at_a_time(index) => {}
            _ => reopen(slot, index, (port, sent), || upcall(me, known)),
        }
    }
    slot.lock.store(false, SeqCst);
}

/// Closes a channel, whose waiting event is lost with it, and binds it anew.
fn reopen(slot: &Slot, index: usize, (port, sent): (Port, Port), handle_events: impl Fn()) {
    mask(port);
    let account = account_of(port);
    let sends = account.sends.load(SeqCst);
    close(port);
    account.seen.fetch_max(sends, SeqCst);
    if sent != port {
        close(sent);
    }
    // Others may hold every free port for the moment, and ports that are still queued, here too, are not free.
    while let Err(errno) = open(slot, index) {
        if errno != Errno::ENOSPC {
            return trouble(6, Err(errno));
        }
        handle_events();
    }
}

fn account() -> Verdict {
    let (mut sends, mut handled) = (0u64, 0u64);
    for (port, account) in ACCOUNT.iter().enumerate() {
        let [sent, taken, seen] = [&account.sends, &account.handled, &account.seen].map(|n| n.load(SeqCst));
        check_eq!(seen, sent, "port {port}: sends that were followed by an event");
        check!(taken <= sent, "port {port}: {taken} events of {sent} sends");
        sends += u64::from(sent);
        handled += u64::from(taken);
    }
    check_eq!(FINISHED.load(SeqCst), CPUS.load(SeqCst), "vCPUs that came to their end");
    println!("{sends} sends, {handled} events, none lost and none twice (APIC {})", apic::id());
    Ok(())
}
