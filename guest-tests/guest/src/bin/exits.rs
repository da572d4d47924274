//! Events to itself and to the console's back-end, for the host to count what they cost: none of them is to reach the
//! domain's process. Then a thousand hypercalls that do, so that it is known that exits are counted.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::events::{Events, bind_ipi, send, status};
use guest::hypercall::hvm_get_param;
use guest::{Verdict, check, check_eq, println};
use xen_abi::hvm::params::HvmParam;
use xen_abi::xen::Port;

guest::test!(run);

const SENDS: u32 = 10_000;
const COUNTED: u32 = 1000;

fn run() -> Verdict {
    let events = Events::map()?;
    let ipi = bind_ipi(0)?;
    for round in 0..SENDS {
        send(ipi)?;
        check!(events.clear_pending(ipi), "IPI {round} is not pending");
    }
    let console = Port(u32::try_from(hvm_get_param(HvmParam::CONSOLE_EVTCHN)?).unwrap_or(0));
    for _ in 0..SENDS {
        send(console)?;
    }
    for _ in 0..COUNTED {
        check_eq!(status(ipi)?.vcpu, 0, "the vCPU of port {ipi}");
    }
    println!("{SENDS} IPIs, {SENDS} notifications, {COUNTED} hypercalls for the host");
    Ok(())
}
