//! The guest's system time, which stands still while the domain is paused.
//!
//! Its TSC does not: a guest that keeps time by that sees how long it has been away, as on Xen.

use crate::guest::{Guest, lock};
use crate::kvm::vcpu::Mail;
use kvm_bindings::kvm_clock_data;
use std::sync::Mutex;
use std::time::Duration;

/// The system time at which the clock was stopped, nanoseconds; `None` while it runs.
#[derive(Debug, Default)]
pub struct Clock(Mutex<Option<u64>>);

impl Guest {
    /// Every vCPU stands still, and so does the clock from now on. KVM's timers would run on: they are taken from it.
    pub fn stop_clock(&self) {
        let posted: Vec<_> =
            (0..).take(self.vectors.len()).filter_map(|vcpu| self.post(vcpu, Mail::Timer)).collect();
        posted.into_iter().for_each(|ticket| self.mailboxes.wait(ticket, None));
        lock(&self.clock.0).get_or_insert_with(|| self.now().system_ns);
        self.timers.hold();
    }

    /// vCPUs will run again: the clock goes on where it stood, timers run out that much later, and the wall clock of system
    /// time 0 is another.
    pub fn start_clock(&self) {
        let Some(stopped) = lock(&self.clock.0).take() else { return };
        let passed = self.now().system_ns.saturating_sub(stopped);
        if let Err(e) = self.vm.set_clock(&kvm_clock_data { clock: stopped, ..Default::default() }) {
            crate::log::limited!(warn, "the guest's clock has gone on while it was paused: {e}");
            return self.timers.go_on(Duration::ZERO);
        }
        self.timers.go_on(Duration::from_nanos(passed));
        self.with_domain(|domain, cx| domain.update_wallclock(cx));
        for vcpu in (0..).take(self.vectors.len()) {
            // They are parked, and read it before they go on.
            let _ = self.post(vcpu, Mail::Clock);
        }
    }
}
