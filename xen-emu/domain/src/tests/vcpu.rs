use xen_abi::errno::Errno;
use xen_abi::event_channel::{BindIpi, EvtchnOp, Send};
use xen_abi::hvm::op::{EvtchnUpcallVector, HvmOp, XenHvmParam};
use xen_abi::hvm::params::HvmParam;
use xen_abi::sched::{SchedOp, SchedPoll, SchedWatchdog};
use xen_abi::shared_info::Layout;
use xen_abi::vcpu::{
    RegisterVcpuInfo, RunstateInfo, RunstateInfoCompat, SetSingleshotTimer, VCPU_SSHOTTMR_FUTURE,
    VcpuHvmContext, VcpuHvmX86_64, VcpuOp,
};
use xen_abi::xen::{Domid, Port, VmAssistType};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::{BOTH, EVTCHN, HVM, SCHED, VCPU};
use crate::effect::ShutdownReason;
use crate::hypercall::{Call, Outcome, Until, Width};
use crate::mem::{Gpa, GuestMem, SpecialPage};
use crate::testing::{Bench, Effect, result};

impl Bench {
    fn vcpu_op<T: IntoBytes + Immutable>(&mut self, op: VcpuOp, vcpu: u64, arg: &T) -> Result<i64, Errno> {
        self.put(Self::ARG, arg);
        result(self.call(VCPU, [op.0.into(), vcpu, Self::ARG]))
    }

    fn register_info(&mut self, vcpu: u64, mfn: u64, offset: u32) -> Result<i64, Errno> {
        self.vcpu_op(VcpuOp::REGISTER_VCPU_INFO, vcpu, &RegisterVcpuInfo { mfn, offset, rsvd: 0 })
    }
}

#[test]
fn vcpu_info_is_registered_once_and_keeps_what_was_pending() {
    for width in BOTH {
        let mut b = Bench::new(width);
        let layout = Layout::of(width.into());
        assert_eq!(b.op(EVTCHN, EvtchnOp::BIND_IPI.0, &BindIpi { vcpu: 1, port: Port(0) }).0, Ok(0));
        b.op(EVTCHN, EvtchnOp::SEND.0, &Send { port: Port(1) }).0.unwrap();
        b.effects();
        assert_eq!(b.register_info(1, 20, 4096 - 63), Err(Errno::ENXIO), "crosses the page");
        assert_eq!(b.register_info(1, 20, 2), Err(Errno::ENXIO), "unaligned");
        assert_eq!(b.register_info(1, 64, 0), Err(Errno::EINVAL), "no memory");
        assert_eq!(b.register_info(9, 20, 0), Err(Errno::ENOENT));
        assert_eq!(b.register_info(1, 20, 128), Ok(0));
        let new = Gpa((20 << 12) + 128);
        assert_eq!(b.effects(), [Effect::VcpuInfo(1, Some(new)), Effect::Upcall(1)]);
        let selector = b.get::<u8>(new.0 + layout.vcpu_pending_sel as u64);
        assert_eq!((b.get::<u8>(new.0), selector), (1, 0xff), "it looks at every word");
        for offset in [0, 2] {
            assert_eq!(b.register_info(1, 20, offset), Err(Errno::EBUSY), "once only");
        }
        assert_eq!(b.register_info(2, 20, 4096), Err(Errno::EINVAL), "beyond the page");
        b.domain.note_vcpu_online(2, true, 0);
        assert_eq!(b.register_info(2, 21, 0), Ok(0), "another one that runs");
        let third = Some(Gpa(21 << 12));
        assert_eq!(b.effects(), [Effect::VcpuInfo(2, third), Effect::Upcall(2)]);
        // Events go to the new place from now on.
        b.ram.write(new, &[0; 64]).unwrap();
        let bit = SpecialPage::SharedInfo.home().offset(layout.pending as u64);
        b.ram.store_u32(bit, 0).unwrap();
        b.op(EVTCHN, EvtchnOp::SEND.0, &Send { port: Port(1) }).0.unwrap();
        assert_eq!(b.effects(), [Effect::Upcall(1)]);
        assert_eq!(b.get::<u8>(new.0), 1);
    }
}

#[test]
fn what_came_before_a_late_vcpu_had_its_vcpu_info_is_not_lost() {
    for width in BOTH {
        let mut b = Bench::new(width);
        b.domain.vcpus.resize(34, crate::vcpu::Vcpu::new(false));
        let layout = Layout::of(width.into());
        assert_eq!(b.op(EVTCHN, EvtchnOp::BIND_IPI.0, &BindIpi { vcpu: 33, port: Port(0) }).0, Ok(0));
        b.effects();
        b.op(EVTCHN, EvtchnOp::SEND.0, &Send { port: Port(1) }).0.unwrap();
        assert_eq!(b.effects(), [], "it has no place to be told");
        assert_eq!(b.register_info(33, 20, 64), Ok(0));
        let new = Gpa((20 << 12) + 64);
        assert_eq!(b.effects(), [Effect::VcpuInfo(33, Some(new)), Effect::Upcall(33)]);
        let selector = b.get::<u32>(new.0 + layout.vcpu_pending_sel as u64);
        assert_eq!((b.get::<u8>(new.0), selector), (1, u32::MAX), "it looks at every word");
    }
}

#[test]
fn areas_are_registered_by_virtual_and_by_physical_address() {
    use VcpuOp as Op;
    let mut b = Bench::new(Width::Bits64);
    let area = Gpa(0x9fe8);
    assert_eq!(b.vcpu_op(Op::REGISTER_RUNSTATE_MEMORY_AREA, 0, &area.0), Ok(0), "may straddle pages");
    // Xen finds out at each update, and nobody hears of it: nothing is kept.
    assert_eq!(b.vcpu_op(Op::REGISTER_RUNSTATE_MEMORY_AREA, 0, &0xfff0u64), Ok(0));
    assert_eq!(b.vcpu_op(Op::REGISTER_VCPU_TIME_MEMORY_AREA, 3, &area.0), Ok(0), "two pages");
    assert_eq!(b.vcpu_op(Op::REGISTER_RUNSTATE_MEMORY_AREA, 0, &0u64), Ok(0));
    assert_eq!(b.vcpu_op(Op::REGISTER_VCPU_TIME_MEMORY_AREA, 3, &0x9fe0u64), Ok(0));
    assert_eq!(b.vcpu_op(Op::REGISTER_RUNSTATE_PHYS_AREA, 1, &0x2_0000u64), Ok(0), "no translation");
    assert_eq!(b.vcpu_op(Op::REGISTER_RUNSTATE_PHYS_AREA, 1, &area.0), Err(Errno::ENXIO));
    assert_eq!(b.vcpu_op(Op::REGISTER_VCPU_TIME_PHYS_AREA, 1, &4u64), Err(Errno::ENXIO));
    assert_eq!(b.vcpu_op(Op::REGISTER_VCPU_TIME_PHYS_AREA, 1, &(1u64 << 56)), Err(Errno::EINVAL), "a home");
    assert_eq!(b.vcpu_op(Op::REGISTER_VCPU_TIME_PHYS_AREA, 1, &u64::MAX), Ok(0));
    assert_eq!(
        b.effects(),
        [
            Effect::Runstate(0, Some(area)),
            Effect::Runstate(0, None),
            Effect::TimeInfo(3, Some(area)),
            Effect::Runstate(0, None),
            Effect::TimeInfo(3, Some(Gpa(0x9fe0))),
            Effect::Runstate(1, Some(Gpa(0x2_0000))),
            Effect::TimeInfo(1, None),
        ]
    );
}

#[test]
fn runstate_is_told_in_both_layouts() {
    for width in BOTH {
        let mut b = Bench::new(width);
        assert_eq!(b.vcpu_op(VcpuOp::GET_RUNSTATE_INFO, 2, &0u64), Ok(0));
        let (entry, time) = match width {
            Width::Bits64 => {
                let info: RunstateInfo = b.get(Bench::ARG);
                (info.state_entry_time, info.time)
            }
            Width::Bits32 => {
                let info: RunstateInfoCompat = b.get(Bench::ARG);
                (info.state_entry_time.get(), info.time.map(|time| time.get()))
            }
        };
        // It never ran: blocked until it is known to be down, from the beginning on.
        assert_eq!((entry, time), (0, [1, 2, 0, 7]));
    }
}

#[test]
fn runstate_tells_since_when_a_vcpu_is_down() {
    let mut b = Bench::new(Width::Bits64);
    b.domain.note_vcpu_online(1, true, 0);
    let told = |b: &mut Bench| {
        assert_eq!(b.vcpu_op(VcpuOp::GET_RUNSTATE_INFO, 1, &0u64), Ok(0));
        let info: RunstateInfo = b.get(Bench::ARG);
        (info.state.0, info.state_entry_time, info.time)
    };
    let went = b.now.system_ns;
    assert_eq!(told(&mut b), (0, 101, [1 + went - 101, 2, 3, 4]), "it has run since");
    assert_eq!(b.vcpu_op(VcpuOp::DOWN, 1, &0u64), Ok(0));
    b.now.system_ns += 2;
    assert_eq!(told(&mut b), (3, went, [1, 2, 1, 6]));
}

/// The first part of a call, in which the machine is to look at the vCPU, and the second.
fn with_a_look(b: &mut Bench, op: VcpuOp, online: bool) -> Outcome {
    let call = Call { vcpu: 0, nr: VCPU, args: [0; 6], width: b.width, cpl: 0 };
    let first = b.raw(call.with_args([op.0.into(), 1, Bench::ARG]));
    let Outcome::Again(rest) = first else { panic!("{op}: {first:?}") };
    b.domain.note_vcpu_online(1, online, 0);
    b.raw(rest)
}

#[test]
fn a_vcpu_that_came_up_without_a_word_is_known_to_run() {
    use VcpuOp as Op;
    let mut b = Bench::new(Width::Bits64);
    b.put(Bench::ARG, &VcpuHvmContext { mode: 1, pad: 0, cpu_regs: [0; 120] });
    assert_eq!(result(with_a_look(&mut b, Op::INITIALISE, true)), Err(Errno::EEXIST));
    b.domain.note_vcpu_online(1, false, 0);
    assert_eq!(result(with_a_look(&mut b, Op::UP, true)), Ok(0));
    assert_eq!(b.effects(), [], "its registers are its own");
    assert_eq!(b.vcpu_op(Op::INITIALISE, 2, &good_context()), Ok(0));
    b.domain.note_vcpu_online(2, true, 0);
    assert_eq!((b.vcpu_op(Op::DOWN, 2, &0u64), b.vcpu_op(Op::UP, 2, &0u64)), (Ok(0), Ok(0)));
    assert_eq!(b.effects(), [Effect::VcpuDown(2), Effect::VcpuUp(2, None)], "by INIT before it was let up");
}

/// 64 bits, with paging.
fn good_context() -> VcpuHvmContext {
    let regs = VcpuHvmX86_64 {
        rip: 0x1234,
        cr0: 1 << 31 | 1,
        cr4: 1 << 5,
        efer: 1 << 8,
        ..VcpuHvmX86_64::new_zeroed()
    };
    let mut context = VcpuHvmContext { mode: 1, pad: 0, cpu_regs: [0; 120] };
    regs.write_to_prefix(&mut context.cpu_regs).unwrap();
    context
}

#[test]
fn events_that_come_while_a_vcpu_info_moves_are_not_lost() {
    let mut b = Bench::new(Width::Bits64);
    b.put(Bench::ARG, &RegisterVcpuInfo { mfn: 20, offset: 64, rsvd: 0 });
    let call = Call { vcpu: 0, nr: VCPU, args: [0; 6], width: b.width, cpl: 0 };
    let register = [VcpuOp::REGISTER_VCPU_INFO.0.into(), 1, Bench::ARG];
    let Outcome::Again(rest) = b.raw(call.with_args(register)) else { panic!("it waits for the machine") };
    // The vCPU runs with the new place already, and has taken its flag; the machine still has the old one.
    b.ram.write(Gpa((20 << 12) + 64), &[0; 16]).unwrap();
    assert_eq!(result(b.raw(rest)), Ok(0));
    assert_eq!(b.get::<[u64; 2]>((20 << 12) + 64), [1, u64::MAX]);
    assert_eq!(b.effects().last(), Some(&Effect::Upcall(1)));
}

#[test]
fn a_vcpu_that_is_refused_wants_another_state() {
    use VcpuOp as Op;
    let mut b = Bench::new(Width::Bits64);
    let context = good_context();
    assert_eq!(b.vcpu_op(Op::INITIALISE, 1, &context), Ok(0));
    assert_eq!((b.vcpu_op(Op::UP, 1, &0u64), b.vcpu_op(Op::IS_UP, 1, &0u64)), (Ok(0), Ok(1)));
    b.domain.note_vcpu_refused(1, 0);
    assert_eq!((b.vcpu_op(Op::IS_UP, 1, &0u64), b.vcpu_op(Op::UP, 1, &0u64)), (Ok(0), Err(Errno::EINVAL)));
    assert_eq!((b.vcpu_op(Op::INITIALISE, 1, &context), b.vcpu_op(Op::UP, 1, &0u64)), (Ok(0), Ok(0)));
    assert_eq!(b.domain.vcpus.iter().filter(|vcpu| vcpu.online).count(), 2);
}

#[test]
fn a_vcpu_that_has_had_an_init_wants_another_state() {
    use VcpuOp as Op;
    let mut b = Bench::new(Width::Bits64);
    let context = good_context();
    b.domain.note_vcpu_online(1, true, 0);
    b.domain.note_vcpu_init(1, 0);
    assert_eq!((b.vcpu_op(Op::IS_UP, 1, &0u64), b.vcpu_op(Op::UP, 1, &0u64)), (Ok(0), Err(Errno::EINVAL)));
    assert_eq!(b.vcpu_op(Op::INITIALISE, 1, &context), Ok(0));
    b.domain.note_vcpu_init(1, 0);
    assert_eq!(b.vcpu_op(Op::UP, 1, &0u64), Ok(0), "the INIT was before that");
    assert_eq!(b.effects(), [Effect::VcpuUp(1, Some(0x1234))]);
    assert_eq!(b.vcpu_op(Op::DOWN, 1, &0u64), Ok(0));
    b.domain.note_vcpu_init(1, 0);
    assert_eq!(b.vcpu_op(Op::UP, 1, &0u64), Ok(0), "it is about to be halted, whatever it looks like");
}

#[test]
fn a_vcpu_beyond_the_legacy_ones_needs_no_vcpu_info_to_begin() {
    let mut b = Bench::new(Width::Bits64);
    b.domain.vcpus.resize(34, crate::vcpu::Vcpu::new(false));
    assert_eq!(b.vcpu_op(VcpuOp::INITIALISE, 33, &good_context()), Ok(0));
}

#[test]
fn a_vcpu_that_is_taken_down_in_a_hypercall_stays_down() {
    use VcpuOp as Op;
    let mut b = Bench::new(Width::Bits64);
    b.domain.note_vcpu_online(1, true, 0);
    assert_eq!(b.vcpu_op(Op::DOWN, 1, &0u64), Ok(0));
    b.domain.note_vcpu_online(1, true, 0);
    assert!(!b.domain.vcpu_online(1), "it has not heard of it");
    assert_eq!(b.vcpu_op(Op::UP, 1, &0u64), Ok(0));
    b.domain.note_vcpu_online(1, false, 0);
    assert!(b.domain.vcpu_online(1), "nor of this");
    assert_eq!(b.effects(), [Effect::VcpuDown(1), Effect::VcpuUp(1, None)]);
    assert_eq!(b.vcpu_op(Op::DOWN, 1, &0u64), Ok(0));
    b.domain.note_vcpu_halted(1);
    b.domain.note_vcpu_online(1, true, 0);
    assert!(b.domain.vcpu_online(1), "by INIT and SIPI");
}

#[test]
fn an_assist_that_the_machine_has_not_is_invalid() {
    let mut b = Bench::new(Width::Bits64);
    let flag = [0, VmAssistType::RUNSTATE_UPDATE_FLAG.0.into()];
    assert_eq!(result(b.call(21, flag)), Ok(0));
    b.fx.no_update_flag = true;
    assert_eq!(result(b.call(21, flag)), Err(Errno::EINVAL));
}

#[test]
fn timers_follow_xens_rules() {
    use VcpuOp as Op;
    for width in BOTH {
        let mut b = Bench::new(width);
        let past = SetSingleshotTimer { timeout_abs_ns: 4, flags: VCPU_SSHOTTMR_FUTURE, pad: 0 };
        assert_eq!(b.vcpu_op(Op::SET_SINGLESHOT_TIMER, 1, &past), Err(Errno::EINVAL), "one's own only");
        assert_eq!(b.vcpu_op(Op::SET_SINGLESHOT_TIMER, 0, &past), Ok(0), "a past one is due at once");
        assert_eq!(b.vcpu_op(Op::STOP_SINGLESHOT_TIMER, 0, &0u64), Ok(0));
        assert_eq!(b.vcpu_op(Op::SET_PERIODIC_TIMER, 1, &999_999u64), Err(Errno::EINVAL));
        assert_eq!(b.vcpu_op(Op::SET_PERIODIC_TIMER, 1, &(1u64 << 62)), Err(Errno::EINVAL));
        assert_eq!(b.vcpu_op(Op::SET_PERIODIC_TIMER, 1, &((1u64 << 62) - 1)), Ok(0));
        assert_eq!(b.vcpu_op(Op::SET_PERIODIC_TIMER, 1, &1_000_000u64), Ok(0));
        assert_eq!(b.vcpu_op(Op::STOP_PERIODIC_TIMER, 1, &0u64), Ok(0));
        let set_timer = match width {
            Width::Bits64 => [0x1_0000_0002, 0],
            Width::Bits32 => [2, 1],
        };
        assert_eq!(result(b.call(15, set_timer)), Ok(0));
        assert_eq!(
            b.effects(),
            [
                Effect::Singleshot(0, Some(4)),
                Effect::Singleshot(0, None),
                Effect::Periodic(1, Some((1 << 62) - 1)),
                Effect::Periodic(1, Some(1_000_000)),
                Effect::Periodic(1, None),
                Effect::Singleshot(0, Some(0x1_0000_0002)),
            ]
        );
    }
}

#[test]
fn the_vcpu_is_looked_for_before_the_operation() {
    let mut b = Bench::new(Width::Bits64);
    assert_eq!(b.vcpu_op(VcpuOp(99), 1, &0u64), Err(Errno::ENOSYS));
    assert_eq!(b.vcpu_op(VcpuOp(99), 9, &0u64), Err(Errno::ENOENT));
}

#[test]
fn vcpus_come_up_and_the_last_one_down_ends_the_domain() {
    use VcpuOp as Op;
    let mut b = Bench::new(Width::Bits64);
    assert_eq!(b.vcpu_op(Op::UP, 1, &0u64), Err(Errno::EINVAL), "no register values yet");
    let context = good_context();
    assert_eq!(b.vcpu_op(Op::INITIALISE, 1, &VcpuHvmContext { mode: 2, ..context }), Err(Errno::EINVAL));
    assert_eq!(b.vcpu_op(Op::INITIALISE, 1, &context), Ok(0));
    assert_eq!(b.vcpu_op(Op::INITIALISE, 1, &context), Err(Errno::EEXIST));
    assert_eq!((b.vcpu_op(Op::IS_UP, 1, &0u64), b.vcpu_op(Op::IS_UP, 0, &0u64)), (Ok(0), Ok(1)));
    assert_eq!((b.vcpu_op(Op::UP, 1, &0u64), b.vcpu_op(Op::IS_UP, 1, &0u64)), (Ok(0), Ok(1)));
    assert_eq!((b.vcpu_op(Op::DOWN, 0, &0u64), b.domain.vcpu_online(0)), (Ok(0), false));
    assert_eq!(b.vcpu_op(Op::SEND_NMI, 1, &0u64), Err(Errno::EINVAL), "takes no argument");
    assert_eq!(result(b.call(VCPU, [Op::SEND_NMI.0.into(), 1, 0])), Ok(0));
    assert_eq!(b.vcpu_op(Op::GET_PHYSID, 1, &0u64), Err(Errno::EINVAL));
    assert_eq!(b.effects(), [Effect::VcpuUp(1, Some(0x1234)), Effect::VcpuDown(0), Effect::Nmi(1)]);
    assert_eq!((b.vcpu_op(Op::UP, 0, &0u64), b.vcpu_op(Op::UP, 0, &0u64)), (Ok(0), Ok(0)));
    assert_eq!(b.effects(), [Effect::VcpuUp(0, None)], "it goes on where it was");
    assert_eq!(b.vcpu_op(Op::DOWN, 0, &0u64), Ok(0));
    b.domain.note_vcpu_online(3, true, 0);
    assert_eq!(b.vcpu_op(Op::DOWN, 1, &0u64), Ok(0));
    let last = b.call(VCPU, [Op::DOWN.0.into(), 3, 0]);
    assert_eq!((last, b.domain.shutdown_code()), (Outcome::Exit(ShutdownReason(0)), Some(0)));
}

#[test]
fn poll_waits_for_its_port_even_masked() {
    for width in BOTH {
        let mut b = Bench::new(width);
        for _ in 0..3 {
            b.op(EVTCHN, EvtchnOp::BIND_IPI.0, &BindIpi { vcpu: 1, port: Port(0) }).0.unwrap();
        }
        let mask = SpecialPage::SharedInfo.home().offset(Layout::of(width.into()).mask as u64);
        b.ram.fetch_or_u32(mask, 0xff).unwrap();
        b.effects();
        let poll = |b: &mut Bench, nr_ports: u32, timeout: u64| {
            b.put(0x9000, &[1u32, 2]);
            let poll = SchedPoll { ports: 0x9000, nr_ports, pad: 0, timeout };
            match b.width {
                Width::Bits64 => b.put(Bench::ARG, &poll),
                Width::Bits32 => b.put(Bench::ARG, &poll.to_compat()),
            }
            b.call(SCHED, [SchedOp::POLL.0.into(), Bench::ARG])
        };
        assert_eq!(result(poll(&mut b, 129, 0)), Err(Errno::EINVAL));
        let send = |b: &mut Bench, port| {
            b.vcpu = 1;
            b.op(EVTCHN, EvtchnOp::SEND.0, &Send { port: Port(port) }).0.unwrap();
            b.vcpu = 0;
            b.effects()
        };
        assert_eq!(poll(&mut b, 2, 0), Outcome::Block(Until { deadline: None }));
        assert_eq!(
            send(&mut b, 3),
            [Effect::Wake(0)],
            "any event of the domain ends a poll of several ports"
        );
        assert_eq!(poll(&mut b, 1, 77), Outcome::Block(Until { deadline: Some(77) }));
        assert_eq!(send(&mut b, 2), [], "not its port");
        assert_eq!(send(&mut b, 1), [Effect::Wake(0)]);
        assert_eq!(poll(&mut b, 1, 0), Outcome::Done(0), "pending now");
        b.with(|domain, _| domain.unblocked(0));
        assert_eq!(send(&mut b, 1), []);
        b.put(0x9000, &[1u32, 5000]);
        assert_eq!(result(b.call(SCHED, [SchedOp::POLL.0.into(), 0x2_0000])), Err(Errno::EFAULT));
    }
}

#[test]
fn shutdown_watchdogs_and_block() {
    let mut b = Bench::new(Width::Bits64);
    let block = [SchedOp::BLOCK.0.into()];
    assert_eq!(b.call(SCHED, block), Outcome::Block(Until { deadline: None }));
    b.ram.fetch_or_u8(SpecialPage::SharedInfo.home(), 1).unwrap();
    assert_eq!((b.call(SCHED, block), b.call(SCHED, [0])), (Outcome::Done(0), Outcome::Done(0)));
    let mut dog = |id, timeout| b.op(SCHED, SchedOp::WATCHDOG.0, &SchedWatchdog { id, timeout }).0;
    assert_eq!(
        (dog(0, 0), dog(1, 5), dog(3, 5)),
        (Err(Errno::EINVAL), Err(Errno::EINVAL), Err(Errno::EINVAL))
    );
    assert_eq!((dog(0, 5), dog(0, 6), dog(0, 7)), (Ok(1), Ok(2), Err(Errno::ENOSPC)));
    assert_eq!((dog(1, 0), dog(1, 9), dog(0, 8)), (Ok(0), Err(Errno::EINVAL), Ok(1)));
    let asked = [(1, 5), (2, 6), (1, 0), (1, 8)].map(|(id, s)| Effect::Watchdog(id, s));
    assert_eq!(b.effects(), asked);
    assert_eq!(b.op(SCHED, SchedOp::REMOTE_SHUTDOWN.0, &[0u32, 0]).0, Err(Errno::EPERM));
    assert_eq!(b.op(SCHED, SchedOp::PIN_OVERRIDE.0, &0u32).0, Err(Errno::EPERM));
    for code in [4_u32, 2] {
        b.op(SCHED, SchedOp::SHUTDOWN_CODE.0, &code).0.unwrap();
    }
    b.put(Bench::ARG, &3u32);
    let end = b.call(SCHED, [SchedOp::SHUTDOWN.0.into(), Bench::ARG]);
    assert_eq!(end, Outcome::Exit(ShutdownReason(4)), "the code set first wins");
}

#[test]
fn callbacks_vectors_and_the_latched_width() {
    let mut b = Bench::new(Width::Bits64);
    let set = |b: &mut Bench, index, value| {
        b.op(HVM, HvmOp::SET_PARAM.0, &XenHvmParam { domid: Domid::SELF, pad: 0, index, value }).0
    };
    assert_eq!(set(&mut b, HvmParam::CALLBACK_IRQ, 2 << 56 | 0xf3), Ok(0));
    // No interrupt lines here: whatever is no vector is kept and does nothing.
    for other in [1, 0, 1 << 56 | 0x1000_0010, 3 << 56 | 0x40, u64::MAX] {
        assert_eq!(set(&mut b, HvmParam::CALLBACK_IRQ, other), Ok(0));
        let long = Effect::LatchLongMode(true);
        let before = if other == 1 { vec![long.clone(), Effect::Callback(0xf3)] } else { vec![] };
        assert_eq!(b.effects(), [before, vec![long]].concat(), "{other:#x}");
        assert_eq!(b.domain.callback, 0xf3);
    }
    b.with(|domain, cx| domain.announce_callback(cx));
    assert_eq!(b.effects(), [Effect::Callback(0xf3)], "nor when it goes another way");
    let vector = |vcpu, vector| EvtchnUpcallVector { vcpu, vector, pad: [0; 3] };
    let mut upcall = |v| b.op(HVM, HvmOp::SET_EVTCHN_UPCALL_VECTOR.0, &v).0;
    assert_eq!((upcall(vector(1, 0xf)), upcall(vector(4, 0xf3))), (Err(Errno::EINVAL), Err(Errno::ENOENT)));
    assert_eq!(upcall(vector(1, 0xf3)), Ok(0));
    assert_eq!(b.effects(), [Effect::UpcallVector(1, 0xf3)]);
    assert_eq!(set(&mut b, HvmParam::CALLBACK_IRQ, 2 << 56 | 0xf), Ok(0), "no vector for an interrupt");
    assert_eq!(b.effects(), [Effect::LatchLongMode(true), Effect::Callback(0)]);
    b.width = Width::Bits32;
    set(&mut b, HvmParam::CALLBACK_IRQ, 0).unwrap();
    assert_eq!(b.effects()[0], Effect::LatchLongMode(false));
    assert_eq!(b.get::<u32>(SpecialPage::SharedInfo.home().0 + 0x904), 1_700_000_000, "the clock moved too");
    assert_eq!(set(&mut b, HvmParam::STORE_PFN, 1), Err(Errno::EPERM));
    assert_eq!(set(&mut b, HvmParam::STORE_EVTCHN, 9), Ok(0));
    assert_eq!(set(&mut b, HvmParam(4), 9), Err(Errno::EINVAL));
    assert_eq!(set(&mut b, HvmParam(39), 9), Err(Errno::EINVAL));
    assert_eq!(set(&mut b, HvmParam::ACPI_IOPORTS_LOCATION, 2), Err(Errno::EINVAL));
    assert_eq!(b.domain.describe("params"), "params: STORE_EVTCHN = 0x9\n");
}
