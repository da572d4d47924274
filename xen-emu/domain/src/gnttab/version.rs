//! Work on entries that no backend may touch meanwhile: changing the version, and swapping two entries.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::grant_table::{GntStatus, GrantEntryV1, GrantEntryV2, NR_RESERVED_ENTRIES, gtf};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::entry::{IN_USE, entry_at, per_frame, status_at};
use super::pins::{Active, Shard, lock};
use crate::mem::{Fault, Gpa, GuestMem, SpecialPage};

/// The reserved entries.
const RESERVED: usize = NR_RESERVED_ENTRIES as usize;
/// What they are in version 1.
type Kept = [GrantEntryV1; RESERVED];

/// Frames of status words that belong to so many frames of entries of version 2.
pub(crate) const fn status_frames(frames: u32) -> u32 {
    frames.div_ceil(8)
}

/// The table with all its locks held.
pub(crate) struct Quiet<'a> {
    active: &'a Active,
    shards: Vec<MutexGuard<'a, Shard>>,
}

impl Active {
    /// Waits until no backend looks at the table, and keeps them out.
    pub(crate) fn quiet(&self) -> Quiet<'_> {
        Quiet { active: self, shards: self.shards.iter().map(lock).collect() }
    }
}

fn get<T: FromBytes + IntoBytes>(mem: &dyn GuestMem, at: Option<Gpa>) -> Result<T, Fault> {
    let mut value = T::new_zeroed();
    mem.read(at.ok_or(Fault)?, value.as_mut_bytes())?;
    Ok(value)
}

fn put<T: IntoBytes + Immutable>(mem: &dyn GuestMem, at: Option<Gpa>, value: &T) -> Result<(), Fault> {
    mem.write(at.ok_or(Fault)?, value.as_bytes())
}

fn clear(mem: &dyn GuestMem, frames: u32, page: fn(u16) -> SpecialPage) -> Result<(), Fault> {
    let mut frames = (0..frames).filter_map(|index| u16::try_from(index).ok());
    frames.try_for_each(|index| mem.write(page(index).home(), &[0; 4096]))
}

impl Quiet<'_> {
    fn is_pinned(&self, gref: u32) -> bool {
        self.shards.iter().any(|shard| shard.contains_key(&gref))
    }

    /// Whether the version may change to `version`.
    ///
    /// # Errors
    /// -EBUSY while an entry that is not reserved is in use, -ERANGE if version 1 cannot tell what a reserved entry
    /// grants.
    pub(crate) fn may_become(&self, mem: &dyn GuestMem, version: u32) -> Result<(), Errno> {
        let mut pinned = self.shards.iter().flat_map(|shard| shard.keys());
        if pinned.any(|gref| *gref >= NR_RESERVED_ENTRIES) {
            return Err(Errno::EBUSY);
        }
        for gref in 0..if version == 1 { NR_RESERVED_ENTRIES } else { 0 } {
            let entry: GrantEntryV2 = get(mem, entry_at(2, gref))?;
            match entry.flags & gtf::TYPE_MASK {
                gtf::TRANSITIVE => return Err(Errno::ERANGE),
                gtf::PERMIT_ACCESS if entry.frame >> 32 != 0 => return Err(Errno::ERANGE),
                _ => {}
            }
        }
        Ok(())
    }

    /// Changes the version. All entries are cleared but the reserved ones, which are written anew.
    ///
    /// # Errors
    /// The host has no memory for the table.
    pub(crate) fn become_version(&self, mem: &dyn GuestMem, version: u32) -> Result<(), Fault> {
        let kept = if version == 1 { kept_of_v2(mem)? } else { kept_of_v1(mem)? };
        let frames = self.active.frames();
        clear(mem, frames, SpecialPage::GrantFrame)?;
        clear(mem, status_frames(frames), SpecialPage::GrantStatus)?;
        for (gref, entry) in (0..).zip(&kept) {
            let at = entry_at(version, gref);
            if version == 1 {
                put(mem, at, entry)?;
                continue;
            }
            let GrantEntryV1 { flags, domid, frame } = *entry;
            put(mem, status_at(gref), &(flags & IN_USE))?;
            let (flags, frame) = (flags & !IN_USE, u64::from(frame));
            put(mem, at, &GrantEntryV2 { flags, domid, page_off: 0, length: 0, frame })?;
        }
        self.active.version.store(version, Ordering::Release);
        Ok(())
    }

    /// Makes it what a new domain has: version 1, one frame, no entries. What other domains have mapped they keep.
    ///
    /// # Errors
    /// The host has no memory for the table.
    pub(crate) fn empty(&self, mem: &dyn GuestMem) -> Result<(), Fault> {
        let frames = self.active.frames();
        clear(mem, frames, SpecialPage::GrantFrame)?;
        clear(mem, status_frames(frames), SpecialPage::GrantStatus)?;
        self.active.version.store(1, Ordering::Release);
        self.active.shrink();
        Ok(())
    }

    /// Swaps two entries.
    pub(crate) fn swap(&self, mem: &dyn GuestMem, a: u32, b: u32) -> GntStatus {
        let version = self.active.version();
        let entries = self.active.frames().saturating_mul(per_frame(version));
        if a >= entries || b >= entries {
            return GntStatus::BAD_GNTREF;
        }
        if a == b {
            return GntStatus::OKAY;
        }
        if self.is_pinned(a) || self.is_pinned(b) {
            return GntStatus::EAGAIN;
        }
        let swapped = match version {
            2 => exchange::<GrantEntryV2>(mem, entry_at(2, a), entry_at(2, b))
                .and_then(|()| exchange::<u16>(mem, status_at(a), status_at(b))),
            _ => exchange::<GrantEntryV1>(mem, entry_at(1, a), entry_at(1, b)),
        };
        swapped.map_or(GntStatus::GENERAL_ERROR, |()| GntStatus::OKAY)
    }
}

fn kept_of_v1(mem: &dyn GuestMem) -> Result<Kept, Fault> {
    get(mem, entry_at(1, 0))
}

fn kept_of_v2(mem: &dyn GuestMem) -> Result<Kept, Fault> {
    let mut kept = Kept::new_zeroed();
    for (gref, kept) in (0..).zip(&mut kept) {
        let entry: GrantEntryV2 = get(mem, entry_at(2, gref))?;
        let status: u16 = get(mem, status_at(gref))?;
        if entry.flags & gtf::TYPE_MASK == gtf::PERMIT_ACCESS {
            let frame = u32::try_from(entry.frame).map_err(|_| Fault)?;
            *kept = GrantEntryV1 { flags: entry.flags | status, domid: entry.domid, frame };
        }
    }
    Ok(kept)
}

fn exchange<T: FromBytes + IntoBytes + Immutable>(
    mem: &dyn GuestMem,
    a: Option<Gpa>,
    b: Option<Gpa>,
) -> Result<(), Fault> {
    let (from_a, from_b): (T, T) = (get(mem, a)?, get(mem, b)?);
    put(mem, a, &from_b)?;
    put(mem, b, &from_a)
}
