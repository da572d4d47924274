//! One entry as the guest sees it: the checks, and the bits that tell the guest that it is in use.
//!
//! Version 1 has flags, domid and the bits of use in one 32-bit word, which is changed by compare-and-swap. Version 2
//! has the bits of use in a status word elsewhere: they are set first and the flags judged afterwards, because the
//! guest clears the flags first and looks at the status afterwards (`public/grant_table.h`, "Version 2").

use xen_abi::Domid;
use xen_abi::grant_table::{STATUS_PER_FRAME, V1_PER_FRAME, V2_PER_FRAME, gtf};

use super::pins::Use;
use super::{Gfn, GrantError};
use crate::mem::{Fault, Gpa, GuestMem, SpecialPage};
use crate::physmap::GFN_LIMIT;

/// How often the guest may change an entry under our hands (Xen's bound).
const TRIES: u32 = 5;
/// Both bits of use.
pub(super) const IN_USE: u16 = gtf::READING | gtf::WRITING;

/// What an entry grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub frame: Gfn,
    pub offset: u16,
    pub len: u16,
    pub sub_page: bool,
}

/// Where an entry is.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    mem: &'a dyn GuestMem,
    gref: u32,
    /// Of the word of flags and domid.
    word: Gpa,
    /// Of the 32-bit word with the bits of use, and how far up in it they are; `None` in version 1.
    status: Option<(Gpa, u32)>,
}

/// Entries in a frame.
pub(super) const fn per_frame(version: u32) -> u32 {
    if version == 2 { V2_PER_FRAME } else { V1_PER_FRAME }
}

/// Where an entry is; tables have fewer frames than 2^16.
pub(super) fn entry_at(version: u32, gref: u32) -> Option<Gpa> {
    let per = per_frame(version);
    let page = u16::try_from(gref / per).ok().map(SpecialPage::GrantFrame)?;
    Some(page.home().offset(u64::from(gref % per * (4096 / per))))
}

/// Where its status word is, in version 2.
pub(super) fn status_at(gref: u32) -> Option<Gpa> {
    let page = u16::try_from(gref / STATUS_PER_FRAME).ok().map(SpecialPage::GrantStatus)?;
    Some(page.home().offset(u64::from(gref % STATUS_PER_FRAME) * 2))
}

impl<'a> Entry<'a> {
    /// The entry of a table with so many frames.
    pub(super) fn find(
        mem: &'a dyn GuestMem,
        version: u32,
        frames: u32,
        gref: u32,
    ) -> Result<Entry<'a>, GrantError> {
        let there = gref / per_frame(version) < frames;
        let word = entry_at(version, gref).filter(|_| there).ok_or(GrantError::NoEntry(gref))?;
        let status = if version == 2 { status_at(gref) } else { None };
        let status = status.map(|at| (Gpa(at.0 & !3), (gref & 1) * 16));
        Ok(Entry { mem, gref, word, status })
    }

    /// A fault of the table's own pages: the host has no memory for them.
    fn fault(&self) -> impl Fn(Fault) -> GrantError + use<> {
        let gref = self.gref;
        move |Fault| GrantError::NoEntry(gref)
    }

    /// Checks the entry and marks it as in use; `first` when nothing else has it pinned.
    pub(super) fn mark(&self, usage: Use, first: bool) -> Result<(), GrantError> {
        let bits = if usage.write { IN_USE } else { gtf::READING };
        let mut word = self.mem.load_u32(self.word).map_err(self.fault())?;
        self.judge(word, usage, first)?;
        if let Some((status, shift)) = self.status {
            self.mem.fetch_or_u32(status, u32::from(bits) << shift).map_err(self.fault())?;
            word = self.mem.load_u32(self.word).map_err(self.fault())?;
            return self.judge(word, usage, first).inspect_err(|_| {
                self.unmark(if first { IN_USE } else { gtf::WRITING });
            });
        }
        for _ in 0..TRIES {
            let marked = word | u32::from(bits);
            match self.mem.cas_u32(self.word, word, marked).map_err(self.fault())? {
                Ok(_) => return Ok(()),
                Err(found) => word = found,
            }
            self.judge(word, usage, first)?;
        }
        Err(GrantError::Busy(self.gref))
    }

    /// Whether flags and domid permit the use.
    fn judge(&self, word: u32, usage: Use, first: bool) -> Result<(), GrantError> {
        let (flags, domid) = split(word);
        let whole = !usage.whole || flags & gtf::SUB_PAGE == 0;
        match flags & gtf::TYPE_MASK {
            _ if !first => {}
            gtf::PERMIT_ACCESS if whole => {}
            gtf::TRANSITIVE if self.status.is_some() => return Err(GrantError::Transitive(self.gref)),
            _ => return Err(GrantError::BadRef(self.gref)),
        }
        if first && Domid(domid) != usage.by {
            return Err(GrantError::BadDomain(self.gref));
        }
        if usage.write && flags & gtf::READONLY != 0 {
            return Err(GrantError::ReadOnly(self.gref));
        }
        Ok(())
    }

    /// Whether it grants reading alone; so does one that cannot be read.
    pub(super) fn is_read_only(&self) -> bool {
        self.mem.load_u32(self.word).map_or(true, |word| split(word).0 & gtf::READONLY != 0)
    }

    /// Takes bits of use away; the guest's own bits stay whatever they are.
    pub(super) fn unmark(&self, bits: u16) {
        let (at, shift) = self.status.unwrap_or((self.word, 0));
        // It was there when it was marked.
        let _ = self.mem.fetch_and_u32(at, !(u32::from(bits) << shift));
    }

    /// What a marked entry grants.
    pub(super) fn granted(&self) -> Result<Granted, GrantError> {
        let (flags, _) = split(self.mem.load_u32(self.word).map_err(self.fault())?);
        let sub_page = self.status.is_some() && flags & gtf::SUB_PAGE != 0;
        let whole = Granted { frame: self.frame()?, offset: 0, len: 4096, sub_page };
        let bad = GrantError::BadFrame(self.gref);
        let granted = if sub_page {
            let part = self.mem.load_u32(self.word.offset(4)).map_err(self.fault())?;
            let (offset, len) = split(part);
            let room = 4096u16.checked_sub(offset).filter(|room| *room > 0).ok_or(bad)?;
            Granted { offset, len: len.min(room), ..whole }
        } else {
            whole
        };
        if granted.frame.0 >= GFN_LIMIT || self.mem.read(granted.frame.gpa(), &mut [0]).is_err() {
            return Err(bad);
        }
        Ok(granted)
    }

    fn frame(&self) -> Result<Gfn, GrantError> {
        let frame = match self.status {
            Some(_) => self.mem.load_u64(self.word.offset(8)),
            None => self.mem.load_u32(self.word.offset(4)).map(u64::from),
        };
        frame.map(Gfn).map_err(self.fault())
    }
}

/// A word's halves, the low one first.
#[expect(clippy::cast_possible_truncation, reason = "that is the point")]
const fn split(word: u32) -> (u16, u16) {
    (word as u16, (word >> 16) as u16)
}
