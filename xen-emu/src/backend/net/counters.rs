//! What a vif has done.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($( $(#[$doc:meta])* $name:ident, )*) => {
        /// Counts since the domain began, of all queues.
        #[derive(Debug, Default)]
        pub struct Counters {
            $( $(#[$doc])* pub $name: AtomicU64, )*
        }

        impl Counters {
            /// Names and counts.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$( (stringify!($name), self.$name.load(Ordering::Relaxed)), )*]
            }
        }
    };
}

counters! {
    /// Packets from the guest.
    tx_packets,
    /// Their bytes.
    tx_bytes,
    /// Chains answered with an error.
    tx_errors,
    /// Packets to the guest.
    rx_packets,
    /// Their bytes.
    rx_bytes,
    /// Bytes of them that were copied by us, and not put into the guest's pages by the kernel.
    rx_copied,
    /// Packets for the guest that it did not get: filtered, or of no size or kind that it takes.
    rx_dropped,
    /// Receive requests answered with an error.
    rx_errors,
    /// Reads and writes of packets.
    syscalls,
    /// Notifications of the guest.
    notifies,
    /// Times that a thread woke up.
    wakeups,
}

/// Counts.
pub fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}
