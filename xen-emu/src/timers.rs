//! Timers that the kernel does not run: periodic VIRQ_TIMERs, watchdogs, and the look whether a guest without
//! `\_S5` has ended by halting all its vCPUs with interrupts off, which KVM never reports.

use crate::guest::{Guest, lock};
use crate::kvm::vcpu::Mail;
use crate::vm::VmEvent;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use xen_abi::xen::Virq;
use xen_emu_api::config::reason;

/// How often an idle guest is looked at.
const HALT_CHECK: Duration = Duration::from_secs(1);

/// What runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// VCPUOP_set_periodic_timer of this vCPU.
    Periodic(u32),
    /// A singleshot VIRQ_TIMER of this vCPU, where KVM does not run it.
    Singleshot(u32),
    /// The timeout of a SCHEDOP_poll.
    Poll(u32),
    /// An upcall that a local APIC has refused.
    Upcall(u32),
    /// SCHEDOP_watchdog.
    Watchdog(u32),
    /// Look for a guest that has ended by halting.
    HaltCheck,
}

#[derive(Default)]
struct State {
    armed: BTreeMap<Timer, (Instant, Duration)>,
    stop: bool,
}

/// The armed timers of a domain.
#[derive(Default)]
pub struct Timers {
    state: Mutex<State>,
    changed: Condvar,
}

impl Timers {
    /// Arm or re-arm after so long, or disarm.
    pub fn set(&self, timer: Timer, after: Option<Duration>) {
        let mut state = lock(&self.state);
        let at = after.and_then(|after| Some((Instant::now().checked_add(after)?, after)));
        let Some(at) = at else {
            state.armed.remove(&timer);
            return;
        };
        let first = state.armed.values().map(|armed| armed.0).min();
        state.armed.insert(timer, at);
        // The thread wakes up for what was first before, and looks again.
        if first.is_none_or(|first| at.0 < first) {
            self.changed.notify_all();
        }
    }

    /// End the thread in [`Timers::run`].
    pub fn stop(&self) {
        lock(&self.state).stop = true;
        self.changed.notify_all();
    }

    /// The next timer that has run out, waiting for it; the periodic ones are re-armed. `None` when stopped.
    fn next(&self) -> Option<Timer> {
        let mut state = lock(&self.state);
        loop {
            if state.stop {
                return None;
            }
            let now = Instant::now();
            let first =
                state.armed.iter().min_by_key(|(_, (at, _))| *at).map(|(&t, &(at, every))| (t, at, every));
            match first {
                Some((timer, at, every)) if at <= now => {
                    if !matches!(timer, Timer::Periodic(_) | Timer::HaltCheck) {
                        state.armed.remove(&timer);
                    } else {
                        // A late timer does not catch up tick by tick: Xen's periodic timer coalesces too.
                        state.armed.insert(timer, ((at + every).max(now), every));
                    }
                    return Some(timer);
                }
                first => {
                    let wait = first.map_or(Duration::from_secs(3600), |(_, at, _)| at - now);
                    let waited = self.changed.wait_timeout(state, wait);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

/// The timer thread of a domain; returns when [`Timers::stop`] was called.
pub fn run(guest: &Arc<Guest>) {
    guest.timers.set(Timer::HaltCheck, Some(HALT_CHECK));
    let mut last_time = None;
    while let Some(timer) = guest.timers.next() {
        match timer {
            Timer::Periodic(vcpu) | Timer::Singleshot(vcpu) => {
                guest.with_domain(|domain, cx| domain.raise_virq(Virq::TIMER.0, vcpu, cx))
            }
            Timer::Poll(vcpu) => {
                if lock(&guest.domain).unblocked(vcpu) {
                    guest.post(vcpu, Mail::Wake);
                }
            }
            Timer::Upcall(vcpu) => guest.try_again(vcpu),
            Timer::Watchdog(_) => guest.shut_down(VmEvent::Shutdown(reason::WATCHDOG)),
            Timer::HaltCheck => {
                let time: u64 = lock(&guest.threads).iter().map(|thread| thread.time_ns()).sum();
                // Only a guest that used no CPU at all since the last look is disturbed.
                if last_time == Some(time) && guest.mailboxes.running() {
                    guest.online();
                }
                last_time = Some(time);
            }
        }
    }
}
