//! What calls and events cost: one `BENCH name value` line each, medians, in TSC cycles where the name does not say ns. By FIFO
//! where the domain has it.
//!
//! On the command line: `ap=ID` starts a second vCPU, whose APIC has this id, for IPIs; `only=NAME count=N` does one
//! thing N times and says nothing about it, for a host that counts what it takes.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use guest::events::{self, Events, bind_ipi, bind_virq, send, status};
use guest::hypercall::{self, hvm_get_param, vcpu_op};
use guest::page::Page;
use guest::{Verdict, boot, check, clock, cpu, fifo, println, smp, traps, xen};
use xen_abi::Errno;
use xen_abi::cpuid::LEAF_TIME;
use xen_abi::hvm::params::HvmParam;
use xen_abi::hypercall::Hypercall;
use xen_abi::shared_info::VCPU_TIME;
use xen_abi::vcpu::{SetSingleshotTimer, VcpuOp};
use xen_abi::version::XenVer;
use xen_abi::xen::{Port, Virq};

guest::test!(run, answer);

const VECTOR: u8 = 0x42;
const OTHER_VECTOR: u8 = 0x52;
const OTHER_INFO: usize = 0x40;
const ROUNDS: usize = 1001;
const MS: u64 = 1_000_000;

static INFO: Page = Page::zero();
static FIFO: AtomicBool = AtomicBool::new(false);
static TO_US: AtomicU32 = AtomicU32::new(0);

fn run() -> Verdict {
    let words = boot::Words::read();
    let events = Events::init(VECTOR)?;
    let by_fifo = fifo::init_control(0).is_ok();
    FIFO.store(by_fifo, SeqCst);
    if by_fifo {
        fifo::expand_array(1024)?;
        events.take_selector();
    }
    let [_, _, khz, _] = xen::leaf(LEAF_TIME, 0);
    println!("BENCH tsc_khz {khz}");
    println!("events by {}", if by_fifo { "FIFO" } else { "2-level" });
    let bench = Bench { count: words.number("count="), words };

    bench.run("hypercall_xen_version", || {
        hypercall::op_null(Hypercall::XEN_VERSION, XenVer::VERSION.0).is_ok()
    })?;
    let own = open(&events, 0)?;
    bench.run("evtchn_status", || status(own).is_ok())?;
    cpu::sti();
    bench.run("evtchn_send_to_upcall", || came(&events, own, || send(own)))?;
    cpu::cli();
    let timer = bind_virq(Virq::TIMER, 0)?;
    unmask(&events, timer)?;
    timers(&bench, &events, timer)?;
    if let Some(port @ 1..) = hvm_get_param(HvmParam::CONSOLE_EVTCHN).ok().and_then(|p| u32::try_from(p).ok())
    {
        bench.run("notify_backend", || send(Port(port)).is_ok())?;
    }
    match bench.words.number("ap=") {
        Some(apic_id) => ipis(&bench, &events, apic_id),
        None => Ok(()),
    }
}

struct Bench {
    words: boot::Words,
    count: Option<u32>,
}

impl Bench {
    /// Prints the median of many rounds; fails if a round does.
    fn run(&self, name: &str, round: impl Fn() -> bool) -> Verdict {
        self.measure(name, || {
            let begin = cpu::rdtsc();
            round().then(|| cpu::rdtsc().wrapping_sub(begin))
        })
    }

    fn measure(&self, name: &str, round: impl Fn() -> Option<u64>) -> Verdict {
        if let Some(count) = self.count {
            let wanted = self.words.text("only=").is_some_and(|only| only == name.as_bytes());
            for _ in 0..if wanted { count } else { 0 } {
                check!(round().is_some(), "{name} fails");
            }
            return Ok(());
        }
        let mut values = [0; ROUNDS];
        for slot in &mut values {
            let value = round();
            check!(value.is_some(), "{name} fails");
            *slot = value.unwrap_or(0);
        }
        values.sort_unstable();
        println!("BENCH {name} {}", values.get(ROUNDS / 2).copied().unwrap_or(0));
        Ok(())
    }
}

fn unmask(events: &Events, port: Port) -> Result<(), Errno> {
    match FIFO.load(SeqCst) {
        true => fifo::unmask(port),
        false => {
            events.clear_mask(port);
            Ok(())
        }
    }
}

/// A port for IPIs to a vCPU, unmasked.
fn open(events: &Events, vcpu: u32) -> Result<Port, Errno> {
    let port = bind_ipi(vcpu)?;
    unmask(events, port)?;
    Ok(port)
}

/// What a guest does in an upcall, for one port.
fn take(events: &Events, port: Port) {
    events.take_selector();
    match FIFO.load(SeqCst) {
        true => fifo::take(events.vcpu as usize, |_| ()),
        false => _ = events.clear_pending(port),
    }
}

/// Whether what is done here leads to an upcall; the vCPU spins until then, interrupts let in.
fn came(events: &Events, port: Port, act: impl Fn() -> Result<(), Errno>) -> bool {
    let before = traps::count(VECTOR);
    let came = act().is_ok() && smp::spin_until(|| traps::count(VECTOR) != before);
    take(events, port);
    came
}

/// The same for one that halts until then, interrupts kept out before.
fn woke(events: &Events, port: Port, act: impl Fn() -> Result<(), Errno>) -> bool {
    let before = traps::count(VECTOR);
    let done = act().is_ok();
    while done && traps::count(VECTOR) == before {
        cpu::wait_interrupt();
    }
    take(events, port);
    done
}

fn timers(bench: &Bench, events: &Events, port: Port) -> Verdict {
    let now = || clock::now(events.shared, VCPU_TIME).unwrap_or(0);
    let set = |timeout_abs_ns| {
        let mut arg = SetSingleshotTimer { timeout_abs_ns, flags: 0, pad: 0 };
        vcpu_op(VcpuOp::SET_SINGLESHOT_TIMER.0, 0, &mut arg).map(drop)
    };
    // Nothing comes of these.
    bench.run("timer_set", || set(now() + 1000 * MS).is_ok())?;
    cpu::sti();
    bench.run("timer_past_to_upcall", || came(events, port, || set(now())))?;
    cpu::cli();
    bench.measure("timer_1ms_late_ns", || {
        let target = now() + MS;
        let fired = woke(events, port, || set(target));
        now().checked_sub(target).filter(|_| fired)
    })
}

/// There and back: the other vCPU is halted, and so are we until it answers.
fn ipis(bench: &Bench, events: &Events, apic_id: u32) -> Verdict {
    let theirs = events.register(1, &INFO, OTHER_INFO)?;
    theirs.set_vector(OTHER_VECTOR)?;
    if FIFO.load(SeqCst) {
        fifo::init_control(1)?;
    }
    let (to_us, to_them) = (open(events, 0)?, open(events, 1)?);
    theirs.take_selector();
    TO_US.store(to_us.0, SeqCst);
    check!(smp::start_test(apic_id), "the vCPU with APIC id {apic_id} does not start");
    let round = || {
        let done = woke(events, to_us, || send(to_them));
        if !FIFO.load(SeqCst) {
            events.clear_pending(to_them);
        }
        done
    };
    check!((0..10).all(|_| round()), "no IPI");
    bench.run("ipi_there_and_back", round)
}

fn answer(vcpu: u32) {
    let theirs = Events { shared: events::shared(), info: &INFO, offset: OTHER_INFO, vcpu };
    loop {
        let before = traps::count(OTHER_VECTOR);
        while traps::count(OTHER_VECTOR) == before {
            cpu::wait_interrupt();
        }
        theirs.take_selector();
        if FIFO.load(SeqCst) {
            fifo::take(1, |_| ());
        }
        let _ = send(Port(TO_US.load(SeqCst)));
    }
}
