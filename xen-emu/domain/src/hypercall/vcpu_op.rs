//! vcpu_op(cmd, vcpu, arg): up and down, timers, runstate. Registered areas are in `vcpu_area`.

use xen_abi::errno::Errno;
use xen_abi::sched;
use xen_abi::vcpu::{
    Runstate, RunstateInfo, SetPeriodicTimer, SetSingleshotTimer, SetSingleshotTimerCompat, VcpuHvmContext,
    VcpuOp,
};

use crate::domain::Domain;
use crate::effect::{ShutdownReason, VcpuId};
use crate::hypercall::vcpu_context::start_state;
use crate::hypercall::{Answer, Call, Cx, DONE, Handler, Outcome, Width, value, vcpu_area};

pub(super) const OPS: &[(u32, Handler)] = &[
    (VcpuOp::INITIALISE.0, initialise),
    (VcpuOp::UP.0, up),
    (VcpuOp::DOWN.0, down),
    (VcpuOp::IS_UP.0, is_up),
    (VcpuOp::GET_RUNSTATE_INFO.0, get_runstate_info),
    (VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA.0, vcpu_area::runstate_virt),
    (VcpuOp::SET_PERIODIC_TIMER.0, set_periodic_timer),
    (VcpuOp::STOP_PERIODIC_TIMER.0, stop_periodic_timer),
    (VcpuOp::SET_SINGLESHOT_TIMER.0, set_singleshot_timer),
    (VcpuOp::STOP_SINGLESHOT_TIMER.0, stop_singleshot_timer),
    (VcpuOp::REGISTER_VCPU_INFO.0, vcpu_area::vcpu_info),
    (VcpuOp::SEND_NMI.0, send_nmi),
    (VcpuOp::GET_PHYSID.0, get_physid),
    (VcpuOp::REGISTER_VCPU_TIME_MEMORY_AREA.0, vcpu_area::time_virt),
    (VcpuOp::REGISTER_RUNSTATE_PHYS_AREA.0, vcpu_area::runstate_phys),
    (VcpuOp::REGISTER_VCPU_TIME_PHYS_AREA.0, vcpu_area::time_phys),
];

/// Periods below a millisecond are refused, and so are those beyond Xen's STIME_DELTA_MAX.
const MIN_PERIOD: u64 = 1_000_000;
const MAX_PERIOD: u64 = u64::MAX >> 2;

/// The vCPU that the call is about.
///
/// # Errors
/// -ENOENT if there is none.
pub(super) fn subject(domain: &Domain, call: &Call) -> Result<VcpuId, Errno> {
    domain.vcpu(call.arg32(1)).map(|_| call.arg32(1))
}

fn initialise(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = subject(domain, call)?;
    if let Some(again) = look_first(domain, call, cx, std::iter::once(id))? {
        return Ok(again);
    }
    let context: VcpuHvmContext = cx.get(call.arg(2))?;
    if domain.vcpu(id)?.initialised {
        return Err(Errno::EEXIST);
    }
    let start = start_state(&context, &domain.config.processor)?;
    let vcpu = domain.vcpu_mut(id)?;
    vcpu.initialised = true;
    vcpu.start = Some(Box::new(start));
    DONE
}

fn up(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = subject(domain, call)?;
    if let Some(again) = look_first(domain, call, cx, std::iter::once(id))? {
        return Ok(again);
    }
    let now = (cx.now)().system_ns;
    let vcpu = domain.vcpu_mut(id)?;
    if !vcpu.initialised {
        return Err(Errno::EINVAL);
    }
    if vcpu.turn(true, now) {
        cx.fx.vcpu_up(id, vcpu.start.take().as_deref());
    }
    DONE
}

/// Has the machine look at `vcpus` first, as an AP comes up by INIT and SIPI without a word to us: the call is made
/// again when it has.
pub(super) fn look_first(
    domain: &mut Domain,
    call: &Call,
    cx: &mut Cx<'_>,
    vcpus: impl Iterator<Item = VcpuId>,
) -> Result<Option<Outcome>, Errno> {
    let caller = domain.vcpu_mut(call.vcpu)?;
    caller.posted = !caller.posted;
    if !caller.posted {
        return Ok(None);
    }
    vcpus.filter(|&id| id != call.vcpu).for_each(|id| cx.fx.look_at(id));
    Ok(Some(Outcome::Again(*call)))
}

/// The last vCPU that goes down takes the domain with it.
fn down(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = subject(domain, call)?;
    let all = 0..domain.config.max_vcpus;
    if let Some(again) = look_first(domain, call, cx, all)? {
        return Ok(again);
    }
    let others = (0..).zip(&domain.vcpus).any(|(other, vcpu)| other != id && vcpu.online);
    if !others {
        let code = *domain.shutdown_code.get_or_insert(sched::ShutdownReason::POWEROFF.0);
        return Ok(Outcome::Exit(ShutdownReason(code)));
    }
    let now = (cx.now)().system_ns;
    let vcpu = domain.vcpu_mut(id)?;
    if vcpu.turn(false, now) {
        vcpu.halting = true;
        cx.fx.vcpu_down(id);
    }
    DONE
}

fn is_up(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = subject(domain, call)?;
    if let Some(again) = look_first(domain, call, cx, std::iter::once(id))? {
        return Ok(again);
    }
    value(domain.vcpu(id)?.online.into())
}

fn get_runstate_info(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = subject(domain, call)?;
    if let Some(again) = look_first(domain, call, cx, std::iter::once(id))? {
        return Ok(again);
    }
    let (told, now) = (cx.fx.runstate(id), (cx.now)().system_ns);
    let vcpu = domain.vcpu(id)?;
    let now = if vcpu.online { told.until(now) } else { told.offline(vcpu.since, now) };
    let info = RunstateInfo {
        state: Runstate(now.state.cast_unsigned()),
        pad: 0,
        state_entry_time: now.entry_time,
        time: now.time,
    };
    match call.width {
        Width::Bits64 => cx.put(call.arg(2), &info)?,
        Width::Bits32 => cx.put(call.arg(2), &info.to_compat())?,
    }
    DONE
}

fn set_periodic_timer(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = subject(domain, call)?;
    let SetPeriodicTimer { period_ns } = cx.get(call.arg(2))?;
    if !(MIN_PERIOD..=MAX_PERIOD).contains(&period_ns) {
        return Err(Errno::EINVAL);
    }
    cx.fx.set_periodic(id, Some(period_ns));
    DONE
}

fn stop_periodic_timer(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = subject(domain, call)?;
    cx.fx.set_periodic(id, None);
    DONE
}

/// A vCPU sets its own singleshot timer only.
fn own(domain: &Domain, call: &Call) -> Result<VcpuId, Errno> {
    match subject(domain, call)? {
        id if id == call.vcpu => Ok(id),
        _ => Err(Errno::EINVAL),
    }
}

/// Xen ignores VCPU_SSHOTTMR_FUTURE (since its commit 19c6cbd90965 of 2023): a past time is due at once.
fn set_singleshot_timer(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = own(domain, call)?;
    let set = cx.get_twin::<SetSingleshotTimer, SetSingleshotTimerCompat>(call.width, call.arg(2))?;
    cx.fx.set_singleshot(id, Some(set.timeout_abs_ns));
    DONE
}

fn stop_singleshot_timer(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = own(domain, call)?;
    cx.fx.set_singleshot(id, None);
    DONE
}

fn send_nmi(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = subject(domain, call)?;
    if call.arg(2) != 0 {
        return Err(Errno::EINVAL);
    }
    cx.fx.nmi(id);
    DONE
}

/// Only vCPUs pinned for the hardware domain have a physical id to tell.
fn get_physid(domain: &mut Domain, call: &Call, _: &mut Cx<'_>) -> Answer {
    subject(domain, call)?;
    Err(Errno::EINVAL)
}
