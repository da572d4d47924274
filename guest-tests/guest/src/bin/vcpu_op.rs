//! vCPUs started by `VCPUOP_initialise` and `VCPUOP_up`, taken down and up again, and started anew after an INIT. With `down` on the command
//! line one that is down has an NMI pending, in a domain that sleeps for ever.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use guest::boot::Words;
use guest::hypercall::{self, vcpu_op};
use guest::smp::{self, spin_until, start_context, start_vcpu};
use guest::{Verdict, acpi, apic, check, check_eq, cpu, fail, println, skip};
use xen_abi::Errno;
use xen_abi::hypercall::Hypercall;
use xen_abi::sched::SchedOp;
use xen_abi::vcpu::{VCPU_HVM_MODE_32B, VcpuHvmContext, VcpuHvmX86_32, VcpuHvmX86_64, VcpuOp};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

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
    if Words::read().has("down") {
        return asleep();
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
    impossible()?;
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
    by_init()
}

/// An INIT takes a vCPU down, and its state: it wants another one.
fn by_init() -> Verdict {
    let Some(other) = acpi::cpus().nth(1) else { fail!("no second CPU") };
    apic::enable();
    check_eq!(smp::vcpu_op(VcpuOp::UP, 1), Ok(0), "up");
    for round in 1..=10 {
        let before = STEP.load(Ordering::SeqCst);
        check!(spin_until(|| STEP.load(Ordering::SeqCst) > before + 2), "round {round}: vCPU 1 stands still");
        apic::command(other.apic_id, apic::INIT);
        check!(spin_until(|| is_up(1) == Ok(0)), "round {round}: vCPU 1 is up after an INIT");
        check_eq!(smp::vcpu_op(VcpuOp::UP, 1), Err(Errno::EINVAL), "up after an INIT");
        check_eq!(start_vcpu(1), Ok(()), "initialise and up after an INIT");
    }
    println!("10 times down by INIT");
    Ok(())
}

/// Registers that no processor of this domain could have.
fn impossible() -> Verdict {
    let good = start_context(1);
    let Ok((long, _)) = VcpuHvmX86_64::read_from_prefix(&good.cpu_regs) else { fail!("no registers") };
    for (what, regs) in [
        ("VMXE", VcpuHvmX86_64 { cr4: long.cr4 | 1 << 13, ..long }),
        ("bit 15 of CR4", VcpuHvmX86_64 { cr4: long.cr4 | 1 << 15, ..long }),
        ("bit 40 of CR4", VcpuHvmX86_64 { cr4: long.cr4 | 1 << 40, ..long }),
        ("no PAE", VcpuHvmX86_64 { cr4: 0, ..long }),
        ("NW without CD", VcpuHvmX86_64 { cr0: long.cr0 | 1 << 29, ..long }),
        ("paging without protection", VcpuHvmX86_64 { cr0: 1 << 31, ..long }),
        ("bit 60 of CR3", VcpuHvmX86_64 { cr3: long.cr3 | 1 << 60, ..long }),
        ("SVME", VcpuHvmX86_64 { efer: long.efer | 1 << 12, ..long }),
        ("bit 20 of EFER", VcpuHvmX86_64 { efer: long.efer | 1 << 20, ..long }),
        ("a RIP that is not canonical", VcpuHvmX86_64 { rip: 1 << 47, ..long }),
    ] {
        let mut context = good;
        let _ = regs.write_to_prefix(&mut context.cpu_regs);
        check_eq!(initialise(1, context), Err(Errno::EINVAL), "initialise with {what}");
    }
    let flat = VcpuHvmX86_32 {
        cr0: 1,
        cs_limit: 0xf_ffff,
        ss_limit: 0xf_ffff,
        tr_limit: 0x67,
        cs_ar: 0xc9b,
        ss_ar: 0xc93,
        tr_ar: 0x8b,
        ..VcpuHvmX86_32::new_zeroed()
    };
    for (what, regs) in [
        ("no CS", VcpuHvmX86_32 { cs_ar: 0, ..flat }),
        ("data in CS", VcpuHvmX86_32 { cs_ar: 0xc93, ..flat }),
        ("an EIP beyond CS", VcpuHvmX86_32 { eip: 0x1000, cs_limit: 0xfff, cs_ar: 0x49b, ..flat }),
        ("64-bit code in 32 bits", VcpuHvmX86_32 { cs_ar: 0xa9b, ..flat }),
        ("code in SS", VcpuHvmX86_32 { ss_ar: 0xc9b, ..flat }),
        ("SS of ring 3", VcpuHvmX86_32 { ss_ar: 0xcf3, ..flat }),
        ("DS of ring 3", VcpuHvmX86_32 { ds_ar: 0xcf3, ..flat }),
        ("an ES that is not present", VcpuHvmX86_32 { es_ar: 0xc13, ..flat }),
        ("no TR", VcpuHvmX86_32 { tr_ar: 0, ..flat }),
        ("a TSS of 16 bits", VcpuHvmX86_32 { tr_ar: 0x81, ..flat }),
        ("a busy TSS of 16 bits", VcpuHvmX86_32 { tr_ar: 0x83, ..flat }),
        ("PCIDE in 32 bits", VcpuHvmX86_32 { cr4: 1 << 17, ..flat }),
        ("LMA without LME", VcpuHvmX86_32 { efer: 1 << 10, ..flat }),
        ("padding", VcpuHvmX86_32 { pad2: [0, 1, 0], ..flat }),
    ] {
        let mut context = VcpuHvmContext { mode: VCPU_HVM_MODE_32B, pad: 0, cpu_regs: [0; 120] };
        let _ = regs.write_to_prefix(&mut context.cpu_regs);
        check_eq!(initialise(1, context), Err(Errno::EINVAL), "initialise with {what}");
    }
    check_eq!(is_up(1), Ok(0), "is_up of a vCPU that was refused");
    check_eq!(smp::vcpu_op(VcpuOp::UP, 1), Err(Errno::EINVAL), "up of a vCPU that was refused");
    println!("24 states refused");
    Ok(())
}

/// Never ends.
fn asleep() -> Verdict {
    start_vcpu(1)?;
    check!(spin_until(|| STEP.load(Ordering::SeqCst) == 1), "vCPU 1 does not start");
    check_eq!(smp::vcpu_op(VcpuOp::DOWN, 1), Ok(0), "down");
    check_eq!(is_up(1), Ok(0), "is_up of a vCPU that was taken down");
    check_eq!(smp::vcpu_op(VcpuOp::SEND_NMI, 1), Ok(0), "an NMI for a vCPU that is down");
    println!("sleeps for ever");
    loop {
        hypercall::op_null(Hypercall::SCHED_OP, SchedOp::BLOCK.0)?;
    }
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
