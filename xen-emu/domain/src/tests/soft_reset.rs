use xen_abi::event_channel::{AllocUnbound, BindVirq, EvtchnOp};
use xen_abi::grant_table::{GnttabOp, SetVersion};
use xen_abi::hvm::op::{EvtchnUpcallVector, HvmOp, XenHvmParam};
use xen_abi::hvm::params::HvmParam;
use xen_abi::memory::{AddToPhysmap, MapSpace, MemoryOp};
use xen_abi::sched::{SchedOp, SchedShutdown, SchedWatchdog, ShutdownReason};
use xen_abi::vcpu::{RegisterArea, RegisterVcpuInfo, VcpuOp};
use xen_abi::xen::{Domid, Port, Virq};

use super::{EVTCHN, GNTTAB, HVM, MEMORY, SCHED, VCPU};
use crate::effect::Backend;
use crate::hypercall::{Outcome, Width};
use crate::mem::{Gfn, SpecialPage};
use crate::testing::{Bench, Effect, result};

const PARTS: [&str; 5] = ["evtchn", "gnttab", "vcpu", "params", "physmap"];

fn connected(b: &mut Bench) -> String {
    for backend in [Backend::Store, Backend::Console] {
        b.with(|domain, cx| domain.connect_backend(backend, cx)).unwrap();
    }
    PARTS.map(|part| b.domain.describe(part)).concat()
}

#[test]
fn after_a_soft_reset_a_domain_is_as_a_new_one() {
    let mut b = Bench::new(Width::Bits64);
    let new = connected(&mut b);
    let table: [u8; 64] = b.get(SpecialPage::GrantFrame(0).home().0);

    // All that a kernel does in its life.
    let to = |space, idx, gpfn| AddToPhysmap { domid: Domid::SELF, size: 0, space, idx, gpfn };
    for arg in
        [to(MapSpace::SHARED_INFO, 0, 3), to(MapSpace::GRANT_TABLE, 0, 100), to(MapSpace::GRANT_TABLE, 2, 4)]
    {
        assert_eq!(b.op(MEMORY, MemoryOp::ADD_TO_PHYSMAP.0, &arg).0, Ok(0));
    }
    let info = RegisterVcpuInfo { mfn: 20, offset: 128, rsvd: 0 };
    b.put(Bench::ARG, &info);
    assert_eq!(result(b.call(VCPU, [VcpuOp::REGISTER_VCPU_INFO.0.into(), 0, Bench::ARG])), Ok(0));
    b.put(Bench::ARG, &RegisterArea { addr: 0x9000 });
    let runstate = VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA.0.into();
    assert_eq!(result(b.call(VCPU, [runstate, 0, Bench::ARG])), Ok(0));
    let timer = BindVirq { virq: Virq::TIMER.0, vcpu: 0, port: Port(0) };
    assert_eq!(b.op(EVTCHN, EvtchnOp::BIND_VIRQ.0, &timer).0, Ok(0));
    let unbound = AllocUnbound { dom: Domid::SELF, remote_dom: Domid::DOM0, port: Port(0) };
    assert_eq!(b.op(EVTCHN, EvtchnOp::ALLOC_UNBOUND.0, &unbound).0, Ok(0));
    let vector = EvtchnUpcallVector { vcpu: 0, vector: 0xf3, pad: [0; 3] };
    assert_eq!(b.op(HVM, HvmOp::SET_EVTCHN_UPCALL_VECTOR.0, &vector).0, Ok(0));
    let via =
        XenHvmParam { domid: Domid::SELF, pad: 0, index: HvmParam::CALLBACK_IRQ, value: 2 << 56 | 0xf3 };
    assert_eq!(b.op(HVM, HvmOp::SET_PARAM.0, &via).0, Ok(0));
    assert_eq!(b.op(SCHED, SchedOp::WATCHDOG.0, &SchedWatchdog { id: 0, timeout: 30 }).0, Ok(1));
    assert_eq!(b.op(GNTTAB, GnttabOp::SET_VERSION.0, &SetVersion { version: 2 }).1.version, 2);
    b.domain.note_vcpu_online(1, true, 0);
    let over = SchedShutdown { reason: ShutdownReason::SOFT_RESET };
    b.put(Bench::ARG, &over);
    assert!(
        matches!(b.call(SCHED, [SchedOp::SHUTDOWN.0.into(), Bench::ARG]), Outcome::Exit(reason) if reason.0 == 5)
    );
    assert_ne!(PARTS.map(|part| b.domain.describe(part)).concat(), new);
    b.effects();

    b.with(|domain, cx| domain.soft_reset(cx)).unwrap();
    let effects = b.effects();
    for wanted in [
        Effect::VcpuInfo(0, None),
        Effect::Runstate(0, None),
        Effect::UpcallVector(0, 0),
        Effect::Callback(0),
        Effect::TimerPort(0, None),
        Effect::Watchdog(1, 0),
        Effect::MapSpecial(SpecialPage::SharedInfo, None),
        Effect::PopulateRam(Gfn(3), 1),
        Effect::PopulateRam(Gfn(4), 1),
    ] {
        assert!(effects.contains(&wanted), "{wanted:?} is missing in {effects:?}");
    }
    assert_eq!(connected(&mut b), new);
    assert_eq!(b.get::<[u8; 64]>(SpecialPage::GrantFrame(0).home().0), table);
    assert_eq!(b.domain.shutdown_code(), None);
    // The next kernel may register anew.
    b.put(Bench::ARG, &info);
    assert_eq!(result(b.call(VCPU, [VcpuOp::REGISTER_VCPU_INFO.0.into(), 0, Bench::ARG])), Ok(0));
}

#[test]
fn after_a_soft_reset_events_are_2_level_and_may_be_fifo_again() {
    let mut b = Bench::with_fifo();
    let new = connected(&mut b);
    for _ in 0..2 {
        b.start_fifo();
        b.with(|d, cx| d.raise_backend(Backend::Console, cx));
        b.effects();
        b.with(|domain, cx| domain.soft_reset(cx)).unwrap();
        let effects = b.effects();
        assert!(effects.contains(&Effect::Fifo(false)), "{effects:?}");
        assert_eq!(connected(&mut b), new);
        let ipi = b.bind_ipi(1).unwrap();
        b.effects();
        b.send(ipi).unwrap();
        assert!(b.seen(ipi, 1).0, "pending in the page that 2-level has");
        b.close(ipi).unwrap();
    }
}
