//! What calls and events cost, in TSC cycles: one `BENCH name value` line each, medians.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

use guest::events::{Events, bind_ipi, send, status};
use guest::{Verdict, check, cpu, hypercall, println, smp, traps, xen};
use xen_abi::cpuid::LEAF_TIME;
use xen_abi::hypercall::Hypercall;
use xen_abi::version::XenVer;
use xen_abi::xen::Port;

guest::test!(run);

const VECTOR: u8 = 0x42;
const ROUNDS: usize = 1001;

fn run() -> Verdict {
    let events = Events::init(VECTOR)?;
    let [_, _, khz, _] = xen::leaf(LEAF_TIME, 0);
    println!("BENCH tsc_khz {khz}");
    bench("hypercall_xen_version", || hypercall::op_null(Hypercall::XEN_VERSION, XenVer::VERSION.0).is_ok())?;
    let port = bind_ipi(0)?;
    bench("evtchn_status", || status(port).is_ok())?;
    events.clear_mask(port);
    cpu::sti();
    let verdict = bench("evtchn_send_to_upcall", || round_trip(&events, port));
    cpu::cli();
    verdict
}

fn round_trip(events: &Events, port: Port) -> bool {
    events.take_selector();
    events.clear_pending(port);
    let before = traps::count(VECTOR);
    send(port).is_ok() && smp::spin_until(|| traps::count(VECTOR) != before)
}

/// Prints the median of many rounds; fails if a round does.
fn bench(name: &str, round: impl Fn() -> bool) -> Verdict {
    let mut cycles = [0; ROUNDS];
    for slot in &mut cycles {
        let begin = cpu::rdtsc();
        check!(round(), "{name} fails");
        *slot = cpu::rdtsc().wrapping_sub(begin);
    }
    cycles.sort_unstable();
    println!("BENCH {name} {}", cycles.get(ROUNDS / 2).copied().unwrap_or(0));
    Ok(())
}
