//! Xen's CPUID leaves. `tsc=N` on the command line is the tsc_mode that is to be told there; 0 if not said.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::{Verdict, boot, check, check_eq, cpu, fail, hypercall, println, xen};
use xen_abi::cpuid::{
    FIRST_LEAF, HYPERCALL_MSR, HYPERCALL_MSR_WITH_VIRIDIAN, HvmFeatures, LEAF_HVM, LEAF_HYPERCALL, LEAF_TIME,
    LEAF_VERSION,
};
use xen_abi::hypercall::Hypercall;
use xen_abi::version::XenVer;
use xen_abi::xen::Domid;

guest::test!(run);

fn run() -> Verdict {
    let [.., features, _] = cpu::cpuid(1, 0);
    check!(features & 1 << 31 != 0, "the hypervisor bit of leaf 1 is clear");
    let Some(base) = xen::base() else { fail!("no Xen signature") };
    let [max, ..] = xen::leaf(0, 0);
    println!("leaves {base:#x} to {max:#x}");
    check!(base == FIRST_LEAF || base == FIRST_LEAF + 0x100, "base {base:#x}");
    check!(max >= base + LEAF_HVM && max <= base + 0xff, "highest leaf {max:#x}");

    let [version, rest @ ..] = xen::leaf(LEAF_VERSION, 0);
    println!("version {}.{}", version >> 16, version & 0xffff);
    check_eq!(rest, [0; 3], "reserved registers of leaf 1");
    let by_call = hypercall::op_null(Hypercall::XEN_VERSION, XenVer::VERSION.0)?;
    check_eq!(by_call, i64::from(version), "XENVER_version against leaf 1");

    let [pages, msr, features1, features2] = xen::leaf(LEAF_HYPERCALL, 0);
    let want = if base == FIRST_LEAF { HYPERCALL_MSR } else { HYPERCALL_MSR_WITH_VIRIDIAN };
    check_eq!((pages, msr), (1, want), "hypercall pages and their MSR");
    check_eq!((features1, features2), (0, 0), "features of leaf 2, which are PV's");

    let [flags, mode, khz, incarnation] = xen::leaf(LEAF_TIME, 0);
    println!("time: flags {flags:#x}, mode {mode}, {khz} kHz, incarnation {incarnation}");
    check!(khz > 0, "the TSC has no frequency");
    check_eq!(mode, boot::Words::read().number("tsc=").unwrap_or(0), "tsc_mode");

    let [features, vcpu, domid, _] = xen::leaf(LEAF_HVM, 0);
    let known = HvmFeatures::from_bits_truncate(features);
    println!("hvm: {features:#x}, vcpu {vcpu}, domid {domid}");
    check_eq!(known.bits(), features, "known bits of leaf 4");
    check!(known.contains(HvmFeatures::VCPU_ID_PRESENT), "no vCPU id");
    check_eq!(vcpu, 0, "id of the first vCPU");
    if known.contains(HvmFeatures::DOMID_PRESENT) {
        let ordinary = u16::try_from(domid).is_ok_and(|id| id > 0 && Domid(id).is_ordinary());
        check!(ordinary, "domid {domid}");
    }
    println!("a vector per vCPU: {}", known.contains(HvmFeatures::UPCALL_VECTOR));
    Ok(())
}
