//! Hypercalls as OUTs to a port: the hypercall page, and what the registers of one mean.

use kvm_bindings::kvm_sync_regs;
use xen_abi::hypercall::{STUB_SIZE, STUBS};
use xen_abi::xen::PAGE_SIZE;
use xen_domain::effect::VcpuId;
use xen_domain::hypercall::{Call, Width};

/// The port of hypercalls: no device of a PC has it, and it fits into OUT's immediate byte.
pub const HYPERCALL_PORT: u8 = 0xe4;

/// HYPERVISOR_iret is PV's alone: its stub faults, as Xen's does.
const IRET: u8 = 23;
const INT3: u8 = 0xcc;
const EFER_LMA: u64 = 1 << 10;

/// The hypercall page: stubs of mov $nr,%eax; out %al,$port; ret, the same in 32 and 64 bits.
pub fn page() -> Vec<u8> {
    let mut page = vec![INT3; PAGE_SIZE];
    for (nr, stub) in (0u8..).zip(page.chunks_exact_mut(STUB_SIZE)).take(STUBS) {
        let code = [0xb8, nr, 0, 0, 0, 0xe6, HYPERCALL_PORT, 0xc3];
        let code = if nr == IRET { &[0x0f, 0x0b][..] } else { &code[..] };
        for (to, from) in stub.iter_mut().zip(code) {
            *to = *from;
        }
    }
    page
}

/// Whether these registers are those of 64-bit code.
pub fn width(regs: &kvm_sync_regs) -> Width {
    match regs.sregs.efer & EFER_LMA != 0 && regs.sregs.cs.l != 0 {
        true => Width::Bits64,
        false => Width::Bits32,
    }
}

/// The hypercall in the registers of an OUT.
pub fn decode(regs: &kvm_sync_regs, vcpu: VcpuId) -> Call {
    let (r, width) = (&regs.regs, width(regs));
    let args = match width {
        Width::Bits64 => [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9],
        Width::Bits32 => [r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp],
    };
    Call { vcpu, nr: r.rax, args, width, cpl: regs.sregs.ss.dpl }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_out_their_number_and_return() {
        let page = page();
        assert_eq!(page.len(), PAGE_SIZE);
        assert_eq!(page[12 * 32..12 * 32 + 9], [0xb8, 12, 0, 0, 0, 0xe6, 0xe4, 0xc3, 0xcc]);
        assert_eq!(page[23 * 32..23 * 32 + 3], [0x0f, 0x0b, 0xcc], "iret is no hypercall here");
        assert_eq!(page[127 * 32..127 * 32 + 2], [0xb8, 127]);
    }

    #[test]
    fn registers_by_width_and_privilege() {
        let mut regs = kvm_sync_regs::default();
        let r = &mut regs.regs;
        (r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp) = (17, 1, 2, 3, 4, 5, 6);
        (r.r10, r.r8, r.r9) = (7, 8, 9);
        regs.sregs.ss.dpl = 3;
        let call = decode(&regs, 2);
        assert_eq!((call.vcpu, call.nr, call.cpl, call.width), (2, 17, 3, Width::Bits32));
        assert_eq!(call.args, [1, 2, 3, 4, 5, 6]);
        regs.sregs.efer = EFER_LMA;
        assert_eq!(decode(&regs, 0).width, Width::Bits32, "compatibility mode");
        regs.sregs.cs.l = 1;
        let call = decode(&regs, 0);
        assert_eq!((call.width, call.args), (Width::Bits64, [5, 4, 3, 7, 8, 9]));
    }
}
