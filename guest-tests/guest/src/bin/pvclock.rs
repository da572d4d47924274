//! The clock: valid as soon as the shared info page is mapped, monotonic, and the wall clock sane. With `paused` on the command line
//! it runs until the host has paused the domain for two seconds, in which the clock must stand still, and has then had its own set an hour
//! ahead, which the wall clock has to follow.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use guest::events::{Events, bind_virq};
use guest::hypercall::vcpu_op;
use guest::page::Page;
use guest::{Verdict, boot, check, check_eq, clock, cpu, fail, println, smp, xen};
use xen_abi::cpuid::LEAF_TIME;
use xen_abi::shared_info::{Layout, VCPU_TIME, XEN_PVCLOCK_TSC_STABLE_BIT};
use xen_abi::vcpu::{RegisterArea, SetSingleshotTimer, VcpuOp};
use xen_abi::xen::{Virq, Width};

guest::test!(run);

static INFO: Page = Page::zero();
static COPY: Page = Page::zero();
const INFO_OFFSET: usize = 0x340;
const COPY_OFFSET: usize = 0x80;
/// 2024-01-01 and 2100-01-01.
const YEARS: core::ops::Range<u64> = 1_704_067_200..4_102_444_800;

fn run() -> Verdict {
    let events = Events::map()?;
    check_clock(events.shared, VCPU_TIME, "in the shared info page")?;
    wall_clock(events.shared)?;

    let before = clock::now(events.shared, VCPU_TIME);
    events.register(0, &INFO, INFO_OFFSET)?;
    check_clock(&INFO, INFO_OFFSET + VCPU_TIME, "where it was registered")?;
    check!(clock::now(&INFO, INFO_OFFSET + VCPU_TIME) >= before, "time went back when vcpu_info moved");
    check!(events.register(0, &COPY, 0).is_err(), "vcpu_info was registered twice");
    let across = events.register(1 << 20, &COPY, 0);
    check!(across.is_err(), "vcpu_info of a vCPU that is not there: registered");
    monotonic()?;
    second_copy()?;
    if boot::Words::read().has("paused") { paused(&events) } else { Ok(()) }
}

/// The TSC goes on while the domain is paused, system time does not; the wall clock does.
fn paused(events: &Events) -> Verdict {
    let shared = events.shared;
    let [_, _, khz, _] = xen::leaf(LEAF_TIME, 0);
    let second = u64::from(khz) * 1000;
    let read = || {
        let tsc = cpu::rdtsc();
        (tsc, clock::now(&INFO, INFO_OFFSET + VCPU_TIME).unwrap_or(0))
    };
    let boot_time = || shared.u32(Layout::of(Width::W64).wc_version + 4).load(Ordering::SeqCst);
    let copied = || clock::now(&COPY, COPY_OFFSET).unwrap_or(0);
    let ((first_tsc, first), booted) = (read(), boot_time());
    let (mut last, mut last_copied) = (first, copied());
    let timer = bind_virq(Virq::TIMER, 0)?;
    let expired = || events.is_pending(timer);
    let mut deadline = u64::MAX;
    println!("to be paused");
    loop {
        let (tsc, now) = read();
        check!(!expired() || now >= deadline, "at {now} a timer has run out that was set to {deadline}");
        check!(now >= last, "time went back from {last} to {now}");
        let copy = copied();
        check!(copy + 1_000_000 >= last_copied, "the second clock went back from {last_copied} to {copy}");
        (last, last_copied) = (now, copy);
        let by_tsc = u128::from(tsc - first_tsc) * 1_000_000_000 / u128::from(second);
        let behind = by_tsc.saturating_sub(u128::from(now - first));
        if behind >= 2_000_000_000 {
            println!("the clock stood still for {behind} ns");
            check!(copy == 0 || copy.abs_diff(now) < 100_000_000, "the second clock is at {copy}, not {now}");
            let later = boot_time().wrapping_sub(booted);
            check!((1..60).contains(&later), "the wall clock of system time 0 has moved by {later} s");
            check!(smp::spin_until(expired), "the timer set to {deadline} does not run out");
            check!(read().1 >= deadline, "the timer set to {deadline} runs out early");
            let booted = boot_time();
            println!("an hour is to pass");
            let an_hour = || (3500..3700).contains(&boot_time().wrapping_sub(booted));
            check!(
                smp::spin_until(an_hour),
                "the wall clock of system time 0 was {booted} and is {}",
                boot_time()
            );
            let after = read().1;
            check!(after - last < 1_000_000_000_000, "system time went on from {last} to {after}");
            return Ok(());
        }
        // Always half a second ahead, and less than the pause.
        if !expired() {
            deadline = now + 500_000_000;
            let mut timer = SetSingleshotTimer { timeout_abs_ns: deadline, flags: 0, pad: 0 };
            check_eq!(vcpu_op(VcpuOp::SET_SINGLESHOT_TIMER.0, 0, &mut timer), Ok(0), "set_singleshot_timer");
        }
    }
}

fn check_clock(page: &'static Page, offset: usize, place: &str) -> Verdict {
    let Some(info) = clock::snapshot(page, offset) else {
        fail!("the clock {place} is always being written")
    };
    println!(
        "clock {place}: version {}, mul {:#x}, shift {}, flags {:#x}, {} ns",
        info.version, info.tsc_to_system_mul, info.tsc_shift, info.flags, info.system_time
    );
    check!(info.version > 0 && info.version.is_multiple_of(2), "version {} {place}", info.version);
    check!(info.tsc_to_system_mul != 0, "the clock {place} does not run");
    check!(info.tsc_timestamp <= cpu::rdtsc(), "tsc_timestamp {place} is in the future");
    let [_, _, khz, _] = xen::leaf(LEAF_TIME, 0);
    // ns in a second's worth of ticks, by the frequency that CPUID tells: within 1 %.
    let ticks = u64::from(khz) * 1000;
    let second = clock::system_time(&info, info.tsc_timestamp + ticks) - info.system_time;
    check!((990_000_000..1_010_000_000).contains(&second), "{khz} kHz make {second} ns of a second {place}");
    Ok(())
}

fn wall_clock(shared: &'static Page) -> Verdict {
    let layout = Layout::of(Width::W64);
    let word = |at: usize| u64::from(shared.u32(at).load(Ordering::SeqCst));
    let (version, sec, nsec) =
        (word(layout.wc_version), word(layout.wc_version + 4), word(layout.wc_version + 8));
    let boot = word(layout.wc_sec_hi) << 32 | sec;
    println!("wall clock: {boot}.{nsec:09} at system time 0, version {version}");
    check!(version.is_multiple_of(2), "wc_version {version}");
    check!(nsec < 1_000_000_000, "wc_nsec {nsec}");
    let now = boot + clock::now(shared, VCPU_TIME).unwrap_or(0) / 1_000_000_000;
    check!(YEARS.contains(&now), "Unix time {now}");
    Ok(())
}

fn monotonic() -> Verdict {
    let read = || clock::now(&INFO, INFO_OFFSET + VCPU_TIME).unwrap_or(0);
    let first = read();
    let mut last = first;
    for i in 0..100_000 {
        let now = read();
        check!(now >= last, "time went back from {last} to {now} at reading {i}");
        last = now;
    }
    check!(last > first, "time stood still at {first}");
    println!("100000 readings took {} ns", last - first);
    Ok(())
}

fn second_copy() -> Verdict {
    let mut area = RegisterArea { addr: COPY.addr() + COPY_OFFSET as u64 };
    if let Err(e) = vcpu_op(VcpuOp::REGISTER_VCPU_TIME_MEMORY_AREA.0, 0, &mut area) {
        println!("no second copy of the clock: {e}");
        return Ok(());
    }
    let Some(copy) = clock::snapshot(&COPY, COPY_OFFSET) else {
        fail!("the second clock is always being written")
    };
    let Some(info) = clock::snapshot(&INFO, INFO_OFFSET + VCPU_TIME) else {
        fail!("the clock is being written")
    };
    check!(copy.tsc_to_system_mul != 0, "the second clock does not run");
    check_eq!(
        copy.flags & XEN_PVCLOCK_TSC_STABLE_BIT,
        info.flags & XEN_PVCLOCK_TSC_STABLE_BIT,
        "stable flag"
    );
    let tsc = cpu::rdtsc();
    let (a, b) = (clock::system_time(&copy, tsc), clock::system_time(&info, tsc));
    check!(a.abs_diff(b) < 1_000_000, "the two clocks are {} ns apart", a.abs_diff(b));
    Ok(())
}
