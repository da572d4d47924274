//! `struct vcpu_hvm_context`: the registers a vCPU begins with, checked as Xen's `arch_set_info_hvm_guest` does.

use xen_abi::errno::Errno;
use xen_abi::vcpu::{VCPU_HVM_MODE_32B, VCPU_HVM_MODE_64B, VcpuHvmContext, VcpuHvmX86_32, VcpuHvmX86_64};
use zerocopy::FromBytes;

use crate::effect::{Processor, Segment, StartState};

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR4_PAE: u64 = 1 << 5;
const CR4_PCIDE: u64 = 1 << 17;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_ALWAYS: u64 = 2;

/// A busy TSS, the only system segment there may be.
const BUSY_TSS: u16 = 0xb;
const BUSY: u16 = 2;
const ACCESSED: u16 = 1;
const CODE: u16 = 8;
const READ_OR_WRITE: u16 = 2;

impl Segment {
    const fn new(base: u32, limit: u32, ar: u16) -> Segment {
        Segment { base, limit, ar }
    }

    /// The same in use, as the processor marks what it has loaded: code and data as accessed, a task as busy.
    const fn used(mut self, mark: u16) -> Segment {
        if self.is_present() {
            self.ar |= mark;
        }
        self
    }

    const fn kind(self) -> u16 {
        self.ar & 0xf
    }

    const fn is_present(self) -> bool {
        self.ar >> 7 & 1 == 1
    }

    const fn is_long(self) -> bool {
        self.ar >> 9 & 1 == 1
    }

    const fn is_big(self) -> bool {
        self.ar >> 10 & 1 == 1
    }

    const fn dpl(self) -> u16 {
        self.ar >> 5 & 3
    }

    /// The highest offset.
    const fn end(self) -> u32 {
        if self.ar >> 11 & 1 == 1 { self.limit << 12 | 0xfff } else { self.limit }
    }

    /// Present, and of the kind that `right` wants: code and data, or the TSS.
    fn check(self, tss: bool, right: fn(u16) -> bool) -> Result<(), Errno> {
        let system = self.ar >> 4 & 1 == 0;
        let good = self.ar >> 12 == 0 && self.is_present() && system == tss && right(self.kind());
        if good { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The same for DS and ES, which may be missing.
    fn check_data(self, cs: Segment) -> Result<(), Errno> {
        if self.ar == 0 {
            return Ok(());
        }
        self.check(false, |kind| kind & CODE == 0 || kind & READ_OR_WRITE != 0)?;
        if self.dpl() > cs.dpl() { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// The state that a context describes.
///
/// # Errors
/// -EINVAL for one that no processor could be in, as Xen has it.
pub(super) fn start_state(context: &VcpuHvmContext, processor: &Processor) -> Result<StartState, Errno> {
    if context.pad != 0 {
        return Err(Errno::EINVAL);
    }
    let state = match context.mode {
        VCPU_HVM_MODE_32B => {
            from_32(&VcpuHvmX86_32::read_from_prefix(&context.cpu_regs).map_err(|_| Errno::EINVAL)?.0)
        }
        VCPU_HVM_MODE_64B => {
            from_64(&VcpuHvmX86_64::read_from_prefix(&context.cpu_regs).map_err(|_| Errno::EINVAL)?.0)
        }
        _ => Err(Errno::EINVAL),
    }?;
    let StartState { cr0, cr3, cr4, efer, cs, .. } = state;
    let long = efer & EFER_LME != 0 && cr0 & CR0_PG != 0;
    let unknown = cr0 >> 32 != 0 || cr4 & !processor.cr4 != 0 || efer & !processor.efer != 0;
    let impossible = cr0 & (CR0_PG | CR0_PE) == CR0_PG || cr0 & (CR0_NW | CR0_CD) == CR0_NW;
    let wrong = match long {
        true => cr4 & CR4_PAE == 0 || cr3 & !processor.cr3 != 0 || cs.is_long() && cs.is_big(),
        false => cr4 & CR4_PCIDE != 0 || cs.is_long(),
    };
    if unknown || impossible || wrong {
        return Err(Errno::EINVAL);
    }
    let active = if long { EFER_LMA } else { 0 };
    Ok(StartState { rflags: state.rflags | RFLAGS_ALWAYS, efer: efer & !EFER_LMA | active, ..state })
}

fn from_32(regs: &VcpuHvmX86_32) -> Result<StartState, Errno> {
    let state = StartState {
        gprs: [regs.eax, regs.ecx, regs.edx, regs.ebx, regs.esp, regs.ebp, regs.esi, regs.edi].map(u64::from),
        rip: regs.eip.into(),
        rflags: regs.eflags.into(),
        cr0: regs.cr0.into(),
        cr3: regs.cr3.into(),
        cr4: regs.cr4.into(),
        efer: regs.efer,
        cs: Segment::new(regs.cs_base, regs.cs_limit, regs.cs_ar).used(ACCESSED),
        ds: Segment::new(regs.ds_base, regs.ds_limit, regs.ds_ar).used(ACCESSED),
        es: Segment::new(regs.es_base, regs.es_limit, regs.es_ar).used(ACCESSED),
        ss: Segment::new(regs.ss_base, regs.ss_limit, regs.ss_ar).used(ACCESSED),
        tr: Segment::new(regs.tr_base, regs.tr_limit, regs.tr_ar).used(BUSY),
    };
    let zero = regs.pad1 == 0 && regs.pad2 == [0; 3];
    state.cs.check(false, |kind| kind & CODE != 0)?;
    state.ss.check(false, |kind| kind & (CODE | READ_OR_WRITE) == READ_OR_WRITE)?;
    state.tr.check(true, |kind| kind == BUSY_TSS)?;
    state.ds.check_data(state.cs)?;
    state.es.check_data(state.cs)?;
    let long = regs.efer & EFER_LMA != 0 && regs.efer & EFER_LME == 0;
    if !zero || regs.eip > state.cs.end() || state.ss.dpl() != state.cs.dpl() || long {
        return Err(Errno::EINVAL);
    }
    Ok(state)
}

/// Flat segments, paging on.
fn from_64(regs: &VcpuHvmX86_64) -> Result<StartState, Errno> {
    let canonical = matches!(regs.rip.cast_signed() >> 47, 0 | -1);
    if !canonical || regs.cr0 & CR0_PG == 0 || regs.cr4 & CR4_PAE == 0 || regs.efer & EFER_LME == 0 {
        return Err(Errno::EINVAL);
    }
    let data = Segment::new(0, u32::MAX, 0xc93);
    Ok(StartState {
        gprs: [regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi],
        rip: regs.rip,
        rflags: regs.rflags,
        cr0: regs.cr0,
        cr3: regs.cr3,
        cr4: regs.cr4,
        efer: regs.efer,
        cs: Segment::new(0, u32::MAX, 0xa9b),
        ds: data,
        es: data,
        ss: data,
        tr: Segment::new(0, 0x67, 0x8b),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromZeros, IntoBytes};

    /// Up to PCIDE in CR4, without VMXE and LA57.
    const PROCESSOR: Processor = Processor { cr3: (1 << 40) - 1, cr4: 0x2_07ff, efer: 0xd01 };

    fn context(mode: u32, regs: &[u8]) -> VcpuHvmContext {
        let mut context = VcpuHvmContext { mode, pad: 0, cpu_regs: [0; 120] };
        context.cpu_regs[..regs.len()].copy_from_slice(regs);
        context
    }

    fn flat() -> VcpuHvmX86_32 {
        VcpuHvmX86_32 {
            eip: 0x10_0000,
            cr0: 1,
            cs_limit: u32::MAX,
            ss_limit: u32::MAX,
            tr_limit: 0x67,
            cs_ar: 0xc9b,
            ss_ar: 0xc93,
            tr_ar: 0x8b,
            ..VcpuHvmX86_32::new_zeroed()
        }
    }

    #[test]
    fn a_32_bit_state_must_be_possible() {
        let tried = |change: fn(&mut VcpuHvmX86_32)| {
            let mut regs = flat();
            change(&mut regs);
            start_state(&context(VCPU_HVM_MODE_32B, regs.as_bytes()), &PROCESSOR)
        };
        let good = tried(|regs| regs.ebx = 7).unwrap();
        assert_eq!((good.gprs[3], good.rip, good.rflags, good.efer), (7, 0x10_0000, 2, 0));
        // What is present is accessed, and a task busy, whatever the guest says.
        let used =
            tried(|regs| (regs.cs_ar, regs.ds_ar, regs.ss_ar, regs.tr_ar) = (0xc9a, 0xc92, 0xc92, 0x89));
        let StartState { cs, ds, es, ss, tr, .. } = used.unwrap();
        assert_eq!([cs, ds, es, ss, tr].map(|segment| segment.ar), [0xc9b, 0xc93, 0, 0xc93, 0x8b]);
        assert!(tried(|regs| regs.cr4 = 0x7ff & !(1 << 5)).is_ok());
        assert!(tried(|regs| regs.cr0 = 0x6000_0001).is_ok(), "caches off");
        let long = |regs: &mut VcpuHvmX86_32| {
            (regs.cr0, regs.cr4, regs.efer, regs.cs_ar) = (0x8000_0001, 0x2_0020, EFER_LME, 0xa9b);
        };
        let mut regs = flat();
        long(&mut regs);
        let state = start_state(&context(VCPU_HVM_MODE_32B, regs.as_bytes()), &PROCESSOR).unwrap();
        assert_eq!((state.efer, state.cs.ar), (EFER_LME | EFER_LMA, 0xa9b));
        let wrong: [fn(&mut VcpuHvmX86_32); 27] = [
            |regs| regs.cs_ar = 0,
            |regs| regs.cs_ar = 0xc93,
            |regs| regs.cs_ar = 0xc1b,
            |regs| regs.cs_ar |= 0x1000,
            |regs| regs.ss_ar = 0xc9b,
            |regs| regs.ss_ar = 0xcf3,
            |regs| regs.ds_ar = 0xc99,
            |regs| regs.es_ar = 0xcf3,
            |regs| regs.tr_ar = 0x81,
            |regs| regs.tr_ar = 0x83,
            |regs| regs.tr_ar = 0x9b,
            |regs| regs.tr_ar = 0x0b,
            |regs| regs.tr_ar = 0,
            |regs| regs.cr4 = 1 << 13,
            |regs| regs.cr4 = 1 << 12,
            |regs| regs.cr4 = 1 << 15,
            |regs| regs.cr4 = 1 << 17,
            |regs| regs.cr0 = 0x2000_0001,
            |regs| regs.cs_ar = 0xa9b,
            |regs| (regs.cr0, regs.efer) = (0x8000_0001, EFER_LME),
            |regs| regs.efer = 1 << 12,
            |regs| regs.pad1 = 1,
            |regs| regs.pad2 = [0, 0, 1],
            |regs| regs.efer = EFER_LMA,
            |regs| regs.efer = 2,
            |regs| regs.cr0 = 1 << 31,
            |regs| (regs.cs_limit, regs.cs_ar) = (0xffff, 0x49b),
        ];
        for (number, change) in wrong.into_iter().enumerate() {
            assert_eq!(tried(change).err(), Some(Errno::EINVAL), "{number}");
        }
    }

    #[test]
    fn a_64_bit_state_has_paging_on() {
        let good = VcpuHvmX86_64 {
            rip: 0xffff_8000_0000_0000,
            cr0: CR0_PG | CR0_PE,
            cr4: CR4_PAE,
            efer: EFER_LME,
            ..VcpuHvmX86_64::new_zeroed()
        };
        let tried =
            |regs: VcpuHvmX86_64| start_state(&context(VCPU_HVM_MODE_64B, regs.as_bytes()), &PROCESSOR);
        let state = tried(good).unwrap();
        assert_eq!((state.efer, state.cs.ar, state.ss.ar), (EFER_LME | EFER_LMA, 0xa9b, 0xc93));
        for wrong in [
            VcpuHvmX86_64 { rip: 1 << 47, ..good },
            VcpuHvmX86_64 { cr0: CR0_PE, ..good },
            VcpuHvmX86_64 { cr0: CR0_PG, ..good },
            VcpuHvmX86_64 { cr4: 0, ..good },
            VcpuHvmX86_64 { cr4: CR4_PAE | 1 << 40, ..good },
            VcpuHvmX86_64 { cr4: CR4_PAE | 1 << 13, ..good },
            VcpuHvmX86_64 { cr3: 1 << 40, ..good },
            VcpuHvmX86_64 { efer: 0, ..good },
        ] {
            assert_eq!(tried(wrong).err(), Some(Errno::EINVAL), "{wrong:x?}");
        }
        let padded = VcpuHvmContext { pad: 1, ..context(VCPU_HVM_MODE_64B, good.as_bytes()) };
        assert_eq!(start_state(&padded, &PROCESSOR).err(), Some(Errno::EINVAL));
        assert_eq!(start_state(&context(2, good.as_bytes()), &PROCESSOR).err(), Some(Errno::EINVAL));
    }
}
