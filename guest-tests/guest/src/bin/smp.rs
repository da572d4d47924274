//! A second vCPU: started through the APIC, and events between both.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::events::{self, Events, bind_ipi, selector_bit, send, wait_count};
use guest::page::Page;
use guest::{Verdict, acpi, apic, check, check_eq, clock, fail, println, skip, smp, traps};
use xen_abi::hypercall::Hypercall;
use xen_abi::shared_info::VCPU_TIME;
use xen_abi::vcpu::VcpuOp;

guest::test!(run);

const BSP_VECTOR: u8 = 0x40;
const AP_VECTOR: u8 = 0x50;
static INFO: Page = Page::zero();

fn run() -> Verdict {
    let mut cpus = acpi::cpus();
    let (Some(bsp), Some(ap)) = (cpus.next(), cpus.next()) else { skip!("needs 2 vCPUs") };
    println!("cpus {bsp:?} and {ap:?}");
    let events = Events::init(BSP_VECTOR)?;
    check_eq!((bsp.uid, bsp.apic_id), (0, apic::id()), "first CPU of the MADT");
    check_eq!(ap.uid, 1, "processor UID of the second CPU");

    // As Linux: everything of the second vCPU is set up by the first, before it runs.
    let theirs = events.register(1, &INFO, 64)?;
    theirs.set_vector(AP_VECTOR)?;
    let (to_bsp, to_ap) = (bind_ipi(0)?, bind_ipi(1)?);
    for port in [to_bsp, to_ap] {
        events.clear_mask(port);
    }
    events.take_selector();
    theirs.take_selector();
    check!(smp::start(ap.apic_id), "the second CPU does not start");
    println!("the second CPU runs");

    let Some(clock) = clock::snapshot(&INFO, 64 + VCPU_TIME) else {
        fail!("the AP's clock is being written")
    };
    check!(clock.tsc_to_system_mul != 0, "the AP's clock does not run");

    for round in 1..=100 {
        let before = traps::count(AP_VECTOR);
        send(to_ap)?;
        let came = smp::spin_until(|| traps::count(AP_VECTOR) > before);
        check!(came, "round {round}: no upcall on the second CPU");
        check_eq!(theirs.take_selector(), selector_bit(to_ap), "round {round}: selector of the second CPU");
        check!(theirs.clear_pending(to_ap), "round {round}: the port is not pending");

        events::set_ap_port(to_bsp);
        let before = traps::count(BSP_VECTOR);
        check!(smp::send_from_other(), "round {round}: the second CPU does not answer");
        check!(wait_count(BSP_VECTOR, before + 1), "round {round}: no upcall on the first CPU");
        check_eq!(events.take_selector(), selector_bit(to_bsp), "round {round}: selector of the first CPU");
        check!(events.clear_pending(to_bsp), "round {round}: the port is not pending");
    }
    println!("100 events both ways");
    let up = guest::hypercall::call(Hypercall::VCPU_OP, &[VcpuOp::IS_UP.0.into(), 1, 0]);
    check_eq!(up, Ok(1), "is_up of vCPU 1");
    Ok(())
}
