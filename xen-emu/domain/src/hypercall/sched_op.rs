//! sched_op(cmd, arg).

use xen_abi::Domid;
use xen_abi::errno::Errno;
use xen_abi::sched::{
    SchedOp, SchedPoll, SchedPollCompat, SchedRemoteShutdown, SchedShutdown, SchedWatchdog,
};
use xen_abi::shared_info::VCPU_UPCALL_PENDING;

use crate::domain::Domain;
use crate::effect::ShutdownReason;
use crate::hypercall::{Answer, Call, Cx, DONE, Handler, Outcome, Until, value};
use crate::vcpu::Waiting;

pub(super) const OPS: &[(u32, Handler)] = &[
    (SchedOp::YIELD.0, |_, _, _| DONE),
    (SchedOp::BLOCK.0, block),
    (SchedOp::SHUTDOWN.0, shutdown),
    (SchedOp::POLL.0, poll),
    (SchedOp::REMOTE_SHUTDOWN.0, remote_shutdown),
    (SchedOp::SHUTDOWN_CODE.0, shutdown_code),
    (SchedOp::WATCHDOG.0, watchdog),
    // The hardware domain's.
    (SchedOp::PIN_OVERRIDE.0, |_, _, _| Err(Errno::EPERM)),
];

/// Ports that one poll may name.
const MAX_POLL_PORTS: u32 = 128;

/// Waits for an upcall, unless one is pending.
fn block(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let mut pending = [0];
    if let Some(info) = domain.vcpu_info(call.vcpu) {
        cx.mem.read(info.offset(VCPU_UPCALL_PENDING as u64), &mut pending)?;
    }
    if pending != [0] {
        return DONE;
    }
    domain.wait(call.vcpu, Waiting::Upcall, None)
}

/// Waits for one of the ports to become pending, masked or not.
fn poll(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let poll = cx.get_twin::<SchedPoll, SchedPollCompat>(call.width, call.arg(1))?;
    if poll.nr_ports > MAX_POLL_PORTS {
        return Err(Errno::EINVAL);
    }
    let at = domain.place(call.vcpu);
    let mut waiting = Waiting::AnyPort;
    for index in 0..poll.nr_ports {
        let port: u32 = cx.get(poll.ports.wrapping_add(u64::from(index) * 4))?;
        if !domain.ports.get(port, domain.width)?.kind.is_open() {
            return Err(Errno::EINVAL);
        }
        if domain.ports.abi.is_pending(cx.mem, &at, port)? {
            return DONE;
        }
        if poll.nr_ports == 1 {
            waiting = Waiting::Port(port);
        }
    }
    let deadline = (poll.timeout != 0).then_some(poll.timeout);
    domain.wait(call.vcpu, waiting, deadline)
}

impl Domain {
    #[expect(clippy::unnecessary_wraps, reason = "the last expression of handlers")]
    fn wait(&mut self, vcpu: u32, waiting: Waiting, deadline: Option<u64>) -> Answer {
        if let Some(vcpu) = self.vcpus.get_mut(vcpu as usize) {
            vcpu.waiting = waiting;
        }
        Ok(Outcome::Block(Until { deadline }))
    }
}

/// The code that SCHEDOP_shutdown_code has set wins, as on Xen.
fn shutdown(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let shutdown: SchedShutdown = cx.get(call.arg(1))?;
    let reason = *domain.shutdown_code.get_or_insert(shutdown.reason.0 & 0xff);
    domain.shutdown_by = call.vcpu;
    Ok(Outcome::Exit(ShutdownReason(reason)))
}

fn shutdown_code(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let shutdown: SchedShutdown = cx.get(call.arg(1))?;
    domain.shutdown_code.get_or_insert(shutdown.reason.0 & 0xff);
    DONE
}

/// Only for device models; of domains that are not ours we know dom0 alone.
fn remote_shutdown(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let remote: SchedRemoteShutdown = cx.get(call.arg(1))?;
    match remote.domain_id {
        id if id == Domid::DOM0 || id == domain.domid() => Err(Errno::EPERM),
        _ => Err(Errno::ESRCH),
    }
}

/// Two watchdogs, numbered from 1; id 0 asks for a free one.
fn watchdog(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let SchedWatchdog { id, timeout } = cx.get(call.arg(1))?;
    if id == 0 {
        if timeout == 0 {
            return Err(Errno::EINVAL);
        }
        let free = (1..).zip(&mut domain.watchdogs).find(|(_, used)| !**used);
        let (id, used) = free.ok_or(Errno::ENOSPC)?;
        *used = true;
        cx.fx.set_watchdog(id, timeout);
        return value(id.into());
    }
    let used = domain.watchdogs.get_mut(id as usize - 1).filter(|used| **used).ok_or(Errno::EINVAL)?;
    *used = timeout != 0;
    cx.fx.set_watchdog(id, timeout);
    DONE
}
