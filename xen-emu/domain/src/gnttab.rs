//! The grant table: version, frames, and the two entries seeded by the domain's builder.
//!
//! Entries live in the guest-visible frames alone; nothing here caches them.

use std::fmt::Write as _;

use zerocopy::IntoBytes;

use xen_abi::grant_table::{GrantEntryV1, gtf};
use xen_abi::{Domid, Gref};

use crate::mem::{Fault, Gfn, GuestMem, SpecialPage};

/// The table.
#[derive(Debug)]
pub(crate) struct GrantTable {
    /// Version of the entries; 1 until version 2 is built.
    pub version: u32,
    /// Frames in use.
    pub frames: u32,
    /// Frames the guest may grow to.
    pub max_frames: u32,
}

impl GrantTable {
    pub(crate) fn new(max_frames: u32) -> GrantTable {
        GrantTable { version: 1, frames: 1.min(max_frames), max_frames }
    }

    /// Grows the table to hold frame `index`; false beyond the limit.
    pub(crate) fn grow(&mut self, index: u64) -> bool {
        let Ok(needed) = u32::try_from(index.saturating_add(1)) else { return false };
        if needed > self.max_frames {
            return false;
        }
        self.frames = self.frames.max(needed);
        true
    }

    /// Grants dom0 a frame by one of the reserved entries.
    pub(crate) fn seed(&self, mem: &dyn GuestMem, entry: Gref, gfn: Gfn) -> Result<(), Fault> {
        let frame = u32::try_from(gfn.0).map_err(|_| Fault)?;
        let granted = GrantEntryV1 { flags: gtf::PERMIT_ACCESS, domid: Domid::DOM0, frame };
        let offset = u64::from(entry.0) * size_of::<GrantEntryV1>() as u64;
        mem.write(SpecialPage::GrantFrame(0).home().offset(offset), granted.as_bytes())
    }

    pub(crate) fn describe(&self, out: &mut String) {
        let _ = writeln!(out, "version {}, {} of {} frames", self.version, self.frames, self.max_frames);
    }
}
