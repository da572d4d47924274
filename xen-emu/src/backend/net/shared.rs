//! What the queues of a vif have in common.

use super::counters::Counters;
use super::proto::chain::Group;
use super::proto::hash::Hash;
use super::proto::multicast::Filter;
use super::proto::offload::{Accepts, VnetHeader};
use super::proto::rate::Rate;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Packets that wait in a queue's inbox; more are dropped.
const INBOX: usize = 256;

/// Packets that another queue has received for this one.
pub struct Inbox {
    packets: Mutex<VecDeque<(VnetHeader, Vec<u8>)>>,
    /// Wakes the queue's thread.
    pub wake: EventFd,
}

/// What the guest can change while it is connected.
#[derive(Clone, Debug, Default)]
pub struct Steering {
    /// Multicast.
    pub filter: Filter,
    /// Hashing.
    pub hash: Hash,
}

/// Shared by the threads of one vif, as long as one frontend is connected.
pub struct Shared {
    steering: Mutex<Steering>,
    /// Counts the changes of `steering`, so that nobody has to lock it for each packet.
    generation: AtomicU32,
    rate: Option<Mutex<Rate>>,
    inboxes: Vec<Inbox>,
    /// What the frontend takes.
    pub accepts: Accepts,
    /// The frontend says when it has posted buffers.
    pub rx_notify: bool,
    /// Counts.
    pub counters: Arc<Counters>,
    stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// For so many queues.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(
        queues: usize,
        accepts: Accepts,
        rx_notify: bool,
        rate: Option<Rate>,
        counters: Arc<Counters>,
    ) -> nix::Result<Shared> {
        let inbox = || {
            let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            Ok(Inbox { packets: Mutex::default(), wake })
        };
        Ok(Shared {
            steering: Mutex::default(),
            generation: AtomicU32::new(0),
            rate: rate.map(Mutex::new),
            inboxes: (0..queues).map(|_| inbox()).collect::<nix::Result<_>>()?,
            accepts,
            rx_notify,
            counters,
            stop: AtomicBool::new(false),
        })
    }

    /// Queues there are.
    pub fn queues(&self) -> usize {
        self.inboxes.len()
    }

    /// The inbox of a queue that there is.
    pub fn inbox(&self, queue: usize) -> Option<&Inbox> {
        self.inboxes.get(queue)
    }

    /// Hands a packet over to another queue; false if that is full.
    pub fn hand_over(&self, queue: usize, header: VnetHeader, packet: Vec<u8>) -> bool {
        let Some(inbox) = self.inbox(queue) else { return false };
        let mut packets = lock(&inbox.packets);
        if packets.len() >= INBOX {
            return false;
        }
        packets.push_back((header, packet));
        drop(packets);
        inbox.wake.write(1).is_ok()
    }

    /// The next packet from another queue.
    pub fn handed(&self, queue: usize) -> Option<(VnetHeader, Vec<u8>)> {
        lock(&self.inbox(queue)?.packets).pop_front()
    }

    /// Changes the steering.
    pub fn steer<R>(&self, change: impl FnOnce(&mut Steering) -> R) -> R {
        let mut steering = lock(&self.steering);
        let result = change(&mut steering);
        self.generation.fetch_add(1, Ordering::Release);
        result
    }

    /// Applies changes of the multicast list; false if one of them does not fit.
    pub fn groups(&self, groups: &[Group]) -> bool {
        let changed = |steering: &mut Steering| groups.iter().filter(|g| steering.filter.change(**g)).count();
        self.steer(changed) == groups.len()
    }

    /// Brings a copy up to date.
    pub fn refresh(&self, copy: &mut (u32, Steering)) {
        if self.generation.load(Ordering::Acquire) != copy.0 {
            let steering = lock(&self.steering);
            *copy = (self.generation.load(Ordering::Acquire), steering.clone());
        }
    }

    /// Whether the guest may send so many bytes now.
    ///
    /// # Errors
    /// When to try again.
    pub fn credit(&self, size: usize) -> Result<(), Instant> {
        self.rate.as_ref().map_or(Ok(()), |rate| lock(rate).take(size, Instant::now()))
    }

    /// Whether the threads are to end.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Ends the threads.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        for inbox in &self.inboxes {
            // An eventfd that is full wakes as well.
            let _ = inbox.wake.write(1);
        }
    }
}
