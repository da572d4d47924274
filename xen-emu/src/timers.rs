//! Timers that the kernel does not run: periodic VIRQ_TIMERs, watchdogs, and the look whether a guest without
//! `\_S5` has ended by halting all its vCPUs with interrupts off, which KVM never reports, and whether the host's clock was set.

use crate::guest::{Guest, lock};
use crate::kvm::vcpu::Mail;
use crate::vm::VmEvent;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xen_abi::xen::Virq;
use xen_emu_api::config::reason;

/// How often an idle guest and the host's clock are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// By how much the host's wall clock has been set, or has been slewed since, when the guest's is set too.
const WALL_SLACK: Duration = Duration::from_millis(50);

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
    /// This vCPU may hang in signalling another domain's process.
    Signalling(u32),
    /// SCHEDOP_watchdog.
    Watchdog(u32),
    /// Look for a guest that has ended by halting, and at the host's clock.
    Look,
}

impl Timer {
    /// It runs by the guest's clock.
    fn is_guests(self) -> bool {
        matches!(self, Timer::Periodic(_) | Timer::Singleshot(_) | Timer::Poll(_))
    }
}

#[derive(Default)]
struct State {
    armed: BTreeMap<Timer, (Instant, Duration)>,
    /// The guest's clock stands still, and so do the timers that go by it.
    held: bool,
    /// What the clock runs to, as far as is known: it may run to nothing any more.
    wound: Option<Instant>,
    stop: bool,
}

impl State {
    fn first(&self) -> Option<(Timer, Instant, Duration)> {
        let runs = self.armed.iter().filter(|(timer, _)| !(self.held && timer.is_guests()));
        runs.map(|(&timer, &(at, every))| (timer, at, every)).min_by_key(|(_, at, _)| *at)
    }
}

/// The armed timers of a domain. A clock of the kernel runs to the first of them: the thread sleeps until then, however often
/// timers are set meanwhile, and a guest sets one for each of its ticks.
pub struct Timers {
    state: Mutex<State>,
    clock: TimerFd,
}

impl Timers {
    /// None armed.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> io::Result<Timers> {
        let clock = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        Ok(Timers { state: Mutex::default(), clock })
    }

    /// Arm or re-arm after so long, or disarm.
    pub fn set(&self, timer: Timer, after: Option<Duration>) {
        let mut state = lock(&self.state);
        match after.and_then(|after| Some((Instant::now().checked_add(after)?, after))) {
            Some(at) => state.armed.insert(timer, at),
            None => state.armed.remove(&timer),
        };
        self.wind(&mut state);
    }

    /// Whether it runs.
    pub fn is_armed(&self, timer: Timer) -> bool {
        lock(&self.state).armed.contains_key(&timer)
    }

    /// The guest's clock stands still.
    pub fn hold(&self) {
        lock(&self.state).held = true;
    }

    /// It goes on, after so long: what runs by it comes that much later.
    pub fn go_on(&self, after: Duration) {
        let mut state = lock(&self.state);
        state.held = false;
        for (_, (at, _)) in state.armed.iter_mut().filter(|(timer, _)| timer.is_guests()) {
            *at = at.checked_add(after).unwrap_or(*at);
        }
        self.wind(&mut state);
    }

    /// Has the clock run to the first timer, or to now at the end.
    fn wind(&self, state: &mut State) {
        let to = if state.stop { Some(Instant::now()) } else { state.first().map(|(_, at, _)| at) };
        if to == state.wound {
            return;
        }
        state.wound = to;
        let wound = match to {
            // No time at all would stop it.
            Some(to) => {
                let left = to.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
                self.clock.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())
            }
            None => self.clock.unset(),
        };
        if let Err(e) = wound {
            crate::log::limited!(warn, "timerfd: {e}");
        }
    }

    /// End the thread in [`run`].
    pub fn stop(&self) {
        let mut state = lock(&self.state);
        state.stop = true;
        self.wind(&mut state);
    }

    /// The next timer that has run out, waiting for it; the periodic ones are re-armed. `None` when stopped.
    fn next(&self) -> Option<Timer> {
        loop {
            let mut state = lock(&self.state);
            if state.stop {
                return None;
            }
            let now = Instant::now();
            if let Some((timer, at, every)) = state.first()
                && at <= now
            {
                if matches!(timer, Timer::Periodic(_) | Timer::Signalling(_) | Timer::Look) {
                    // A late timer does not catch up tick by tick: Xen's periodic timer coalesces too.
                    state.armed.insert(timer, ((at + every).max(now), every));
                } else {
                    state.armed.remove(&timer);
                }
                return Some(timer);
            }
            self.wind(&mut state);
            drop(state);
            if let Err(e) = self.clock.wait() {
                tracing::error!("timers no longer run out: {e}");
                return None;
            }
            // It has run down, unless it was wound meanwhile: then it is wound once more, or runs down for nothing.
            lock(&self.state).wound = None;
        }
    }
}

/// The timer thread of a domain; returns when [`Timers::stop`] was called.
pub fn run(guest: &Arc<Guest>) {
    guest.timers.set(Timer::Look, Some(LOOK));
    let mut last_time = None;
    let mut booted = guest.now().boot_ns();
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
            Timer::Signalling(vcpu) => guest.kick(usize::try_from(vcpu).unwrap_or(usize::MAX)),
            Timer::Watchdog(_) => guest.shut_down(VmEvent::Shutdown(reason::WATCHDOG)),
            Timer::Look => {
                let time: u64 = lock(&guest.threads).iter().map(|thread| thread.time_ns()).sum();
                // Only a guest that used no CPU at all since the last look is disturbed.
                if last_time == Some(time) && guest.mailboxes.running() {
                    guest.online();
                }
                last_time = Some(time);
                let now = guest.now().boot_ns();
                if Duration::from_nanos(now.abs_diff(booted)) > WALL_SLACK {
                    guest.with_domain(|domain, cx| domain.update_wallclock(cx));
                    booted = now;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_run_out_in_their_order_and_once() {
        let timers = Arc::new(Timers::new().unwrap());
        let thread = {
            let timers = timers.clone();
            std::thread::spawn(move || std::iter::from_fn(|| timers.next()).collect::<Vec<_>>())
        };
        let ms = |n| Some(Duration::from_millis(n));
        timers.hold();
        timers.set(Timer::Watchdog(1), ms(3_600_000));
        timers.set(Timer::Singleshot(0), ms(20));
        timers.set(Timer::Poll(1), Some(Duration::ZERO));
        timers.set(Timer::Periodic(2), Some(Duration::ZERO));
        // Set anew while it runs.
        timers.set(Timer::Upcall(3), ms(3_600_000));
        timers.set(Timer::Upcall(3), Some(Duration::ZERO));
        while timers.is_armed(Timer::Upcall(3)) {
            std::thread::yield_now();
        }
        timers.set(Timer::Periodic(2), None);
        timers.go_on(Duration::from_millis(5));
        while lock(&timers.state).armed.len() > 1 {
            std::thread::yield_now();
        }
        timers.stop();
        timers.set(Timer::Poll(1), ms(3_600_000));
        let came = thread.join().unwrap();
        assert_eq!(came, [Timer::Upcall(3), Timer::Poll(1), Timer::Singleshot(0)]);
    }

    /// Another domain's process holds the eventfd by which a vCPU signals it: the vCPU writes, and the timer that is to end that write
    /// is the real one.
    #[test]
    fn a_process_that_fills_its_eventfd_and_has_it_waited_for_holds_up_no_vcpu() {
        use crate::kvm::backends::BackendFds;
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        use vmm_sys_util::signal::{Killable, SIGRTMIN};
        crate::kvm::vcpu::install_kick().unwrap();
        let full = u64::MAX - 1;
        let timers = Arc::new(Timers::new().unwrap());
        let fds = Arc::new(BackendFds { shared: true, ..BackendFds::new().unwrap() });
        fds.kick.write(full).unwrap();
        fds.signal(|_| panic!("a full one is not written to"));
        assert_eq!(fds.kick.read().unwrap(), full);
        let vcpu = {
            let (timers, fds) = (timers.clone(), fds.clone());
            std::thread::spawn(move || {
                let watch = |on: bool| {
                    if on {
                        // What the other process does between our look and our write.
                        fds.kick.write(full).unwrap();
                        let theirs = crate::kvm::ioctl::share(&fds.kick).unwrap();
                        fcntl(theirs, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
                    }
                    timers.set(Timer::Signalling(0), on.then_some(Duration::from_millis(10)));
                };
                fds.signal(watch);
                timers.stop();
            })
        };
        let mut kicks = 0;
        while let Some(timer) = timers.next() {
            assert_eq!(timer, Timer::Signalling(0));
            kicks += 1;
            vcpu.kill(SIGRTMIN()).unwrap();
        }
        vcpu.join().unwrap();
        assert!(kicks > 0, "the write has not waited");
        assert_eq!(fds.kick.read().unwrap(), full, "nothing was added");
    }
}
