//! vCPUs started by `VCPUOP_initialise` and `VCPUOP_up`, taken down and up again.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use guest::hypercall::vcpu_op;
use guest::smp::{self, spin_until, start_context, start_vcpu};
use guest::{Verdict, acpi, check, check_eq, cpu, println, skip};
use xen_abi::Errno;
use xen_abi::vcpu::{VcpuHvmContext, VcpuOp};

guest::test!(run, other);

/// How far the other vCPU has come.
static STEP: AtomicU32 = AtomicU32::new(0);
/// How far it may go.
static ALLOWED: AtomicU32 = AtomicU32::new(0);
/// As far as hypercalls without end.
const CALLS: u32 = u32::MAX;
/// A result that was not the one expected, and 1000.
static WRONG: AtomicI64 = AtomicI64::new(0);

/// A call of which the number, which would be its result if that were lost, is none of its results.
fn call_for_ever() {
    loop {
        let up = is_up(0).unwrap_or(-1);
        if up != 1 {
            WRONG.store(up + 1000, Ordering::SeqCst);
        }
        STEP.fetch_add(1, Ordering::SeqCst);
    }
}

fn is_up(vcpu: u32) -> Result<i64, Errno> {
    smp::vcpu_op(VcpuOp::IS_UP, vcpu)
}

fn initialise(vcpu: u32, mut context: VcpuHvmContext) -> Result<i64, Errno> {
    vcpu_op(VcpuOp::INITIALISE.0, vcpu, &mut context)
}

fn run() -> Verdict {
    if acpi::cpus().count() < 2 {
        skip!("needs 2 vCPUs");
    }
    check_eq!(is_up(0), Ok(1), "is_up of vCPU 0");
    check_eq!(is_up(1), Ok(0), "is_up of vCPU 1");
    check_eq!(is_up(100), Err(Errno::ENOENT), "is_up of a vCPU that does not exist");
    check_eq!(smp::vcpu_op(VcpuOp::UP, 1), Err(Errno::EINVAL), "up without registers");
    let good = start_context(1);
    for (what, context) in [
        ("an unknown mode", VcpuHvmContext { mode: 2, ..good }),
        ("padding", VcpuHvmContext { pad: 1, ..good }),
        ("no paging", VcpuHvmContext { cpu_regs: [0; 120], ..good }),
        ("null segments", VcpuHvmContext { mode: 0, cpu_regs: [0; 120], ..good }),
    ] {
        check_eq!(initialise(1, context), Err(Errno::EINVAL), "initialise with {what}");
    }
    check_eq!(initialise(0, good), Err(Errno::EEXIST), "initialise of a running vCPU");
    start_vcpu(1)?;
    check_eq!(initialise(1, good), Err(Errno::EEXIST), "initialise twice");
    check!(spin_until(|| STEP.load(Ordering::SeqCst) == 1), "vCPU 1 does not start");
    check_eq!(is_up(1), Ok(1), "is_up of the started vCPU");
    println!("vCPU 1 runs");

    for round in 1..=20 {
        // It takes itself down, and goes on behind the call when it is let up.
        ALLOWED.store(round, Ordering::SeqCst);
        check!(spin_until(|| is_up(1) == Ok(0)), "round {round}: vCPU 1 does not go down");
        check_eq!(STEP.load(Ordering::SeqCst), round, "steps before round {round}");
        check_eq!(smp::vcpu_op(VcpuOp::UP, 1), Ok(0), "up");
        check!(
            spin_until(|| STEP.load(Ordering::SeqCst) == round + 1),
            "round {round}: vCPU 1 does not go on"
        );
    }
    println!("20 times down and up");
    // From outside, in the middle of its work, which is hypercalls from here on: each has its result.
    ALLOWED.store(CALLS, Ordering::SeqCst);
    for round in 0..200 {
        let before = STEP.load(Ordering::SeqCst);
        check!(spin_until(|| STEP.load(Ordering::SeqCst) > before + 2), "round {round}: vCPU 1 stands still");
        check_eq!(smp::vcpu_op(VcpuOp::DOWN, 1), Ok(0), "down");
        check_eq!(is_up(1), Ok(0), "is_up of a vCPU that was taken down");
        check_eq!(smp::vcpu_op(VcpuOp::UP, 1), Ok(0), "up");
    }
    check_eq!(WRONG.load(Ordering::SeqCst), 0, "a result of a call (+ 1000) during which it was taken down");
    println!("200 times down and up from outside");
    check_eq!(smp::vcpu_op(VcpuOp::DOWN, 1), Ok(0), "down");
    // The call that it was in may end.
    cpu_pauses(1000);
    let steps = STEP.load(Ordering::SeqCst);
    for _ in 0..1000 {
        check_eq!(STEP.load(Ordering::SeqCst), steps, "steps of a vCPU that is down");
        cpu_pauses(1000);
    }
    Ok(())
}

fn cpu_pauses(count: u32) {
    for _ in 0..count {
        cpu::pause();
    }
}

fn other(vcpu: u32) {
    loop {
        let step = STEP.fetch_add(1, Ordering::SeqCst) + 1;
        if !spin_until(|| ALLOWED.load(Ordering::SeqCst) >= step) {
            return;
        }
        if ALLOWED.load(Ordering::SeqCst) == CALLS {
            return call_for_ever();
        }
        let _ = smp::vcpu_op(VcpuOp::DOWN, vcpu);
    }
}
