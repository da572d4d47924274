//! A guest that does what it can against event channels: anything to every operation on ports, vCPUs and the scheduler, and event
//! words, queues and control blocks of nonsense, which another vCPU goes on changing, on top of each other, and given back to the host.
//! Every call must end, and events must work afterwards. `calls=N` says how many calls, `ports=N` how many
//! ports, and `seed=N` which.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use guest::boot::{self, Words};
use guest::events::{self, Events, bind_ipi, evtchn_op, send};
use guest::hypercall::{self, address};
use guest::page::Page;
use guest::smp::{spin_until, start_context, start_vcpu};
use guest::{Verdict, acpi, apic, check, check_eq, cpu, println};
use xen_abi::Errno;
use xen_abi::event_channel::fifo::{BUSY, LINK_MASK, LINKED, MASKED, PENDING, WORDS_PER_PAGE};
use xen_abi::event_channel::{EvtchnOp, ExpandArray, InitControl, Reset};
use xen_abi::hypercall::Hypercall;
use xen_abi::memory::{MapSpace, MemoryOp, MemoryReservation};
use xen_abi::sched::SchedOp;
use xen_abi::shared_info::VCPU_INFO_SIZE;
use xen_abi::vcpu::VcpuOp;
use xen_abi::xen::{Domid, MulticallEntry, Port};
use zerocopy::FromZeros;

guest::test!(run, other);

const CALLS: u32 = 300;
const EFER: u32 = 0xc000_0080;
const APIC_BASE: u32 = 0x1b;
const PORTS: u32 = 900;
/// Binds made by one multicall.
const AT_ONCE: usize = 64;
/// Bytes of the longest argument, and what a call may be given to read and write.
const ARG: usize = 64;

/// Event words. What the ports beyond the second page have lies in the third.
static ARRAY: [Page; 3] = [const { Page::zero() }; 3];
static CONTROL: Page = Page::zero();
/// Where arguments lie, areas that are registered, and what an area at the end of its page reaches into.
static SCRATCH: [Page; 3] = [const { Page::zero() }; 3];
/// Whether the other vCPU is to change words; it does so no longer, or not yet.
static SCRIBBLES: AtomicBool = AtomicBool::new(false);
static SCRIBBLED: AtomicU32 = AtomicU32::new(0);
static RESTS: AtomicBool = AtomicBool::new(false);

/// xorshift64.
struct Random(u64);

impl Random {
    /// As `seed=N` says.
    fn new(of: u64) -> Self {
        let seed = Words::read().number("seed=").unwrap_or(0);
        Random(of ^ u64::from(seed).wrapping_mul(0xff51_afd7_ed55_8ccd))
    }

    fn any(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.any() >> 16 & 0x7fff_ffff).unwrap_or(0) % end.max(1)
    }

    fn of<const N: usize>(&mut self, all: [u64; N]) -> u64 {
        let index = usize::try_from(self.below(u32::try_from(N).unwrap_or(1))).unwrap_or(0);
        all.into_iter().nth(index).unwrap_or(0)
    }

    /// Numbers that mean something somewhere.
    fn number(&mut self) -> u64 {
        let (small, port, any) = (self.below(8), self.below(2048), self.any());
        let frames = [SCRATCH[0].gfn(), CONTROL.gfn(), 0xf_0000, u64::MAX >> 12];
        let (page, scratch) = (self.of(frames), SCRATCH[0].addr() + u64::from(self.below(512)) * 8);
        self.of([small.into(), port.into(), page, scratch, 0, u32::MAX.into(), 0x7ff0, u64::MAX, any])
    }

    /// An event word.
    fn word(&mut self, own: u32) -> u32 {
        let [any, link] = [self.below(u32::MAX >> 1), self.below(LINK_MASK)];
        let flags = self.of([PENDING, MASKED, LINKED, BUSY, 0, LINKED | PENDING].map(u64::from));
        let flags = u32::try_from(flags).unwrap_or(0);
        let words = [LINKED | own, LINKED | LINK_MASK, flags | link, any << 1, 0, flags].map(u64::from);
        u32::try_from(self.of(words)).unwrap_or(0)
    }
}

fn run() -> Verdict {
    let events = Events::map()?;
    apic::enable();
    let words = Words::read();
    let calls = words.number("calls=").unwrap_or(CALLS);
    let ports = words.number("ports=").unwrap_or(PORTS);
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    registers(&mut random, calls / 8)?;
    if acpi::cpus().count() > 1 {
        start_vcpu(1)?;
        check!(spin_until(|| RESTS.load(SeqCst)), "vCPU 1 does not start");
    }
    let fifo = init_control(0, CONTROL.gfn(), 0) != Err(Errno::ENOSYS);
    if fifo {
        queues(&mut random, calls, ports)?;
        for _ in 0..10 {
            again(&mut random)?;
        }
    } else {
        println!("no FIFO here");
    }
    bitmap(&events, &mut random, calls / 4)?;
    anything(&mut random, calls)?;
    for vcpu in [0, 1] {
        let _ = hypercall::call(Hypercall::VCPU_OP, &[VcpuOp::STOP_PERIODIC_TIMER.0.into(), vcpu]);
    }
    // As if nothing had been.
    reset()?;
    shared_is_sane();
    let port = bind_ipi(0)?;
    check_eq!(send(port), Ok(()), "a send after all that");
    check!(events.is_pending(port), "an event after all that is not pending");
    check_eq!(send(Port(port.0 + 1)), Err(Errno::EINVAL), "a send on a closed port after all that");
    println!("events work, after {} words of vCPU 1", SCRIBBLED.load(SeqCst));
    Ok(())
}

fn reset() -> Verdict {
    evtchn_op(EvtchnOp::RESET, &mut Reset { dom: Domid::SELF })?;
    Ok(())
}

fn init_control(vcpu: u32, control_gfn: u64, offset: u32) -> Result<i64, Errno> {
    let mut arg = InitControl { control_gfn, offset, vcpu, link_bits: 0, pad: [0; 7] };
    evtchn_op(EvtchnOp::INIT_CONTROL, &mut arg)
}

fn expand(array_gfn: u64) -> Result<i64, Errno> {
    evtchn_op(EvtchnOp::EXPAND_ARRAY, &mut ExpandArray { array_gfn })
}

/// A call may answer what it likes, but not succeed at what cannot be.
fn evtchn(op: EvtchnOp, words: [u32; 4]) -> Result<i64, Errno> {
    let mut arg = words;
    evtchn_op(op, &mut arg)
}

/// FIFO, with a control block inside the event array, pages of the array that are the same one, and one that is a control block too.
fn queues(random: &mut Random, calls: u32, ports: u32) -> Verdict {
    let [first, second, last] = [&ARRAY[0], &ARRAY[1], &ARRAY[2]];
    // A special page or a hole is none.
    let (Some(hole), Some(grants)) = (boot::hole_gfn(5), boot::hole_gfn(6)) else { return Ok(()) };
    events::add_to_physmap(MapSpace::GRANT_TABLE, 0, grants)?;
    let smp = acpi::cpus().count() > 1;
    for gfn in [hole, grants, u64::MAX, 1 << 52, u64::MAX >> 12] {
        check_eq!(expand(gfn), Err(Errno::EINVAL), "an event array at frame {gfn:#x}");
        if smp {
            check_eq!(init_control(1, gfn, 0), Err(Errno::EINVAL), "a control block at frame {gfn:#x}");
        }
    }
    if smp {
        init_control(1, first.gfn(), 2048)?;
    }
    check_eq!(init_control(0, first.gfn(), 0), Err(Errno::EINVAL), "a second control block");
    let pages = ports.div_ceil(WORDS_PER_PAGE).max(5);
    for page in [first, second, second, &CONTROL] {
        expand(page.gfn())?;
    }
    for _ in 4..pages {
        expand(last.gfn())?;
    }
    let bound = bind_many(ports);
    println!("{bound} ports");
    scribble(true)?;
    for _ in 0..calls {
        let port = random.below(bound + 3);
        let word = random.word(port);
        first.u32((port % WORDS_PER_PAGE * 4) as usize).store(word, SeqCst);
        let at = random.below(18) as usize * 4;
        CONTROL.u32(at).store(random.word(port), SeqCst);
        let other = random.below(bound + 3);
        let _ = send(Port(port));
        let _ = send(Port(other));
        let _ = match random.below(8) {
            0 => evtchn(EvtchnOp::UNMASK, [other, 0, 0, 0]),
            1 => evtchn(EvtchnOp::SET_PRIORITY, [other, random.below(18), 0, 0]),
            2 => evtchn(EvtchnOp::CLOSE, [other, 0, 0, 0]),
            3 | 4 => evtchn(EvtchnOp::BIND_IPI, [random.below(3), 0, 0, 0]),
            5 => evtchn(EvtchnOp::BIND_VCPU, [other, random.below(3), 0, 0]),
            6 => evtchn(EvtchnOp::UNMASK, [port, 0, 0, 0]),
            _ => evtchn(EvtchnOp::STATUS, [0x7ff0, port, 0, 0]),
        };
    }
    scribble(false)?;
    println!("queues of nonsense");
    given_back(random, bound)
}

/// Has the other vCPU change words, or leave them alone, and waits until it does.
fn scribble(on: bool) -> Verdict {
    if acpi::cpus().count() > 1 {
        SCRIBBLES.store(on, SeqCst);
        check!(spin_until(|| RESTS.load(SeqCst) != on), "vCPU 1 does not hear");
    }
    Ok(())
}

/// Ports as long as there are some, by many calls at once.
fn bind_many(wanted: u32) -> u32 {
    let mut args = [[0u32; 2]; AT_ONCE];
    let mut calls = [MulticallEntry::new_zeroed(); AT_ONCE];
    let mut bound = 0;
    while bound < wanted {
        for (call, arg) in calls.iter_mut().zip(&mut args) {
            *arg = [bound % 2, 0];
            call.op = Hypercall::EVENT_CHANNEL_OP.0;
            let [cmd, at, ..] = &mut call.args;
            (*cmd, *at) = (EvtchnOp::BIND_IPI.0.into(), address(arg));
        }
        let made = hypercall::call(Hypercall::MULTICALL, &[address(&mut calls), AT_ONCE as u64]);
        let count = calls.iter().filter(|call| made == Ok(0) && call.result == 0).count();
        if count == 0 {
            break;
        }
        bound += u32::try_from(count).unwrap_or(0);
    }
    bound
}

/// The pages of events go back to the host, while events come, and are taken again.
fn given_back(random: &mut Random, ports: u32) -> Verdict {
    let mut gfns = [ARRAY[0].gfn(), CONTROL.gfn()];
    let reservation = |op: MemoryOp, gfns: &mut [u64; 2]| {
        let mut arg = MemoryReservation {
            extent_start: address(gfns),
            nr_extents: 2,
            domid: Domid::SELF,
            ..MemoryReservation::new_zeroed()
        };
        hypercall::op(Hypercall::MEMORY_OP, op.0, &mut arg)
    };
    check_eq!(reservation(MemoryOp::DECREASE_RESERVATION, &mut gfns), Ok(2), "pages given back");
    for _ in 0..200 {
        let port = random.below(ports);
        let _ = send(Port(port));
        let _ = evtchn(EvtchnOp::UNMASK, [port, 0, 0, 0]);
        let _ = evtchn(EvtchnOp::CLOSE, [random.below(ports), 0, 0, 0]);
        let _ = evtchn(EvtchnOp::BIND_IPI, [0; 4]);
    }
    // A frame of the grant table where the control block was.
    let Some(grants) = boot::hole_gfn(6) else { return Ok(()) };
    events::add_to_physmap(MapSpace::GRANT_TABLE, 0, CONTROL.gfn())?;
    for _ in 0..50 {
        let _ = send(Port(random.below(ports)));
    }
    events::add_to_physmap(MapSpace::GRANT_TABLE, 0, grants)?;
    // Where the array has no room that is said first.
    let gone = expand(ARRAY[0].gfn());
    check!(matches!(gone, Err(Errno::EINVAL | Errno::ENOSPC)), "an event array that is not there: {gone:?}");
    check_eq!(reservation(MemoryOp::POPULATE_PHYSMAP, &mut gfns), Ok(2), "pages taken again");
    for _ in 0..200 {
        let _ = send(Port(random.below(ports)));
    }
    println!("pages given back and taken again");
    Ok(())
}

/// 2-level and FIFO again, with what is left in the pages, and a send on what is closed.
fn again(random: &mut Random) -> Verdict {
    reset()?;
    let port = random.below(1000) + 1;
    check_eq!(send(Port(port)), Err(Errno::EINVAL), "a send after a reset");
    init_control(0, CONTROL.gfn(), random.below(500) * 8)?;
    expand(ARRAY[0].gfn())?;
    for _ in 0..20 {
        let port = bind_ipi(0)?;
        let _ = evtchn(EvtchnOp::UNMASK, [port.0, 0, 0, 0]);
        send(port)?;
    }
    Ok(())
}

/// Nonsense in shared_info, and sends.
fn bitmap(events: &Events, random: &mut Random, calls: u32) -> Verdict {
    reset()?;
    let bound = bind_many(200);
    for _ in 0..calls {
        // Not the clock, by which this one goes.
        let (info, bits) = (random.below(2), 256 + random.below(256));
        let at = if random.below(4) == 0 { info } else { bits };
        events.shared.u64(at as usize * 8).store(random.any(), SeqCst);
        let port = random.below(bound + 8);
        let _ = send(Port(port));
        let _ = evtchn(EvtchnOp::UNMASK, [random.below(bound + 8), 0, 0, 0]);
    }
    println!("a bitmap of nonsense");
    Ok(())
}

/// What was written there is no more than what can be there.
fn shared_is_sane() {
    (256..512).for_each(|word| events::shared().u64(word * 8).store(0, SeqCst));
    (0..2).for_each(|vcpu| events::shared().u64(vcpu * VCPU_INFO_SIZE + 8).store(0, SeqCst));
}

/// States for a vCPU that are nearly possible, and writes of registers that the host is told of.
fn registers(random: &mut Random, calls: u32) -> Verdict {
    for _ in 0..calls {
        let mut context = start_context(1);
        context.mode = random.below(2);
        // Rarely all of it makes sense, and never VMXE (bit 13 of CR4, which is at byte 96 in 64 bits, 48 in 32).
        for word in context.cpu_regs.chunks_exact_mut(8) {
            if random.below(3) == 0 {
                word.copy_from_slice(&random.any().to_le_bytes());
            }
        }
        for at in [49, 97] {
            context.cpu_regs.get_mut(at).into_iter().for_each(|byte| *byte |= 0x20);
        }
        let answer = hypercall::vcpu_op(VcpuOp::INITIALISE.0, 1, &mut context);
        check!(matches!(answer, Err(Errno::EINVAL | Errno::ENOENT)), "a state with VMXE: {answer:?}");
    }
    for _ in 0..100 {
        for (msr, bit) in [(EFER, 0), (EFER, 1), (APIC_BASE, 0)] {
            cpu::wrmsr(msr, cpu::rdmsr(msr) & !u64::from(msr == EFER) | bit);
        }
    }
    println!("states and registers");
    Ok(())
}

/// Every operation with anything. Only what would end this domain by right is left out.
fn anything(random: &mut Random, calls: u32) -> Verdict {
    let mut answers = [0u32; 2];
    for _ in 0..calls {
        let arg = argument(random);
        let answer = match random.below(8) {
            0..4 => event_channel_op(random, arg),
            4..6 => vcpu_op(random, arg),
            _ => sched_op(random, arg),
        };
        let [done, refused] = &mut answers;
        *if answer.is_ok() { done } else { refused } += 1;
    }
    let [done, refused] = answers;
    println!("{done} calls done, {refused} refused");
    check!(refused > calls / 4, "only {refused} of {calls} calls were refused");
    Ok(())
}

/// Where a call finds its argument: most often numbers that mean something.
fn argument(random: &mut Random) -> u64 {
    let page = &SCRATCH[0];
    for at in (0..ARG).step_by(8) {
        let number = random.number();
        let half = random.number() << 32 | number & 0xffff_ffff;
        page.u64(at).store(random.of([number, half]), SeqCst);
    }
    let end = page.addr() + 4096 - 4;
    let address = page.addr();
    random.of([address, address, address, address, address, 0, end, 0x7fff_ffff_f000, u64::MAX])
}

fn event_channel_op(random: &mut Random, arg: u64) -> Result<i64, Errno> {
    let known = random.below(16);
    let unknown = random.any() | 1 << 20;
    let op = random.of([known.into(), known.into(), unknown]);
    let mut arg = arg;
    if [EvtchnOp::INIT_CONTROL, EvtchnOp::EXPAND_ARRAY].contains(&EvtchnOp(known)) {
        // The hypervisor writes there from now on.
        SCRATCH[0].u64(0).store(random.of([CONTROL.gfn(), 0xf_0000, u64::MAX >> 12, 1 << 40]), SeqCst);
        arg = SCRATCH[0].addr();
    }
    hypercall::call(Hypercall::EVENT_CHANNEL_OP, &[op, arg])
}

fn vcpu_op(random: &mut Random, arg: u64) -> Result<i64, Errno> {
    use VcpuOp as Op;
    let op = Op(random.below(17));
    let vcpu = random.of([0, 0, 1, 2, 9999, u32::MAX.into()]);
    let known = vcpu < 8;
    match op {
        // The only other one is let up again, wherever it is.
        Op::DOWN if vcpu == 1 => {
            hypercall::call(Hypercall::VCPU_OP, &[op.0.into(), vcpu])?;
            return hypercall::call(Hypercall::VCPU_OP, &[Op::UP.0.into(), vcpu]);
        }
        Op::DOWN if known => return Err(Errno::EPERM),
        // An NMI would end this test.
        Op::SEND_NMI if known => return hypercall::call(Hypercall::VCPU_OP, &[op.0.into(), vcpu, arg | 1]),
        // The hypervisor writes there from now on.
        Op::REGISTER_VCPU_INFO => {
            let page = random.of([SCRATCH[1].gfn(), u64::MAX, 0xf_0000]);
            SCRATCH[0].u64(0).store(page, SeqCst);
            SCRATCH[0].u64(8).store(random.of([64, 4064, 4090, u64::MAX]), SeqCst);
            // That of vCPU 0 stays where it is.
            return hypercall::call(Hypercall::VCPU_OP, &[op.0.into(), vcpu.max(1), arg]);
        }
        Op::REGISTER_RUNSTATE_MEMORY_AREA
        | Op::REGISTER_VCPU_TIME_MEMORY_AREA
        | Op::REGISTER_RUNSTATE_PHYS_AREA
        | Op::REGISTER_VCPU_TIME_PHYS_AREA => {
            let area = SCRATCH[1].addr();
            let places = [area, area + 3, area + 0xff0, 0, 0x7fff_ffff_f000, u64::MAX, 0xf000_0000];
            SCRATCH[0].u64(0).store(random.of(places), SeqCst);
            return hypercall::call(Hypercall::VCPU_OP, &[op.0.into(), vcpu, SCRATCH[0].addr()]);
        }
        _ => {}
    }
    hypercall::call(Hypercall::VCPU_OP, &[op.0.into(), vcpu, arg])
}

fn sched_op(random: &mut Random, arg: u64) -> Result<i64, Errno> {
    use SchedOp as Op;
    let op = Op(random.below(10));
    match op {
        // It would end, or wait for what nobody sends.
        Op::SHUTDOWN | Op::SHUTDOWN_CODE => {
            return hypercall::call(Hypercall::SCHED_OP, &[op.0.into(), 0x7fff_ffff_f000]);
        }
        Op::BLOCK => return Err(Errno::EPERM),
        // A poll that waits waits until a time long ago.
        Op::POLL => {
            SCRATCH[0].u64(16).store(1, SeqCst);
            let arg = random.of([SCRATCH[0].addr(), SCRATCH[0].addr(), 0x7fff_ffff_f000]);
            return hypercall::call(Hypercall::SCHED_OP, &[op.0.into(), arg]);
        }
        // A day is more than this takes.
        Op::WATCHDOG => {
            let seconds = random.of([0, 86400, 0xffff_ffff]);
            SCRATCH[0].u32(4).store(u32::try_from(seconds).unwrap_or(0), SeqCst);
            return hypercall::call(Hypercall::SCHED_OP, &[op.0.into(), SCRATCH[0].addr()]);
        }
        _ => {}
    }
    hypercall::call(Hypercall::SCHED_OP, &[op.0.into(), arg])
}

/// Where both share one CPU the caller is to have it most of the time.
fn give_way() {
    let _ = hypercall::op_null(Hypercall::SCHED_OP, SchedOp::YIELD.0);
}

/// Words of nonsense while the other one calls.
fn other(_vcpu: u32) {
    let mut random = Random::new(0x1234_5678_9abc_def1);
    loop {
        let scribbles = SCRIBBLES.load(SeqCst);
        RESTS.store(!scribbles, SeqCst);
        if scribbles {
            let own = random.below(1024);
            let word = random.word(own);
            let at = random.below(1024) as usize * 4;
            let [first, second, ..] = &ARRAY;
            match random.below(4) {
                0 => CONTROL.u32(random.below(18) as usize * 4).store(word, SeqCst),
                1 => second.u32(at).store(word, SeqCst),
                _ => first.u32(at).store(word, SeqCst),
            }
            if SCRIBBLED.fetch_add(1, SeqCst).is_multiple_of(64) {
                give_way();
            }
        } else {
            give_way();
        }
    }
}
