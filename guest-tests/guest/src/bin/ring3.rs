//! Hypercalls from ring 3, by the instruction and through the page: every one is refused, and none does anything.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::events::{Events, bind_ipi, send};
use guest::hypercall::{self, Transport};
use guest::{Verdict, check, check_eq, cpu, println, skip};
use xen_abi::Errno;
use xen_abi::event_channel::{EvtchnOp, Send};
use xen_abi::hvm::op::HvmOp;
use xen_abi::hypercall::{Hypercall, STUB_SIZE};
use xen_abi::sched::{SchedOp, SchedShutdown, ShutdownReason};
use xen_abi::version::XenVer;

guest::test!(run);

/// Lets ring 3 use every port: without it the OUT of a stub would be a fault of its own.
const IOPL: u64 = 3;

fn run() -> Verdict {
    if hypercall::transport() == Transport::None {
        skip!("no Xen signature in CPUID");
    }
    let instruction = u64::from(hypercall::instruction() == Transport::Vmmcall);
    refused("the instruction", |_| instruction)?;
    let page = hypercall::use_page().addr();
    refused("the page", |nr| page + nr.0 * STUB_SIZE as u64)
}

fn refused(by: &str, how: impl Fn(Hypercall) -> u64) -> Verdict {
    let events = Events::map()?;
    let port = bind_ipi(0)?;
    let mut event = Send { port };
    let mut end = SchedShutdown { reason: ShutdownReason::CRASH };
    let (event, end) = (hypercall::address(&mut event), hypercall::address(&mut end));
    let calls = [
        (Hypercall::XEN_VERSION, u64::from(XenVer::VERSION.0), 0),
        (Hypercall::XEN_VERSION, u64::from(XenVer::CAPABILITIES.0), event),
        (Hypercall::EVENT_CHANNEL_OP, u64::from(EvtchnOp::SEND.0), event),
        (Hypercall::SCHED_OP, u64::from(SchedOp::YIELD.0), 0),
        (Hypercall::SCHED_OP, u64::from(SchedOp::SHUTDOWN.0), end),
        (Hypercall::SET_TIMER_OP, 1, 0),
        (Hypercall::VCPU_OP, 3, 0),
        (Hypercall::HVM_OP, u64::from(HvmOp::GET_PARAM.0), event),
        (Hypercall::MEMORY_OP, 3, event),
        (Hypercall::CONSOLE_IO, 0, 4),
        (Hypercall(60), 0, 0),
    ];
    for (nr, first, second) in calls {
        let answer = cpu::ring3_call(how(nr), nr.0, [first, second, 0, 0, 0, 0], IOPL);
        check_eq!(answer.cast_signed(), Errno::EPERM.to_ret(), "{nr} command {first} in ring 3 by {by}");
    }
    check!(!events.is_pending(port), "ring 3 has sent an event by {by}");
    send(port)?;
    check!(events.is_pending(port), "ring 0 sends no event any more");
    println!("ring 3 by {by}: {} calls refused", calls.len());
    Ok(())
}
