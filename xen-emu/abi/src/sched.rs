//! `HYPERVISOR_sched_op(cmd, arg)` (`public/sched.h`).

use crate::xen::Domid;

open_enum! {
    /// `SCHEDOP_*`.
    pub struct SchedOp(u32) {
        /// Give up the CPU for now; arg NULL.
        YIELD = 0,
        /// Unmask upcalls and wait for one; arg NULL.
        BLOCK = 1,
        /// End the domain; arg `SchedShutdown`. SUSPEND returns 0 when resumed elsewhere, 1 when cancelled.
        SHUTDOWN = 2,
        /// Wait for any of some ports; arg `SchedPoll`.
        POLL = 3,
        /// End another domain; arg `SchedRemoteShutdown`.
        REMOTE_SHUTDOWN = 4,
        /// Remember a reason for the end to come; arg `SchedShutdown`.
        SHUTDOWN_CODE = 5,
        /// Set, poke or remove a watchdog; arg `SchedWatchdog`.
        WATCHDOG = 6,
        /// Pin the vCPU (hardware domain); arg `SchedPinOverride`.
        PIN_OVERRIDE = 7,
    }
}

open_enum! {
    /// `SHUTDOWN_*`: why a domain ended.
    pub struct ShutdownReason(u32) {
        /// Clean end.
        POWEROFF = 0,
        /// Clean end, start again.
        REBOOT = 1,
        /// Save the state.
        SUSPEND = 2,
        /// The guest gave up.
        CRASH = 3,
        /// A watchdog expired.
        WATCHDOG = 4,
        /// Reset Xen's state, keep memory and vCPUs.
        SOFT_RESET = 5,
    }
}

impl ShutdownReason {
    /// Higher values are invalid.
    pub const MAX: u32 = 5;
}

abi_structs! {
    /// `struct sched_shutdown`.
    pub struct SchedShutdown {
        /// `ShutdownReason`.
        pub reason: ShutdownReason,
    }

    /// `struct sched_poll`.
    pub struct SchedPoll {
        /// Guest address of an array of `nr_ports` ports.
        pub ports: u64,
        /// At most 128.
        pub nr_ports: u32,
        /// Zero.
        pub pad: u32,
        /// Absolute system time in ns, 0 for none.
        pub timeout: u64,
    }

    /// `struct sched_poll` of a 32-bit guest.
    pub struct SchedPollCompat {
        /// Guest address of an array of `nr_ports` ports.
        pub ports: u32,
        /// At most 128.
        pub nr_ports: u32,
        /// Absolute system time in ns, 0 for none.
        pub timeout: u64,
    }

    /// `struct sched_remote_shutdown`.
    pub struct SchedRemoteShutdown {
        /// Which domain.
        pub domain_id: Domid,
        /// Zero.
        pub pad: u16,
        /// `ShutdownReason`.
        pub reason: ShutdownReason,
    }

    /// `struct sched_watchdog`: id 0 sets one and returns its id; timeout 0 removes it; else poke.
    pub struct SchedWatchdog {
        /// Watchdog id.
        pub id: u32,
        /// Seconds.
        pub timeout: u32,
    }

    /// `struct sched_pin_override`.
    pub struct SchedPinOverride {
        /// Physical CPU, negative to undo.
        pub pcpu: i32,
    }
}

twins! { SchedPoll / SchedPollCompat { = nr_ports = timeout ~ ports } }

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        SchedShutdown = 4 { reason: 0 }
        SchedPoll = 24 { ports: 0, nr_ports: 8, timeout: 16 }
        SchedPollCompat = 16 { ports: 0, nr_ports: 4, timeout: 8 }
        SchedRemoteShutdown = 8 { domain_id: 0, reason: 4 }
        SchedWatchdog = 8 { id: 0, timeout: 4 }
        SchedPinOverride = 4 { pcpu: 0 }
    }
}
