//! What the hypervisor keeps up to date in areas that a guest registers: the runstate of a vCPU and a further copy of its clock, by
//! virtual and by physical address, with the flag that tells of an update and without.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::mem::offset_of;
use core::sync::atomic::Ordering::SeqCst;
use guest::events::Events;
use guest::hypercall::{self, vcpu_op};
use guest::page::Page;
use guest::{Stop, Verdict, boot, check, check_eq, clock, cpu, fail, println};
use xen_abi::Errno;
use xen_abi::hypercall::Hypercall;
use xen_abi::sched::SchedOp;
use xen_abi::shared_info::{VCPU_TIME, VcpuTimeInfo, XEN_PVCLOCK_TSC_STABLE_BIT};
use xen_abi::vcpu::{RegisterArea, Runstate, RunstateInfo, VcpuOp, XEN_RUNSTATE_UPDATE};
use xen_abi::xen::{VmAssistCmd, VmAssistType};

guest::test!(run);

static AREA: Page = Page::zero();
static CLOCK: Page = Page::zero();
static ASKED: Page = Page::zero();
static PAIR: [Page; 2] = [const { Page::zero() }; 2];
const AT: usize = 0x108;
const SIZE: usize = size_of::<RunstateInfo>();
/// Bytes that nobody may touch.
const UNTOUCHED: u8 = 0xa5;
const MS: u64 = 1_000_000;
/// How far the clocks may be apart that the times are told by.
const SLACK: u64 = 50 * MS;
/// No area by physical address.
const NOWHERE: u64 = u64::MAX;

fn register(op: VcpuOp, addr: u64) -> Result<i64, Errno> {
    vcpu_op(op.0, 0, &mut RegisterArea { addr })
}

fn run() -> Verdict {
    let events = Events::map()?;
    let now = || clock::now(events.shared, VCPU_TIME).unwrap_or(0);
    refused()?;
    for (op, none) in
        [(VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA, 0), (VcpuOp::REGISTER_RUNSTATE_PHYS_AREA, NOWHERE)]
    {
        for assist in [VmAssistCmd::DISABLE, VmAssistCmd::ENABLE] {
            let flag = VmAssistType::RUNSTATE_UPDATE_FLAG.0;
            // -EINVAL from KVM before Linux 6.2, which the lab's is not.
            let answer = hypercall::call(Hypercall::VM_ASSIST, &[assist.0.into(), flag.into()]);
            check_eq!(answer, Ok(0), "vm_assist");
            AREA.fill(UNTOUCHED);
            check_eq!(register(op, AREA.addr() + AT as u64), Ok(0), "{op}");
            kept(now)?;
            check_eq!(register(op, none), Ok(0), "{op} of no area");
            AREA.fill(UNTOUCHED);
            pass(now, 20)?;
            check_eq!(AREA.read::<[u8; SIZE]>(AT), [UNTOUCHED; SIZE], "an area that is registered no longer");
        }
        println!("runstate by {op}");
    }
    asked(now)?;
    second_clock(&events)?;
    across_pages()
}

fn refused() -> Verdict {
    use VcpuOp as Op;
    let Some(hole) = boot::hole_gfn(2) else { fail!("no hole below 4 GiB") };
    for (op, addr, want) in [
        (Op::REGISTER_RUNSTATE_PHYS_AREA, AREA.addr() + 0xff0, Errno::ENXIO),
        (Op::REGISTER_RUNSTATE_PHYS_AREA, AREA.addr() + 4, Errno::ENXIO),
        (Op::REGISTER_RUNSTATE_PHYS_AREA, hole << 12, Errno::EINVAL),
        (Op::REGISTER_VCPU_TIME_PHYS_AREA, CLOCK.addr() + 0xff0, Errno::ENXIO),
        (Op::REGISTER_VCPU_TIME_PHYS_AREA, hole << 12, Errno::EINVAL),
    ] {
        check_eq!(register(op, addr), Err(want), "{op} at {addr:#x}");
    }
    // By virtual address nobody looks before there is something to be written.
    for op in [Op::REGISTER_RUNSTATE_MEMORY_AREA, Op::REGISTER_VCPU_TIME_MEMORY_AREA] {
        for addr in [0x7fff_ffff_f000, 0] {
            let answer = register(op, addr);
            let uneven = op == Op::REGISTER_VCPU_TIME_MEMORY_AREA && answer == Err(Errno::ENOSYS);
            check!(answer == Ok(0) || uneven, "{op} at {addr:#x}: {answer:?}");
        }
    }
    let mut area = RegisterArea { addr: AREA.addr() };
    let absent = vcpu_op(VcpuOp::REGISTER_RUNSTATE_PHYS_AREA.0, 9999, &mut area);
    check_eq!(absent, Err(Errno::ENOENT), "the runstate of vCPU 9999");
    Ok(())
}

/// Lets some time go by, in which the host looks after the vCPU.
fn pass(now: impl Fn() -> u64, ms: u64) -> Result<(), Stop> {
    let until = now() + ms * MS;
    while now() < until {
        hypercall::op_null(Hypercall::SCHED_OP, SchedOp::YIELD.0)?;
    }
    Ok(())
}

/// It is written when it is registered, and goes on with the time, but nothing behind it is.
fn kept(now: impl Fn() -> u64) -> Verdict {
    let first = whole(&now)?;
    for _ in 0..100 {
        pass(&now, 20)?;
        let later = whole(&now)?;
        if later > first {
            check_eq!(AREA.read::<[u8; 16]>(AT + SIZE), [UNTOUCHED; 16], "bytes behind the runstate");
            return Ok(());
        }
    }
    fail!("the times stay at {first} ns")
}

/// The sum of the times of the running vCPU, and when its state began.
fn whole(now: impl Fn() -> u64) -> Result<u64, Stop> {
    let info: RunstateInfo = AREA.read(AT);
    check_eq!(info.state, Runstate::RUNNING, "state");
    check_eq!(info.state_entry_time & XEN_RUNSTATE_UPDATE, 0, "an update under way while the vCPU runs");
    check!(
        info.state_entry_time <= now() + SLACK,
        "the state began in the future, at {} ns",
        info.state_entry_time
    );
    let sum: u64 = info.time.iter().sum();
    check!(sum <= now() + SLACK, "times of {sum} ns");
    Ok(sum)
}

/// The times go up to now, also of a vCPU that has run for long without a word.
fn asked(now: impl Fn() -> u64) -> Verdict {
    for round in 0..10 {
        let until = now() + round * 40 * MS;
        while now() < until {
            cpu::pause();
        }
        ASKED.fill(UNTOUCHED);
        let op = VcpuOp::GET_RUNSTATE_INFO.0.into();
        let before = now();
        check_eq!(hypercall::call(Hypercall::VCPU_OP, &[op, 0, ASKED.addr()]), Ok(0), "get_runstate_info");
        let after = now();
        let info: RunstateInfo = ASKED.read(0);
        let sum: u64 = info.time.iter().sum();
        let range = before.saturating_sub(SLACK)..=after + SLACK;
        check!(range.contains(&sum), "times of {sum} ns when asked between {before} and {after}");
        check_eq!(info.state, Runstate::RUNNING, "state when asked");
        check_eq!(ASKED.read::<[u8; 16]>(SIZE), [UNTOUCHED; 16], "bytes behind what was asked for");
    }
    Ok(())
}

/// Of the two ways to a second clock each takes the place of the other.
fn second_clock(events: &Events) -> Verdict {
    for (op, offset, none) in [
        (VcpuOp::REGISTER_VCPU_TIME_MEMORY_AREA, 0x40, 0),
        (VcpuOp::REGISTER_VCPU_TIME_PHYS_AREA, 0x840, NOWHERE),
    ] {
        match register(op, CLOCK.addr() + offset) {
            // Only of a clock that does not run evenly there is none, on the portable backend.
            Err(Errno::ENOSYS) => {
                let Some(first) = clock::snapshot(events.shared, VCPU_TIME) else {
                    fail!("the clock is always being written")
                };
                let even = first.flags & XEN_PVCLOCK_TSC_STABLE_BIT;
                check_eq!(even, 0, "{op} answers -ENOSYS: the flag of a clock that runs evenly");
                continue;
            }
            answer => check_eq!(answer, Ok(0), "{op}"),
        }
        let offset = usize::try_from(offset).unwrap_or(0);
        for _ in 0..50 {
            hypercall::op_null(Hypercall::SCHED_OP, SchedOp::YIELD.0)?;
            let (Some(copy), Some(first)) =
                (clock::snapshot(&CLOCK, offset), clock::snapshot(events.shared, VCPU_TIME))
            else {
                fail!("a clock is always being written")
            };
            let tsc = cpu::rdtsc();
            let (a, b) = (clock::system_time(&copy, tsc), clock::system_time(&first, tsc));
            check!(copy.tsc_to_system_mul != 0, "the clock by {op} does not run");
            check!(a.abs_diff(b) < MS, "the clock by {op} is {} ns off", a.abs_diff(b));
        }
        check_eq!(register(op, none), Ok(0), "{op} of no area");
        println!("a second clock by {op}");
    }
    Ok(())
}

/// A second clock may cross a page, but where KVM keeps it.
fn across_pages() -> Verdict {
    let [first, last] = &PAIR;
    let op = VcpuOp::REGISTER_VCPU_TIME_MEMORY_AREA;
    let answer = register(op, first.addr() + 0xff0);
    if answer == Err(Errno::ENOSYS) {
        println!("no second clock across a page");
        return Ok(());
    }
    check_eq!(answer, Ok(0), "a second clock across a page");
    let version = first.u32(0xff0 + offset_of!(VcpuTimeInfo, version)).load(SeqCst);
    let scale = last.u32(offset_of!(VcpuTimeInfo, tsc_to_system_mul) - 16).load(SeqCst);
    check!(version != 0 && version.is_multiple_of(2), "version {version} of a second clock across a page");
    check!(scale != 0, "a second clock across a page does not run");
    check_eq!(register(op, 0), Ok(0), "no second clock");
    println!("a second clock across a page");
    Ok(())
}
