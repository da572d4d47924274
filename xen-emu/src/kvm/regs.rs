//! The state in which a PVH guest starts, and dumps of the state in which one died.

use crate::core_dump::Registers;
use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use std::io;
use xen_domain::effect::{Segment, StartState};
use xen_domain::hypercall::Width;

const CR0_PE: u64 = 1;
const EFER_LMA: u64 = 1 << 10;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MSR_MISC_ENABLE: u32 = 0x1a0;

fn flat(type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: if code { 0x08 } else { 0x10 },
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Set the boot vCPU to the PVH entry: 32-bit protected mode without paging, flat segments, EBX at
/// hvm_start_info (docs/misc/pvh).
pub fn pvh_entry(fd: &VcpuFd, entry: u32, start_info: u32) -> io::Result<()> {
    let mut sregs: kvm_sregs = fd.get_sregs()?;
    sregs.cr0 = CR0_PE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    sregs.cs = flat(11, true);
    let data = flat(3, false);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, selector: 0x18, type_: 11, s: 0, db: 0, g: 0, ..flat(11, true) };
    fd.set_sregs(&sregs)?;
    let regs = kvm_regs { rip: entry.into(), rbx: start_info.into(), rflags: 2, ..Default::default() };
    Ok(fd.set_regs(&regs)?)
}

/// Set a vCPU to the state that the guest has chosen for its start; segments that it does not name are unusable.
pub fn start(fd: &VcpuFd, state: &StartState) -> io::Result<()> {
    let mut sregs: kvm_sregs = fd.get_sregs()?;
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (state.cr0, state.cr3, state.cr4, state.efer);
    (sregs.cs, sregs.ds, sregs.es) = (segment(state.cs), segment(state.ds), segment(state.es));
    (sregs.ss, sregs.tr) = (segment(state.ss), segment(state.tr));
    (sregs.fs, sregs.gs) = (segment(Segment::default()), segment(Segment::default()));
    fd.set_sregs(&sregs)?;
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi] = state.gprs;
    let (rip, rflags) = (state.rip, state.rflags);
    Ok(fd.set_regs(&kvm_regs {
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        rip,
        rflags,
        ..Default::default()
    })?)
}

/// A segment by Xen's rights. KVM wants the limit in bytes.
fn segment(of: Segment) -> kvm_segment {
    let bits = |from: u32, count: u32| {
        let mask = (1u16 << count) - 1;
        u8::try_from(of.ar >> from & mask).unwrap_or(0)
    };
    let g = bits(11, 1);
    kvm_segment {
        base: of.base.into(),
        limit: if g == 1 { of.limit << 12 | 0xfff } else { of.limit },
        selector: 0,
        type_: bits(0, 4),
        s: bits(4, 1),
        dpl: bits(5, 2),
        present: bits(7, 1),
        avl: bits(8, 1),
        l: bits(9, 1),
        db: bits(10, 1),
        g,
        unusable: u8::from(of.ar == 0),
        padding: 0,
    }
}

/// Whether these registers are those of 64-bit code.
pub fn width(sregs: &kvm_sregs) -> Width {
    match sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0 {
        true => Width::Bits64,
        false => Width::Bits32,
    }
}

/// IA32_APIC_BASE (Intel SDM 3A, 11.4.3 and 11.12.1).
pub const APIC_BASE: u32 = 0x1b;
const APIC_ENABLED: u64 = 1 << 11;
const X2APIC_MODE: u64 = 1 << 10;
/// The spurious interrupt vector register, and of its second byte the bit that lets the local APIC work.
const SPURIOUS_VECTOR: usize = 0xf0;
const SOFTWARE_ENABLED: u8 = 1;

/// The guest writes IA32_APIC_BASE, which KVM knows too: whether its local APIC is in x2APIC mode then.
///
/// # Errors
/// The processor would raise #GP.
pub fn set_apic_base(fd: &VcpuFd, new: u64) -> io::Result<bool> {
    let on = |base: u64| base & APIC_ENABLED != 0;
    let x2apic = |base: u64| base & X2APIC_MODE != 0;
    let old = fd.get_sregs()?.apic_base;
    // x2APIC mode is reached from xAPIC mode and left by switching off.
    if x2apic(new) && !(on(new) && on(old)) || x2apic(old) && on(new) && !x2apic(new) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    set_msr(fd, APIC_BASE, new)?;
    Ok(x2apic(new))
}

/// Whether a vCPU's local APIC takes interrupts: it is enabled, by IA32_APIC_BASE and by its spurious vector register.
pub fn lapic_is_on(fd: &VcpuFd) -> bool {
    let enabled = |lapic: kvm_lapic_state| {
        lapic.regs.get(SPURIOUS_VECTOR + 1).is_some_and(|bits| bits.cast_unsigned() & SOFTWARE_ENABLED != 0)
    };
    fd.get_sregs().is_ok_and(|sregs| sregs.apic_base & APIC_ENABLED != 0) && fd.get_lapic().is_ok_and(enabled)
}

/// Write one MSR of a vCPU.
pub fn set_msr(fd: &VcpuFd, index: u32, data: u64) -> io::Result<()> {
    let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]);
    match fd.set_msrs(&msrs.map_err(|e| io::Error::other(format!("{e:?}")))?)? {
        1 => Ok(()),
        _ => Err(io::Error::other(format!("KVM refuses MSR {index:#x}"))),
    }
}

/// MTRRs on with write-back as default, fast strings on: what Xen gives to every vCPU.
pub fn initial_msrs(fd: &VcpuFd) -> io::Result<()> {
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = [msr(MSR_MTRR_DEF_TYPE, 0xc06), msr(MSR_MISC_ENABLE, 1)];
    let msrs = Msrs::from_entries(&msrs).map_err(|e| io::Error::other(format!("{e:?}")))?;
    fd.set_msrs(&msrs)?;
    Ok(())
}

/// The registers as a core has them.
pub fn of_core(fd: &VcpuFd) -> io::Result<Registers> {
    let (r, s): (kvm_regs, kvm_sregs) = (fd.get_regs()?, fd.get_sregs()?);
    let selector = |segment: kvm_segment| u64::from(segment.selector);
    let general = [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi,
    ];
    let rest = [
        r.rax,
        r.rip,
        selector(s.cs),
        r.rflags,
        r.rsp,
        selector(s.ss),
        s.fs.base,
        s.gs.base,
        selector(s.ds),
        selector(s.es),
        selector(s.fs),
        selector(s.gs),
    ];
    let mut all = general.into_iter().chain(rest);
    Ok(std::array::from_fn(|_| all.next().unwrap_or(0)))
}

/// The registers as lines of text, for the log of a domain that died.
pub fn dump(fd: &VcpuFd) -> String {
    let (Ok(r), Ok(s)) = (fd.get_regs(), fd.get_sregs()) else { return "registers unavailable".into() };
    format!(
        "RIP {:016x} RFLAGS {:08x} CS {:04x} CR0 {:08x} CR2 {:016x} CR3 {:016x} CR4 {:08x} EFER {:04x}\n\
         RAX {:016x} RBX {:016x} RCX {:016x} RDX {:016x}\n\
         RSI {:016x} RDI {:016x} RBP {:016x} RSP {:016x}\n\
         R8  {:016x} R9  {:016x} R10 {:016x} R11 {:016x}\n\
         R12 {:016x} R13 {:016x} R14 {:016x} R15 {:016x}",
        r.rip,
        r.rflags,
        s.cs.selector,
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        s.efer,
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp,
        r.rsp,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
    )
}
