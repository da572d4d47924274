//! Hypercalls as OUTs to a port: what the registers of one mean.

use crate::kvm::regs::width;
use kvm_bindings::kvm_sync_regs;
use xen_domain::effect::VcpuId;
use xen_domain::hypercall::{Call, Width};

/// The port of hypercalls: no device of a PC has it, and it fits into OUT's immediate byte.
pub const HYPERCALL_PORT: u8 = 0xe4;

/// The hypercall in the registers of an OUT.
pub fn decode(regs: &kvm_sync_regs, vcpu: VcpuId) -> Call {
    let (r, width) = (&regs.regs, width(&regs.sregs));
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
    fn registers_by_width_and_privilege() {
        let mut regs = kvm_sync_regs::default();
        let r = &mut regs.regs;
        (r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp) = (17, 1, 2, 3, 4, 5, 6);
        (r.r10, r.r8, r.r9) = (7, 8, 9);
        regs.sregs.ss.dpl = 3;
        let call = decode(&regs, 2);
        assert_eq!((call.vcpu, call.nr, call.cpl, call.width), (2, 17, 3, Width::Bits32));
        assert_eq!(call.args, [1, 2, 3, 4, 5, 6]);
        regs.sregs.efer = 1 << 10;
        assert_eq!(decode(&regs, 0).width, Width::Bits32, "compatibility mode");
        regs.sregs.cs.l = 1;
        let call = decode(&regs, 0);
        assert_eq!((call.width, call.args), (Width::Bits64, [5, 4, 3, 7, 8, 9]));
    }
}
