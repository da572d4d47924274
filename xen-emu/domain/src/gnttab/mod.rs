//! The grant table: its frames, its entries of both versions, and the pins of those in use.
//!
//! Entries live in the guest-visible frames alone; what is kept here is which of them are pinned ([`pins`]).

mod entry;
mod maptrack;
mod pins;
mod version;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use zerocopy::IntoBytes;

use xen_abi::grant_table::{GntStatus, GrantEntryV1, gtf};
use xen_abi::{Domid, Gref};

use crate::mem::{Fault, Gfn, Gpa, GuestMem, SpecialPage};
pub(crate) use maptrack::{Mapping, Maptrack};
pub use pins::Pins;
pub(crate) use pins::{Active, Use};
pub(crate) use version::status_frames;

/// Why a grant cannot be used; the GNTST_* status of the same meaning is for hypercalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The table has no such entry.
    #[error("grant {0} is beyond the table")]
    NoEntry(u32),
    /// The entry grants no access.
    #[error("grant {0} is not granted")]
    BadRef(u32),
    /// Granted to another domain.
    #[error("grant {0} is another domain's")]
    BadDomain(u32),
    /// Granted for reading only.
    #[error("grant {0} is read-only")]
    ReadOnly(u32),
    /// The granted frame has no memory behind it.
    #[error("grant {0} leads to no memory")]
    BadFrame(u32),
    /// The guest changes the entry all the time, or it has too many pins.
    #[error("grant {0} cannot be pinned now")]
    Busy(u32),
    /// Version 2: a grant of a third domain's grant, of which there are none here.
    #[error("grant {0} is transitive, which is not supported")]
    Transitive(u32),
}

/// A pinned grant: the guest cannot end it before [`Grants::unpin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The granted bytes, within one page.
    pub gpa: Gpa,
    /// How many: 4096 but for sub-page grants of version 2.
    pub len: u16,
}

/// Use of a domain's grants by backends in domain 0, from any thread.
pub trait Grants: Send + Sync {
    /// Pins a grant for reading, or for writing too. Each pin is given back by one [`Grants::unpin`] of the same kind.
    ///
    /// # Errors
    /// It is not granted, not to us, or not for this.
    fn pin(&self, gref: Gref, write: bool) -> Result<Pinned, GrantError>;
    /// Gives a pin back.
    fn unpin(&self, gref: Gref, write: bool);
}

/// The table.
#[derive(Debug)]
pub(crate) struct GrantTable {
    /// Version, frames, and pins: what the backends' threads share.
    pub active: Arc<Active>,
    /// Frames the guest may grow to.
    pub max_frames: u32,
    /// What the guest has mapped.
    pub mapped: Maptrack,
    /// Frames that other domains have mapped, and how often.
    pub away: BTreeMap<Gfn, u32>,
}

impl From<GrantError> for GntStatus {
    /// What Xen answers to a guest that maps or copies.
    fn from(error: GrantError) -> GntStatus {
        match error {
            GrantError::NoEntry(_) => GntStatus::BAD_GNTREF,
            GrantError::BadFrame(_) => GntStatus::BAD_PAGE,
            _ => GntStatus::GENERAL_ERROR,
        }
    }
}

impl GrantTable {
    pub(crate) fn new(max_frames: u32) -> GrantTable {
        let active = Arc::new(Active::new(1.min(max_frames)));
        GrantTable { active, max_frames, mapped: Maptrack::default(), away: BTreeMap::new() }
    }

    /// Grows the table to hold frame `index`; false beyond the limit.
    pub(crate) fn grow(&mut self, index: u64) -> bool {
        let Ok(needed) = u32::try_from(index.saturating_add(1)) else { return false };
        if needed > self.max_frames {
            return false;
        }
        self.active.grow(needed);
        true
    }

    /// Grows the table to have frame `index` of status words; false beyond the limit.
    pub(crate) fn grow_status(&mut self, index: u64) -> bool {
        let frames = index.saturating_add(1).saturating_mul(8);
        if frames <= self.max_frames.into() {
            self.grow(frames - 1);
        }
        index < status_frames(self.active.frames()).into()
    }

    /// Grants dom0 a frame by one of the reserved entries, at the domain's start.
    pub(crate) fn seed(&self, mem: &dyn GuestMem, entry: Gref, gfn: Gfn) -> Result<(), Fault> {
        let frame = u32::try_from(gfn.0).map_err(|_| Fault)?;
        let granted = GrantEntryV1 { flags: gtf::PERMIT_ACCESS, domid: Domid::DOM0, frame };
        let offset = u64::from(entry.0) * size_of::<GrantEntryV1>() as u64;
        mem.write(SpecialPage::GrantFrame(0).home().offset(offset), granted.as_bytes())
    }

    pub(crate) fn describe(&self, out: &mut String) {
        let (version, frames) = (self.active.version(), self.active.frames());
        let _ = writeln!(out, "version {version}, {frames} of {} frames", self.max_frames);
        if self.mapped.len() > 0 {
            let _ = writeln!(out, "{} mapped by the guest", self.mapped.len());
        }
        self.active.describe(out);
    }
}
