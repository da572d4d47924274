//! Which HVM parameters a guest may read and write.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::hypercall::{self, hvm_get_param, hvm_set_param};
use guest::{Verdict, check, check_eq, println};
use xen_abi::Errno;
use xen_abi::hvm::op::{HvmOp, XenHvmParam};
use xen_abi::hvm::params::HvmParam;
use xen_abi::hypercall::Hypercall;
use xen_abi::xen::Domid;

guest::test!(run);

const READ_ONLY: [HvmParam; 3] = [HvmParam::STORE_PFN, HvmParam::CONSOLE_PFN, HvmParam::ALTP2M];
const READ_WRITE: [HvmParam; 3] =
    [HvmParam::STORE_EVTCHN, HvmParam::CONSOLE_EVTCHN, HvmParam::VM_GENERATION_ID_ADDR];
const REFUSED: [HvmParam; 12] = [
    HvmParam::IOREQ_PFN,
    HvmParam::BUFIOREQ_PFN,
    HvmParam::IOREQ_SERVER_PFN,
    HvmParam::NR_IOREQ_SERVER_PAGES,
    HvmParam::VIRIDIAN,
    HvmParam::TIMER_MODE,
    HvmParam::HPET_ENABLED,
    HvmParam::IDENT_PT,
    HvmParam::ACPI_S_STATE,
    HvmParam::VPT_ALIGN,
    HvmParam::TRIPLE_FAULT_REASON,
    HvmParam::MCA_CAP,
];

fn run() -> Verdict {
    for param in READ_ONLY {
        let value = hvm_get_param(param);
        println!("{param} {value:x?}");
        check!(value.is_ok(), "get {param}: {value:?}");
        check_eq!(hvm_set_param(param, value?), Err(Errno::EPERM), "set {param}");
    }
    for param in READ_WRITE {
        let value = hvm_get_param(param);
        println!("{param} {value:x?}");
        check!(value.is_ok(), "get {param}: {value:?}");
        check_eq!(hvm_set_param(param, value?), Ok(()), "set {param} to what it is");
        check_eq!(hvm_get_param(param), value, "{param} after setting it");
    }
    for param in REFUSED {
        check_eq!(hvm_get_param(param), Err(Errno::EPERM), "get {param}");
        check_eq!(hvm_set_param(param, 0), Err(Errno::EPERM), "set {param}");
    }
    for index in HvmParam::DEPRECATED.into_iter().chain([HvmParam::NR, u32::MAX]) {
        check_eq!(hvm_get_param(HvmParam(index)), Err(Errno::EINVAL), "get {index}");
        check_eq!(hvm_set_param(HvmParam(index), 0), Err(Errno::EINVAL), "set {index}");
    }
    check_eq!(hvm_set_param(HvmParam::CALLBACK_IRQ, 1), Ok(()), "CALLBACK_IRQ by GSI 1, as Linux sets it");
    check_eq!(hvm_get_param(HvmParam::CALLBACK_IRQ), Ok(1), "CALLBACK_IRQ");
    let mut other = XenHvmParam { domid: Domid(0x7000), pad: 0, index: HvmParam::STORE_PFN, value: 0 };
    let rc = hypercall::op(Hypercall::HVM_OP, HvmOp::GET_PARAM.0, &mut other);
    check!(matches!(rc, Err(Errno::ESRCH | Errno::EPERM)), "get a param of domain 0x7000: {rc:?}");
    Ok(())
}
