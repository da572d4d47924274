//! One queue of a disk: a ring, an event channel, a thread. What the thread does is in [`super::run`].

use super::pins::Pages;
use super::proto::{Abi, Limits, SECTOR_SHIFT};
use super::run::Run;
use crate::backend::device::{Connection, DeviceError, EventChannel, GuestRam};
use crate::disk::Disk;
use crate::disk::engine::{self, EngineKind};
use crate::log::limited;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use xen_abi::Gref;
use xen_domain::ring::BackRing;

/// What the queues of a device have done, for `describe` and for the bench.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests answered.
    pub requests: AtomicU64,
    /// Of those, not with OKAY.
    pub errors: AtomicU64,
    /// Requests whose data lay in pieces that follow each other in host memory, at least in part.
    pub merged: AtomicU64,
    /// Turns of the threads.
    pub turns: AtomicU64,
    /// System calls: those of the engines' turns, and notifications.
    pub calls: AtomicU64,
    /// Notifications of the guest.
    pub notifications: AtomicU64,
}

impl Counters {
    /// Names and counts.
    pub fn table(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("requests", &self.requests),
            ("errors", &self.errors),
            ("merged", &self.merged),
            ("turns", &self.turns),
            ("calls", &self.calls),
            ("notifications", &self.notifications),
        ];
        all.into_iter().map(|(name, count)| (name, count.load(Ordering::Relaxed))).collect()
    }
}

/// How a queue's thread ends. What is under way is answered in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It takes no more requests: the ring may have another meaning by now.
    Now,
    /// It takes those that were on the ring when it was asked to end.
    Finish,
}

/// Tells a queue's thread to end.
pub struct Stop {
    how: OnceLock<Ending>,
    wake: EventFd,
}

impl Stop {
    /// Not asked yet.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Arc<Stop>> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Stop { how: OnceLock::new(), wake }))
    }

    /// The queue answers what is under way, and ends.
    pub fn ask(&self, how: Ending) {
        // Who asks first says how.
        let _ = self.how.set(how);
        // Full only when nobody reads it for 2^64 times.
        let _ = self.wake.write(1);
    }

    /// Whether it has been told.
    pub fn asked(&self) -> Option<Ending> {
        self.how.get().copied()
    }
}

/// What a queue serves.
#[derive(Clone)]
pub struct Serving {
    /// The image; none = an empty drive.
    pub disk: Option<Arc<Disk>>,
    /// The guest may write.
    pub writable: bool,
    /// Discard is offered.
    pub discard: bool,
    /// Which engine.
    pub engine: EngineKind,
}

impl Serving {
    /// What requests may ask for at this moment.
    pub fn limits(&self) -> Limits {
        let Some(disk) = &self.disk else {
            return Limits { sectors: 0, unit: 1, writable: false, discard: None };
        };
        let discard = disk.discards().filter(|_| self.discard).map(|discard| discard.secure);
        let unit = u8::try_from(disk.sector_sizes().0 >> SECTOR_SHIFT).unwrap_or(1).max(1);
        Limits { sectors: disk.len() >> SECTOR_SHIFT, unit, writable: self.writable, discard }
    }
}

/// A ring's pages as long as they are pinned.
pub struct RingPages {
    grants: Arc<dyn xen_domain::gnttab::Grants>,
    grefs: Vec<Gref>,
}

impl RingPages {
    /// Pins a ring's pages.
    ///
    /// # Errors
    /// One is not granted as a whole page for writing.
    pub fn pin(
        connection: &Connection,
        grefs: &[u32],
    ) -> Result<(RingPages, Vec<xen_domain::mem::Gpa>), DeviceError> {
        let mut ring = RingPages { grants: connection.grants.clone(), grefs: Vec::new() };
        let mut pages = Vec::new();
        for gref in grefs {
            let page = ring.grants.pin(Gref(*gref), true).map_err(|e| DeviceError(format!("ring: {e}")))?;
            ring.grefs.push(Gref(*gref));
            if page.len != 4096 {
                return Err(DeviceError(format!("ring: grant {gref} is not a whole page")));
            }
            pages.push(page.gpa);
        }
        Ok((ring, pages))
    }
}

impl Drop for RingPages {
    fn drop(&mut self) {
        self.grefs.iter().for_each(|gref| self.grants.unpin(*gref, true));
    }
}

/// A queue; it outlives its thread when the disc is changed.
pub struct Queue {
    /// For the log.
    pub name: String,
    /// Layout of the slots.
    pub abi: Abi,
    /// Our end of the ring.
    pub ring: BackRing,
    /// The guest's memory.
    pub memory: Arc<dyn GuestRam>,
    /// The pins of requests.
    pub pages: Pages,
    /// What this queue has done.
    pub counters: Arc<Counters>,
    /// Says that the device cannot go on.
    pub fail: Arc<dyn Fn(DeviceError) + Send + Sync>,
    /// The way to be notified and to notify.
    pub channel: EventChannel,
    /// Held until the queue is gone.
    pub ring_pages: RingPages,
    /// No more requests are taken.
    pub broken: bool,
}

impl Queue {
    /// Serves the ring until asked to stop. Nothing is under way when it returns.
    pub fn run(mut self, serving: Serving, stop: &Stop) -> Queue {
        if let Err(e) = self.serve(serving, stop) {
            self.give_up(DeviceError(format!("{}: {e}", self.name)));
        }
        self
    }

    /// Has the device closed, once.
    pub fn give_up(&mut self, why: DeviceError) {
        if !std::mem::replace(&mut self.broken, true) {
            limited!(warn, "{why}");
            (self.fail)(why);
        }
    }

    fn serve(&mut self, serving: Serving, stop: &Stop) -> io::Result<()> {
        let watch = vec![self.channel.kick.try_clone()?, stop.wake.as_fd().try_clone_to_owned()?];
        let engine = engine::start(serving.engine, serving.disk.clone(), watch)?;
        let mut run = Run::new(self, serving, engine);
        let result = run.turns(stop);
        run.abandon();
        result
    }
}
