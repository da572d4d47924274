//! Calls that must fail, and how.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::{Verdict, check_eq, hypercall, println};
use xen_abi::Errno;
use xen_abi::event_channel::{BindVirq, Close, EvtchnOp, Send};
use xen_abi::grant_table::GnttabOp;
use xen_abi::hvm::op::HvmOp;
use xen_abi::hypercall::Hypercall;
use xen_abi::memory::MemoryOp;
use xen_abi::sched::SchedOp;
use xen_abi::vcpu::VcpuOp;
use xen_abi::version::XenVer;
use xen_abi::xen::Port;

guest::test!(run);

/// Addresses at which there is no memory for a struct: unmapped in both halves, across the end of what is mapped.
const BAD: [u64; 3] = [0x7fff_ffff_f000, 0xffff_8000_0000_0000, 0xffff_fffc];

fn unknown() -> Verdict {
    for nr in [11, 38, 43, 56, 63, 127] {
        check_eq!(hypercall::call(Hypercall(nr), &[0, 0]), Err(Errno::ENOSYS), "hypercall {nr}");
    }
    let calls = [
        (Hypercall::XEN_VERSION, 99),
        (Hypercall::EVENT_CHANNEL_OP, 99),
        (Hypercall::SCHED_OP, 99),
        (Hypercall::HVM_OP, 99),
        (Hypercall::MEMORY_OP, 60),
    ];
    for (nr, cmd) in calls {
        check_eq!(hypercall::op_null(nr, cmd), Err(Errno::ENOSYS), "{nr} command {cmd}");
    }
    for (vcpu, want) in [(0, Errno::ENOSYS), (9999, Errno::ENOENT)] {
        check_eq!(hypercall::call(Hypercall::VCPU_OP, &[99, vcpu, 0]), Err(want), "VCPUOP 99 of vCPU {vcpu}");
    }
    Ok(())
}

fn bad_pointers() -> Verdict {
    let calls = [
        (Hypercall::XEN_VERSION, XenVer::GET_FEATURES.0),
        (Hypercall::MEMORY_OP, MemoryOp::ADD_TO_PHYSMAP.0),
        (Hypercall::MEMORY_OP, MemoryOp::MEMORY_MAP.0),
        (Hypercall::EVENT_CHANNEL_OP, EvtchnOp::ALLOC_UNBOUND.0),
        (Hypercall::EVENT_CHANNEL_OP, EvtchnOp::STATUS.0),
        (Hypercall::HVM_OP, HvmOp::GET_PARAM.0),
        (Hypercall::HVM_OP, HvmOp::SET_EVTCHN_UPCALL_VECTOR.0),
        (Hypercall::SCHED_OP, SchedOp::POLL.0),
    ];
    for addr in BAD {
        for (nr, cmd) in calls {
            let rc = hypercall::call(nr, &[cmd.into(), addr]);
            check_eq!(rc, Err(Errno::EFAULT), "{nr} command {cmd} at {addr:#x}");
        }
        let rc = hypercall::call(Hypercall::GRANT_TABLE_OP, &[GnttabOp::QUERY_SIZE.0.into(), addr, 1]);
        check_eq!(rc, Err(Errno::EFAULT), "GNTTABOP_query_size at {addr:#x}");
        let rc = hypercall::call(Hypercall::VCPU_OP, &[VcpuOp::REGISTER_VCPU_INFO.0.into(), 0, addr]);
        check_eq!(rc, Err(Errno::EFAULT), "VCPUOP_register_vcpu_info at {addr:#x}");
        let rc = hypercall::call(Hypercall::CONSOLE_IO, &[0, 16, addr]);
        check_eq!(rc, Err(Errno::EFAULT), "CONSOLEIO_write at {addr:#x}");
        let rc = hypercall::call(Hypercall::MULTICALL, &[addr, 1]);
        check_eq!(rc, Err(Errno::EFAULT), "multicall at {addr:#x}");
    }
    Ok(())
}

fn bad_values() -> Verdict {
    let evtchn = Hypercall::EVENT_CHANNEL_OP;
    let mut virq = BindVirq { virq: 24, vcpu: 0, port: Port(0) };
    check_eq!(hypercall::op(evtchn, EvtchnOp::BIND_VIRQ.0, &mut virq), Err(Errno::EINVAL), "VIRQ 24");
    let mut virq = BindVirq { virq: 0, vcpu: 9999, port: Port(0) };
    check_eq!(
        hypercall::op(evtchn, EvtchnOp::BIND_VIRQ.0, &mut virq),
        Err(Errno::ENOENT),
        "VIRQ of vCPU 9999"
    );
    for port in [0, 4095, u32::MAX] {
        let rc = hypercall::op(evtchn, EvtchnOp::SEND.0, &mut Send { port: Port(port) });
        check_eq!(rc, Err(Errno::EINVAL), "send to port {port}");
        let rc = hypercall::op(evtchn, EvtchnOp::CLOSE.0, &mut Close { port: Port(port) });
        check_eq!(rc, Err(Errno::EINVAL), "close port {port}");
    }
    let rc = hypercall::call(Hypercall::VCPU_OP, &[VcpuOp::IS_UP.0.into(), 9999, 0]);
    check_eq!(rc, Err(Errno::ENOENT), "vCPU 9999");
    for nr in [Hypercall::DOMCTL, Hypercall::SYSCTL, Hypercall::PLATFORM_OP] {
        let rc = hypercall::call(nr, &[0; 2]);
        let refused = matches!(rc, Err(Errno::EPERM | Errno::EFAULT | Errno::EACCES | Errno::ENOSYS));
        check_eq!(refused, true, "{nr} of a guest");
    }
    Ok(())
}

fn run() -> Verdict {
    unknown()?;
    println!("unknown calls: refused");
    bad_pointers()?;
    println!("bad addresses: refused");
    bad_values()
}
