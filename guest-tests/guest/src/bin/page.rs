//! The hypercall page.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::hypercall::{self, Transport};
use guest::{Verdict, check, check_eq, cpu, println, skip, xen};
use xen_abi::Errno;
use xen_abi::event_channel::EvtchnOp;
use xen_abi::grant_table::{GetVersion, GnttabOp};
use xen_abi::hvm::params::HvmParam;
use xen_abi::hypercall::{Hypercall, STUB_SIZE};
use xen_abi::memory::{MemoryDomain, MemoryOp};
use xen_abi::sched::SchedOp;
use xen_abi::vcpu::VcpuOp;
use xen_abi::version::XenVer;
use xen_abi::xen::{Domid, MulticallEntry, Virq};
use zerocopy::FromZeros;

guest::test!(run);

fn run() -> Verdict {
    if xen::base().is_none() {
        skip!("no Xen signature in CPUID");
    }
    let before = hypercall::transport();
    let page = hypercall::use_page();
    println!("hypercall page at {:#x} by MSR {:#x}", page.addr(), xen::hypercall_msr());
    check_eq!(hypercall::transport(), Transport::Page, "transport");

    let mut last = [0; STUB_SIZE];
    for nr in 0..64 {
        let mut stub = [0; STUB_SIZE];
        page.copy_out(nr * STUB_SIZE, &mut stub);
        check!(stub != [0; STUB_SIZE] && stub != last, "stub {nr} is empty or that of its neighbour");
        last = stub;
    }
    // Xen makes the stub of iret UD2; KVM makes it one like the others.
    let mut iret = [0; 2];
    page.copy_out(23 * STUB_SIZE, &mut iret);
    println!("stub of iret: {iret:02x?}");

    every_call()?;
    if before != Transport::Page {
        hypercall::set(before);
        let direct = hypercall::op_null(Hypercall::XEN_VERSION, XenVer::VERSION.0);
        hypercall::set(Transport::Page);
        let paged = hypercall::op_null(Hypercall::XEN_VERSION, XenVer::VERSION.0);
        check_eq!(paged, direct, "version by page against {before:?}");
    }
    // A second write places a second page; the first keeps working, for it is plain memory.
    cpu::wrmsr(xen::hypercall_msr(), page.addr());
    check!(
        hypercall::op_null(Hypercall::XEN_VERSION, XenVer::VERSION.0).is_ok(),
        "after writing the MSR again"
    );
    Ok(())
}

fn every_call() -> Verdict {
    check!(hypercall::op_null(Hypercall::XEN_VERSION, XenVer::VERSION.0)? >> 16 >= 4, "xen_version");
    let mut domain = MemoryDomain { domid: Domid::SELF };
    let pages = hypercall::op(Hypercall::MEMORY_OP, MemoryOp::CURRENT_RESERVATION.0, &mut domain)?;
    check!(pages > 0, "current_reservation {pages}");
    check_eq!(hypercall::op_null(Hypercall::SCHED_OP, SchedOp::YIELD.0), Ok(0), "yield");
    check_eq!(hypercall::console_write(b"by the page\n"), Ok(()), "console_io");
    hypercall::hvm_get_param(HvmParam::STORE_PFN)?;
    let up = hypercall::call(Hypercall::VCPU_OP, &[VcpuOp::IS_UP.0.into(), 0, 0]);
    check_eq!(up, Ok(1), "vCPU 0 is up");
    let mut version = GetVersion { dom: Domid::SELF, pad: 0, version: 0 };
    hypercall::grant_table_op(GnttabOp::GET_VERSION.0, &mut version)?;
    check_eq!(version.version, 1, "grant table version");
    let port = guest::events::bind_virq(Virq::DEBUG, 0)?;
    check_eq!(guest::events::status(port)?.u, Virq::DEBUG.0, "status of a VIRQ");
    let mut close = xen_abi::event_channel::Close { port };
    check_eq!(guest::events::evtchn_op(EvtchnOp::CLOSE, &mut close), Ok(0), "close");
    check_eq!(hypercall::call(Hypercall::SET_TIMER_OP, &[0]), Ok(0), "set_timer_op");
    check_eq!(hypercall::call(Hypercall::VM_ASSIST, &[0, 77]), Err(Errno::EINVAL), "vm_assist 77");
    check!(hypercall::op_null(Hypercall::PHYSDEV_OP, 99).is_err(), "physdev_op 99");
    let mut calls = [MulticallEntry::new_zeroed(); 2];
    for call in &mut calls {
        call.op = Hypercall::XEN_VERSION.0;
    }
    let addr = hypercall::address(&mut calls);
    check_eq!(hypercall::call(Hypercall::MULTICALL, &[addr, 2]), Ok(0), "multicall");
    check!(calls.iter().all(|c| c.result >> 16 >= 4 && c.result < 1 << 31), "results of the multicall");
    check_eq!(hypercall::call(Hypercall(60), &[0]), Err(Errno::ENOSYS), "hypercall 60");
    Ok(())
}
