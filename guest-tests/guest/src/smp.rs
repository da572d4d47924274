//! Starting one more CPU.
#![forbid(unsafe_code)]

use crate::{apic, cpu, hypercall, page::Page, start};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use xen_abi::Errno;
use xen_abi::hypercall::Hypercall;
#[cfg(target_pointer_width = "32")]
use xen_abi::vcpu::{VCPU_HVM_MODE_32B, VcpuHvmX86_32};
#[cfg(not(target_pointer_width = "32"))]
use xen_abi::vcpu::{VCPU_HVM_MODE_64B, VcpuHvmX86_64};
use xen_abi::vcpu::{VcpuHvmContext, VcpuOp};
use zerocopy::{FromZeros, IntoBytes};

/// Where the other CPU begins: a page below 1 MiB that neither we nor a PVH loader uses.
const TRAMPOLINE: u64 = 0x8000;

static TEST: AtomicBool = AtomicBool::new(false);
static ALIVE: AtomicBool = AtomicBool::new(false);
static WANTED: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);
static JOB: Job = Job(AtomicBool::new(false));

struct Job(AtomicBool);

/// Sends INIT and start-up to the CPU with this APIC id; it then waits to be asked for events.
///
/// Returns whether it came to life.
#[must_use]
pub fn start(apic_id: u32) -> bool {
    Page::at(TRAMPOLINE).write(0, start::ap_trampoline());
    ALIVE.store(false, Ordering::SeqCst);
    apic::command(apic_id, apic::INIT);
    for _ in 0..2 {
        apic::command(apic_id, apic::STARTUP | 8);
        if spin_until(|| ALIVE.load(Ordering::SeqCst)) {
            return true;
        }
    }
    false
}

/// The same for the second function of [`test!`](crate::test), as vCPU 1; once.
#[must_use]
pub fn start_test(apic_id: u32) -> bool {
    TEST.store(true, Ordering::SeqCst);
    Page::at(TRAMPOLINE).write(0, start::ap_trampoline());
    apic::command(apic_id, apic::INIT);
    (0..2).for_each(|_| apic::command(apic_id, apic::STARTUP | 8));
    spin_until(|| ALIVE.load(Ordering::SeqCst))
}

/// Whether a CPU that comes by INIT is the test's; then it has come.
pub(crate) fn runs_test() -> bool {
    let test = TEST.load(Ordering::SeqCst);
    if test {
        ALIVE.store(true, Ordering::SeqCst);
    }
    test
}

/// The state in which a vCPU begins with the second function of [`test!`](crate::test), on a stack of its own: 32 bits,
/// flat and without paging. DS and ES, which it loads by itself, are absent, and nothing is in use yet, as the processor would mark it.
#[cfg(target_pointer_width = "32")]
#[must_use]
pub fn start_context(vcpu: u32) -> VcpuHvmContext {
    let (eip, esp) = start::vcpu_start(vcpu);
    let low = |value: u64| u32::try_from(value).unwrap_or(0);
    // Present; code and data of 4 GiB and 32 bits, a task that is available.
    let (code, data, task) = (0xc9a, 0xc92, 0x89);
    let pages = 0xf_ffff;
    let regs = VcpuHvmX86_32 {
        eip: low(eip),
        esp: low(esp),
        edi: vcpu,
        cr0: 1,
        cs_limit: pages,
        ss_limit: pages,
        tr_limit: 0x67,
        cs_ar: code,
        ss_ar: data,
        tr_ar: task,
        ..VcpuHvmX86_32::new_zeroed()
    };
    let mut context = VcpuHvmContext { mode: VCPU_HVM_MODE_32B, pad: 0, cpu_regs: [0; 120] };
    let _ = regs.write_to_prefix(&mut context.cpu_regs);
    context
}

/// The state in which a vCPU begins with the second function of [`test!`](crate::test), on a stack of its own.
#[cfg(not(target_pointer_width = "32"))]
#[must_use]
pub fn start_context(vcpu: u32) -> VcpuHvmContext {
    let ((rip, rsp), cr3) = (start::vcpu_start(vcpu), start::page_tables());
    let regs = VcpuHvmX86_64 {
        rip,
        cr3,
        rsp,
        rdi: vcpu.into(),
        // PG and PE; PAE; LME.
        cr0: 0x8000_0001,
        cr4: 0x20,
        efer: 0x100,
        ..VcpuHvmX86_64::new_zeroed()
    };
    let mut context = VcpuHvmContext { mode: VCPU_HVM_MODE_64B, pad: 0, cpu_regs: [0; 120] };
    let _ = regs.write_to_prefix(&mut context.cpu_regs);
    context
}

/// Starts a vCPU below 8 by `VCPUOP_initialise` and `VCPUOP_up`.
///
/// # Errors
/// What the hypervisor answers.
pub fn start_vcpu(vcpu: u32) -> Result<(), Errno> {
    hypercall::vcpu_op(VcpuOp::INITIALISE.0, vcpu, &mut start_context(vcpu))?;
    vcpu_op(VcpuOp::UP, vcpu).map(drop)
}

/// A `VCPUOP` without argument.
///
/// # Errors
/// What the hypervisor answers.
pub fn vcpu_op(op: VcpuOp, vcpu: u32) -> Result<i64, Errno> {
    hypercall::call(Hypercall::VCPU_OP, &[op.0.into(), vcpu.into(), 0])
}

/// What further vCPUs do in tests that start none.
pub fn idle(_vcpu: u32) {}

/// Spins for a while, much longer than anything takes; returns whether the condition came true.
#[must_use]
pub fn spin_until(condition: impl Fn() -> bool) -> bool {
    for _ in 0..200_000_000_u64 {
        if condition() {
            return true;
        }
        cpu::pause();
    }
    false
}

/// What another CPU does: switch its APIC on, let interrupts in, and run what it is asked to.
pub(crate) fn run() -> ! {
    apic::enable();
    cpu::sti();
    ALIVE.store(true, Ordering::SeqCst);
    loop {
        let wanted = WANTED.load(Ordering::SeqCst);
        if JOB.0.load(Ordering::SeqCst) && wanted != DONE.load(Ordering::SeqCst) {
            crate::events::send_by_ap();
            DONE.store(wanted, Ordering::SeqCst);
        }
        cpu::pause();
    }
}

/// Has the other CPU send an event; returns whether it did.
#[must_use]
pub fn send_from_other() -> bool {
    JOB.0.store(true, Ordering::SeqCst);
    let wanted = WANTED.fetch_add(1, Ordering::SeqCst) + 1;
    spin_until(|| DONE.load(Ordering::SeqCst) == wanted)
}

/// The number of this vCPU, where all but the first have been started on a stack of their own.
#[must_use]
pub fn current() -> usize {
    let here = 0u8;
    start::stack_of((&raw const here).expose_provenance() as u64)
}
