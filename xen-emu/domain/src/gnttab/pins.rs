//! The pins: which grants are in use, by whom, and how often.
//!
//! What an entry grants is read with its first pin and kept until its last: a guest that changes the entry meanwhile,
//! against the rules, changes nothing for those who have it pinned. The guest-visible bits of use are set by the
//! first pin of a kind and cleared by the last.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xen_abi::grant_table::gtf;
use xen_abi::{Domid, Gref};

use super::entry::{Entry, Granted, IN_USE};
use super::{GrantError, Grants, Pinned};
use crate::mem::{Gfn, GuestMem};

/// Locks that the entries are spread over.
const SHARDS: usize = 16;

/// What a grant is pinned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    /// The domain that it must be granted to.
    pub by: Domid,
    /// For writing too.
    pub write: bool,
    /// Only a grant of a whole page will do, as for mapping.
    pub whole: bool,
}

/// A grant in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pin {
    by: Domid,
    granted: Granted,
    readers: u16,
    writers: u16,
}

pub(super) type Shard = HashMap<u32, Pin>;

/// Version, size and pins of one domain's table; shared by its hypercalls and its backends' threads.
///
/// Lock order: shards by ascending number; inside, those of guest memory.
#[derive(Debug)]
pub(crate) struct Active {
    /// Changed with all shards locked, read with one of them locked.
    pub(super) version: AtomicU32,
    frames: AtomicU32,
    pub(super) shards: [Mutex<Shard>; SHARDS],
}

/// A domain's grants for backends in domain 0. Cheap to clone; all clones share their counts.
#[derive(Clone)]
pub struct Pins {
    active: Arc<Active>,
    mem: Arc<dyn GuestMem + Send + Sync>,
}

impl Pins {
    pub(crate) fn of(active: &Arc<Active>, mem: Arc<dyn GuestMem + Send + Sync>) -> Pins {
        Pins { active: active.clone(), mem }
    }

    /// The pins of a table of version 1 with so many frames that belongs to no [`crate::Domain`]: for tests of backends.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn alone(mem: Arc<dyn GuestMem + Send + Sync>, frames: u32) -> Pins {
        Pins { active: Arc::new(Active::new(frames)), mem }
    }

    /// How many grants are pinned: 0 when all backends have let go.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.active.in_use()
    }
}

impl Pins {
    /// Runs `act` while nothing is pinned or given back, unless a backend may be writing to a frame: then what it writes
    /// must come to where the frame was when it was pinned.
    pub fn unless_written<R>(&self, frame: Gfn, act: impl FnOnce() -> R) -> Option<R> {
        self.active.unless_written(frame, act)
    }
}

impl Grants for Pins {
    fn pin(&self, gref: Gref, write: bool) -> Result<Pinned, GrantError> {
        self.active.pin(&*self.mem, gref, Use { by: Domid::DOM0, write, whole: false })
    }

    fn unpin(&self, gref: Gref, write: bool) {
        self.active.unpin(&*self.mem, gref, write);
    }
}

impl Pin {
    /// Whether the guest, told of some use, has yet to be told of this one.
    fn is_news(&self, write: bool) -> bool {
        write && self.writers == 0
    }

    fn count(&mut self, write: bool) -> &mut u16 {
        if write { &mut self.writers } else { &mut self.readers }
    }

    fn pinned(&self) -> Pinned {
        let Granted { frame, offset, len, .. } = self.granted;
        Pinned { gpa: frame.gpa().offset(offset.into()), len }
    }
}

impl Active {
    /// A table of version 1.
    pub(crate) fn new(frames: u32) -> Active {
        Active { version: AtomicU32::new(1), frames: AtomicU32::new(frames), shards: Default::default() }
    }

    /// Version of the entries.
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Frames in use.
    pub(crate) fn frames(&self) -> u32 {
        self.frames.load(Ordering::Acquire)
    }

    /// Makes it hold so many frames at least.
    pub(crate) fn grow(&self, frames: u32) {
        self.frames.fetch_max(frames, Ordering::AcqRel);
    }

    /// Back to the one frame of a new domain. With all shards locked.
    pub(super) fn shrink(&self) {
        self.frames.fetch_min(1, Ordering::AcqRel);
    }

    /// How many grants are pinned.
    pub(crate) fn in_use(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// See [`Pins::unless_written`].
    pub(crate) fn unless_written<R>(&self, frame: Gfn, act: impl FnOnce() -> R) -> Option<R> {
        let shards: Vec<_> = self.shards.iter().map(lock).collect();
        let written = |pin: &Pin| pin.by == Domid::DOM0 && pin.writers > 0 && pin.granted.frame == frame;
        let free = !shards.iter().any(|shard| shard.values().any(written));
        free.then(act)
    }

    fn shard(&self, gref: u32) -> Option<MutexGuard<'_, Shard>> {
        self.shards.get(gref as usize % SHARDS).map(lock)
    }

    fn entry<'a>(&self, mem: &'a dyn GuestMem, gref: u32) -> Result<Entry<'a>, GrantError> {
        Entry::find(mem, self.version(), self.frames(), gref)
    }

    /// Pins a grant.
    pub(crate) fn pin(&self, mem: &dyn GuestMem, gref: Gref, usage: Use) -> Result<Pinned, GrantError> {
        let gref = gref.0;
        let mut shard = self.shard(gref).ok_or(GrantError::NoEntry(gref))?;
        let entry = self.entry(mem, gref)?;
        let Some(pin) = shard.get_mut(&gref) else {
            let pin = first(&entry, usage)?;
            shard.insert(gref, pin);
            return Ok(pin.pinned());
        };
        if pin.by != usage.by {
            return Err(GrantError::BadDomain(gref));
        }
        if usage.whole && pin.granted.sub_page {
            return Err(GrantError::BadRef(gref));
        }
        let more = pin.count(usage.write).checked_add(1).ok_or(GrantError::Busy(gref))?;
        if pin.is_news(usage.write) {
            entry.mark(usage, false)?;
        }
        *pin.count(usage.write) = more;
        Ok(pin.pinned())
    }

    /// Whether an entry grants reading alone.
    pub(crate) fn is_read_only(&self, mem: &dyn GuestMem, gref: Gref) -> bool {
        self.entry(mem, gref.0).is_ok_and(|entry| entry.is_read_only())
    }

    /// Gives a pin back; one that was never taken is nothing.
    pub(crate) fn unpin(&self, mem: &dyn GuestMem, gref: Gref, write: bool) {
        let gref = gref.0;
        let Some(mut shard) = self.shard(gref) else { return };
        let Some(pin) = shard.get_mut(&gref) else { return };
        let count = pin.count(write);
        let Some(fewer) = count.checked_sub(1) else { return };
        *count = fewer;
        let over = match (pin.readers, pin.writers) {
            (0, 0) => IN_USE,
            (_, 0) if write => gtf::WRITING,
            _ => return,
        };
        if over == IN_USE {
            shard.remove(&gref);
        }
        if let Ok(entry) = self.entry(mem, gref) {
            entry.unmark(over);
        }
    }

    pub(crate) fn describe(&self, out: &mut String) {
        let mut pins: Vec<(u32, Pin)> = Vec::new();
        for shard in &self.shards {
            pins.extend(lock(shard).iter().map(|(gref, pin)| (*gref, *pin)));
        }
        pins.sort_unstable_by_key(|(gref, _)| *gref);
        for (gref, Pin { by, granted, readers, writers }) in pins {
            let (gfn, by) = (granted.frame.0, by.0);
            let _ = writeln!(out, "gref {gref}: frame {gfn:#x} by d{by}, {readers} read, {writers} write");
        }
    }
}

/// The first pin of an entry.
fn first(entry: &Entry<'_>, usage: Use) -> Result<Pin, GrantError> {
    entry.mark(usage, true)?;
    let granted = entry.granted().inspect_err(|_| entry.unmark(IN_USE))?;
    let (readers, writers) = if usage.write { (0, 1) } else { (1, 0) };
    Ok(Pin { by: usage.by, granted, readers, writers })
}

pub(super) fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
