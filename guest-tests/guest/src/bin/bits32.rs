//! A guest of 32 bits: every call that has other layouts there, events and their upcalls in both layouts, the clock, and a second vCPU.
//! It stays as PVH starts it, in protected mode without paging.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use guest::events::{
    self, Events, add_to_physmap, bind_ipi, bind_virq, evtchn_op, selector_bit, send, wait_count,
};
use guest::hypercall::{self, Transport, call, grant_table_op, hvm_get_param, op, vcpu_op};
use guest::page::Page;
use guest::{Verdict, acpi, boot, check, check_eq, clock, cpu, fail, fifo, println, smp, traps};
use xen_abi::Errno;
use xen_abi::event_channel::{Close, EvtchnOp, fifo as abi};
use xen_abi::grant_table::{CopyCompat, CopyPtrCompat, GntStatus, GnttabOp, SetupTableCompat};
use xen_abi::hvm::params::HvmParam;
use xen_abi::hypercall::Hypercall;
use xen_abi::memory::{
    AddToPhysmapBatchCompat, MapSpace, MemoryDomain, MemoryMapCompat, MemoryOp, MemoryReservationCompat,
};
use xen_abi::sched::{SchedOp, SchedPollCompat};
use xen_abi::shared_info::{Layout, VCPU_TIME};
use xen_abi::vcpu::{RegisterArea, RunstateInfoCompat, SetSingleshotTimerCompat, VcpuOp};
use xen_abi::version::XenVer;
use xen_abi::xen::{Domid, MulticallEntryCompat, PAGE_SHIFT, Port, Virq, Width};
use zerocopy::FromZeros;
use zerocopy::little_endian::U64;

guest::test!(run, other);

const VECTOR: u8 = 0x40;
const OTHER_VECTOR: u8 = 0x50;
const MS: u64 = 1_000_000;
const LAYOUT: Layout = Layout::of(Width::W32);
/// Bytes that nobody may touch.
const UNTOUCHED: u8 = 0xa5;

static SCRATCH: Page = Page::zero();
static INFO: Page = Page::zero();
static AREAS: Page = Page::zero();
static BALLOON: Page = Page::zero();
static SOURCE: Page = Page::zero();
/// Where the other vCPU sends to.
static TO_US: AtomicU32 = AtomicU32::new(0);
/// The port by which vCPU 0 asks vCPU 1.
static TO_THEM: AtomicU32 = AtomicU32::new(0);

fn run() -> Verdict {
    check_eq!(size_of::<usize>(), 4, "bytes of a word");
    let first = hypercall::transport();
    if first != Transport::Page {
        calls()?;
        println!("calls by {first:?}");
    }
    hypercall::use_page();
    calls()?;
    println!("calls by the page");
    memory()?;
    grants()?;
    let events = Events::init(VECTOR)?;
    upcalls(&events)?;
    polls(&events)?;
    let events = clocks(&events)?;
    timers(&events)?;
    second_vcpu(&events)?;
    if first != Transport::Page {
        hypercall::set(first);
        upcalls(&events)?;
    }
    by_fifo(&events)
}

/// A physical address as a 32-bit argument has it.
fn at(page: &Page) -> u32 {
    u32::try_from(page.addr()).unwrap_or(0)
}

fn gfn(page: &Page) -> u32 {
    at(page) >> PAGE_SHIFT
}

/// Fills the page, makes a call on it, and returns what it answers; from byte `size` on nothing may have changed.
fn on_scratch(nr: Hypercall, cmd: u32, size: usize) -> Result<i64, guest::Stop> {
    SCRATCH.fill(UNTOUCHED);
    let answer = call(nr, &[cmd.into(), SCRATCH.addr()])?;
    let beyond: [u8; 16] = SCRATCH.read(size);
    check_eq!(beyond, [UNTOUCHED; 16], "bytes beyond the {size} of {nr} command {cmd}");
    Ok(answer)
}

fn calls() -> Verdict {
    let version = hypercall::op_null(Hypercall::XEN_VERSION, XenVer::VERSION.0)?;
    check!((4 << 16..5 << 16).contains(&version), "version {version:#x}");
    on_scratch(Hypercall::XEN_VERSION, XenVer::PLATFORM_PARAMETERS.0, 4)?;
    check!(SCRATCH.u32(0).load(SeqCst) >> 24 >= 0xf5, "virt_start {:#x}", SCRATCH.u32(0).load(SeqCst));
    on_scratch(Hypercall::XEN_VERSION, XenVer::CAPABILITIES.0, 1024)?;
    let caps: [u8; 1024] = SCRATCH.read(0);
    check!(caps.windows(10).any(|w| w == b"hvm-3.0-x8"), "capabilities");
    let mut domain = MemoryDomain { domid: Domid::SELF };
    check!(
        op(Hypercall::MEMORY_OP, MemoryOp::CURRENT_RESERVATION.0, &mut domain)? > 0,
        "current_reservation"
    );
    check_eq!(hypercall::op_null(Hypercall::SCHED_OP, SchedOp::YIELD.0), Ok(0), "yield");
    check_eq!(hypercall::console_write(b"32 bits by CONSOLEIO_write\n"), Ok(()), "console_io");
    check!(hvm_get_param(HvmParam::STORE_PFN)? > 0, "HVM_PARAM_STORE_PFN");
    check_eq!(call(Hypercall::VCPU_OP, &[VcpuOp::IS_UP.0.into(), 0, 0]), Ok(1), "is_up");
    check_eq!(call(Hypercall::VM_ASSIST, &[0, 77]), Err(Errno::EINVAL), "vm_assist 77");
    check_eq!(call(Hypercall(60), &[0]), Err(Errno::ENOSYS), "hypercall 60");
    let nowhere = call(Hypercall::MEMORY_OP, &[MemoryOp::CURRENT_RESERVATION.0.into(), 0xf000_0000]);
    check_eq!(nowhere, Err(Errno::EFAULT), "an argument where there is no memory");
    multicall()
}

fn multicall() -> Verdict {
    let mut list = [MulticallEntryCompat::new_zeroed(); 3];
    let [version, virq, unknown] = &mut list;
    version.op = 17;
    let port = bind_virq(Virq::DEBUG, 0)?;
    let mut close = Close { port };
    let [cmd, arg, ..] = &mut virq.args;
    virq.op = 32;
    *cmd = EvtchnOp::CLOSE.0;
    *arg = u32::try_from(hypercall::address(&mut close)).unwrap_or(0);
    unknown.op = 60;
    check_eq!(call(Hypercall::MULTICALL, &[hypercall::address(&mut list), 3]), Ok(0), "multicall");
    let [version, closed, unknown] = list.map(|entry| entry.result);
    check!(version >> 16 == 4, "version by multicall: {version:#x}");
    check_eq!(closed, 0, "close by multicall");
    check_eq!(unknown.cast_signed(), Errno::ENOSYS.neg(), "hypercall 60 by multicall");
    Ok(())
}

fn memory() -> Verdict {
    let mut map = MemoryMapCompat { nr_entries: 64, buffer: at(&SCRATCH) };
    op(Hypercall::MEMORY_OP, MemoryOp::MEMORY_MAP.0, &mut map)?;
    check_eq!(map.nr_entries as usize, boot::memmap().count(), "entries of the memory map");
    for (index, wanted) in boot::memmap().enumerate() {
        let [lo, hi]: [u32; 2] = SCRATCH.read(20 * index);
        check_eq!(u64::from(hi) << 32 | u64::from(lo), wanted.addr, "entry {index} of the memory map");
    }
    BALLOON.fill(1);
    SCRATCH.u32(0).store(gfn(&BALLOON), SeqCst);
    let given = || {
        let mut domain = MemoryDomain { domid: Domid::SELF };
        op(Hypercall::MEMORY_OP, MemoryOp::CURRENT_RESERVATION.0, &mut domain)
    };
    let before = given()?;
    for (what, command, pages) in [
        ("decrease", MemoryOp::DECREASE_RESERVATION, before - 1),
        ("populate", MemoryOp::POPULATE_PHYSMAP, before),
    ] {
        let mut pages_of = MemoryReservationCompat {
            extent_start: at(&SCRATCH),
            nr_extents: 1,
            domid: Domid::SELF,
            ..MemoryReservationCompat::new_zeroed()
        };
        check_eq!(op(Hypercall::MEMORY_OP, command.0, &mut pages_of), Ok(1), "{what}: extents");
        check_eq!(given()?, pages, "{what}: pages");
    }
    check_eq!(BALLOON.read::<[u8; 64]>(0), [0; 64], "a page that was given back and taken");
    Ok(())
}

fn grants() -> Verdict {
    SCRATCH.fill(UNTOUCHED);
    let mut table = SetupTableCompat {
        dom: Domid::SELF,
        pad0: 0,
        nr_frames: 2,
        status: GntStatus::GENERAL_ERROR,
        pad1: 0,
        frame_list: at(&SCRATCH),
    };
    grant_table_op(GnttabOp::SETUP_TABLE.0, &mut table)?;
    check_eq!(table.status, GntStatus::OKAY, "setup_table");
    let untouched = u32::from_ne_bytes([UNTOUCHED; 4]);
    let [a, b, c]: [u32; 3] = SCRATCH.read(0);
    check!(a != untouched && b != untouched && c == untouched, "frames {a:#x} {b:#x} and beyond {c:#x}");

    let Some(hole) = boot::hole_gfn(3) else { fail!("no hole below 4 GiB") };
    SCRATCH.fill(UNTOUCHED);
    SCRATCH.write(0, &[0u32, u32::try_from(hole).unwrap_or(0), 77]);
    let mut batch = AddToPhysmapBatchCompat {
        domid: Domid::SELF,
        space: 1,
        size: 1,
        foreign_domid: Domid(0),
        idxs: at(&SCRATCH),
        gpfns: at(&SCRATCH) + 4,
        errs: at(&SCRATCH) + 8,
    };
    op(Hypercall::MEMORY_OP, MemoryOp::ADD_TO_PHYSMAP_BATCH.0, &mut batch)?;
    check_eq!(SCRATCH.read::<[u32; 2]>(8), [0, untouched], "error of the batch, and what is behind it");
    let console = Page::at(hole << PAGE_SHIFT).u32(4).load(SeqCst);
    check_eq!(u64::from(console), hvm_get_param(HvmParam::CONSOLE_PFN)?, "frame of the console's grant");
    events::remove_from_physmap(hole)?;
    add_to_physmap(MapSpace::GRANT_TABLE, 0, hole)?;

    SOURCE.write(0, b"copied by 32 bits");
    let page = |page, offset| CopyPtrCompat { u: gfn(page), domid: Domid::SELF, offset };
    let mut copy = CopyCompat {
        source: page(&SOURCE, 0),
        dest: page(&SCRATCH, 0x80),
        len: 17,
        flags: 0,
        status: GntStatus::GENERAL_ERROR,
        pad: 0,
    };
    grant_table_op(GnttabOp::COPY.0, &mut copy)?;
    check_eq!(copy.status, GntStatus::OKAY, "copy");
    check_eq!(SCRATCH.read::<[u8; 18]>(0x80), *b"copied by 32 bits\xa5", "what was copied");
    println!("memory and grants");
    Ok(())
}

/// Every port there is, and upcalls by some; a word of events has 32 bits.
fn upcalls(events: &Events) -> Verdict {
    let mut last = bind_ipi(0)?;
    let first = last;
    loop {
        match bind_ipi(0) {
            Ok(port) => last = port,
            Err(Errno::ENOSPC) => break,
            Err(e) => fail!("binding a port behind {last}: {e}"),
        }
    }
    check_eq!(last, Port(1023), "the last port");
    for round in 0..50 {
        for port in [first, Port(first.0 + 32), Port(500), last] {
            events.clear_mask(port);
            let before = traps::count(VECTOR);
            send(port)?;
            check!(wait_count(VECTOR, before + 1), "round {round}: no upcall of port {port}");
            check_eq!(events.take_selector(), selector_bit(port), "round {round}: selector of port {port}");
            check!(events.clear_pending(port), "round {round}: port {port} is not pending");
            events.mask(port);
            send(port)?;
            check_eq!((events.upcall_pending(), events.selector()), (0, 0), "behind the mask of port {port}");
            events::unmask(port)?;
            check!(wait_count(VECTOR, before + 2), "round {round}: no upcall after unmasking port {port}");
            check_eq!(events.take_selector(), selector_bit(port), "round {round}: unmasked port {port}");
            events.clear_pending(port);
        }
    }
    for port in first.0..=last.0 {
        evtchn_op(EvtchnOp::CLOSE, &mut Close { port: Port(port) })?;
    }
    println!("ports {first} to {last}, 400 upcalls");
    Ok(())
}

fn polls(events: &Events) -> Verdict {
    let now = || clock::now(events.shared, VCPU_TIME).unwrap_or(0);
    let port = bind_ipi(0)?;
    events.mask(port);
    SCRATCH.u32(0).store(port.0, SeqCst);
    let poll = |timeout| {
        let mut arg = SchedPollCompat { ports: at(&SCRATCH), nr_ports: 1, timeout };
        op(Hypercall::SCHED_OP, SchedOp::POLL.0, &mut arg)
    };
    let until = now() + 5 * MS;
    while now() < until {
        check_eq!(poll(until), Ok(0), "a poll until a time");
    }
    send(port)?;
    check_eq!(poll(0), Ok(0), "a poll of a pending port");
    check!(events.clear_pending(port), "the polled port is not pending");
    Ok(evtchn_op(EvtchnOp::CLOSE, &mut Close { port }).map(drop)?)
}

/// The clocks, and where vcpu_info is afterwards.
fn clocks(events: &Events) -> Result<Events, guest::Stop> {
    let word = |at: usize| u64::from(events.shared.u32(at).load(SeqCst));
    let seconds = word(LAYOUT.wc_sec_hi) << 32 | word(LAYOUT.wc_version + 4);
    let (version, nsec) = (word(LAYOUT.wc_version), word(LAYOUT.wc_version + 8));
    check!(version.is_multiple_of(2) && nsec < 1_000_000_000, "wall clock version {version}, {nsec} ns");
    check!((1_704_067_200..4_102_444_800).contains(&seconds), "wall clock of {seconds} s");

    let before = clock::now(events.shared, VCPU_TIME);
    // At a multiple of 4, which is no multiple of 8.
    let upcalls = traps::count(VECTOR);
    let moved = events.register(0, &INFO, 0x104)?;
    // So that none is lost everything counts as pending in the new place.
    check!(wait_count(VECTOR, upcalls + 1), "no upcall after vcpu_info moved");
    check_eq!(moved.take_selector(), u32::MAX.into(), "selector after vcpu_info moved");
    let now = || clock::now(&INFO, 0x104 + VCPU_TIME).unwrap_or(0);
    check!(Some(now()) >= before, "time went back when vcpu_info moved");

    // A caller of 32 bits leaves the upper half of a virtual address as it was.
    AREAS.fill(UNTOUCHED);
    let area = |offset: u64| RegisterArea { addr: (0xdead_beef << 32) + AREAS.addr() + offset };
    vcpu_op(VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA.0, 0, &mut area(0x104))?;
    vcpu_op(VcpuOp::REGISTER_VCPU_TIME_MEMORY_AREA.0, 0, &mut area(0x200))?;
    let later = now() + 20 * MS;
    while now() < later {
        hypercall::op_null(Hypercall::SCHED_OP, SchedOp::YIELD.0)?;
    }
    let size = size_of::<RunstateInfoCompat>();
    let runstate: RunstateInfoCompat = AREAS.read(0x104);
    let sum = |times: [U64; 4]| times.iter().map(|t| t.get()).sum::<u64>();
    check_eq!(runstate.state.0, 0, "the running vCPU's state");
    check_eq!(AREAS.read::<[u8; 16]>(0x104 + size), [UNTOUCHED; 16], "bytes behind the runstate");
    check!(sum(runstate.time).abs_diff(later) < 1000 * MS, "times of {} ns at {later}", sum(runstate.time));
    let Some(copy) = clock::snapshot(&AREAS, 0x200) else {
        fail!("the second clock is always being written")
    };
    check!(clock::system_time(&copy, cpu::rdtsc()).abs_diff(now()) < MS, "the second clock differs");

    SCRATCH.fill(UNTOUCHED);
    call(Hypercall::VCPU_OP, &[VcpuOp::GET_RUNSTATE_INFO.0.into(), 0, SCRATCH.addr()])?;
    let asked: RunstateInfoCompat = SCRATCH.read(0);
    check!(sum(asked.time).abs_diff(now()) < 1000 * MS, "times of {} ns when asked", sum(asked.time));
    check_eq!(
        SCRATCH.read::<[u8; 16]>(size),
        [UNTOUCHED; 16],
        "bytes behind the runstate that was asked for"
    );
    println!("clocks and runstate");
    Ok(moved)
}

fn timers(events: &Events) -> Verdict {
    let now = || clock::now(events.info, events.offset + VCPU_TIME).unwrap_or(0);
    let port = bind_virq(Virq::TIMER, 0)?;
    events.clear_mask(port);
    let by_vcpu_op = |timeout| {
        let mut arg = SetSingleshotTimerCompat { timeout_abs_ns: U64::new(timeout), flags: 0 };
        vcpu_op(VcpuOp::SET_SINGLESHOT_TIMER.0, 0, &mut arg)
    };
    // The 64 bits of the time come in two registers.
    let by_timer_op = |timeout: u64| call(Hypercall::SET_TIMER_OP, &[timeout & 0xffff_ffff, timeout >> 32]);
    for round in 0..20 {
        let (before, target) = (traps::count(VECTOR), now() + MS);
        check_eq!(
            if round % 2 == 0 { by_vcpu_op(target) } else { by_timer_op(target) },
            Ok(0),
            "setting a timer"
        );
        check!(wait_count(VECTOR, before + 1), "round {round}: the timer does not fire");
        check!(now() >= target, "round {round}: the timer fires early");
        check_eq!(events.take_selector(), selector_bit(port), "round {round}: selector of the timer");
        check!(events.clear_pending(port), "round {round}: VIRQ_TIMER is not pending");
    }
    println!("20 timers");
    Ok(evtchn_op(EvtchnOp::CLOSE, &mut Close { port }).map(drop)?)
}

/// A second vCPU in 32 bits too, and events both ways.
fn second_vcpu(events: &Events) -> Verdict {
    if acpi::cpus().count() < 2 {
        return Ok(());
    }
    let theirs = events.register(1, &INFO, 0x40)?;
    theirs.set_vector(OTHER_VECTOR)?;
    let (to_us, to_them) = (bind_ipi(0)?, bind_ipi(1)?);
    TO_US.store(to_us.0, SeqCst);
    TO_THEM.store(to_them.0, SeqCst);
    smp::start_vcpu(1)?;
    for port in [to_us, to_them] {
        events.clear_mask(port);
    }
    for round in 1..=50 {
        let before = traps::count(VECTOR);
        send(to_them)?;
        check!(wait_count(VECTOR, before + 1), "round {round}: no answer of vCPU 1");
        check_eq!(events.take_selector(), selector_bit(to_us), "round {round}: selector of vCPU 0");
        check!(events.clear_pending(to_us), "round {round}: the answer is not pending");
    }
    println!("50 events both ways");
    Ok(())
}

/// FIFO, where the domain has it: the same words as with 64 bits.
fn by_fifo(events: &Events) -> Verdict {
    match fifo::init_control(0) {
        Err(Errno::ENOSYS) => {
            println!("no FIFO here");
            return Ok(());
        }
        bits => check_eq!(bits?, abi::LINK_BITS, "link bits"),
    }
    fifo::expand_array(1024)?;
    let ports = [bind_ipi(0)?, bind_ipi(0)?, bind_ipi(0)?];
    let [low, middle, high] = ports;
    fifo::set_priority(low, abi::PRIORITY_MIN)?;
    fifo::set_priority(high, abi::PRIORITY_MAX)?;
    for port in ports {
        fifo::unmask(port)?;
    }
    for round in 1..=50 {
        let before = traps::count(VECTOR);
        for port in ports {
            send(port)?;
        }
        check!(wait_count(VECTOR, before + 1), "round {round}: no upcall with FIFO");
        events.take_selector();
        let (mut taken, mut count) = ([Port(0); 3], 0);
        fifo::take(0, |port| {
            if let Some(place) = taken.get_mut(count) {
                *place = port;
            }
            count += 1;
        });
        check_eq!((taken, count), ([high, middle, low], 3), "round {round}: events with FIFO");
    }
    println!("50 rounds with FIFO");
    Ok(())
}

fn other(_vcpu: u32) {
    let theirs = Events { shared: events::shared(), info: &INFO, offset: 0x40, vcpu: 1 };
    loop {
        let before = traps::count(OTHER_VECTOR);
        while traps::count(OTHER_VECTOR) == before {
            cpu::wait_interrupt();
        }
        theirs.take_selector();
        // The first upcall is for its new vcpu_info, and no question.
        if theirs.clear_pending(Port(TO_THEM.load(SeqCst))) {
            let _ = send(Port(TO_US.load(SeqCst)));
        }
    }
}
