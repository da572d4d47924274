//! A front-end's end of a ring, and the granting of frames: what a driver in the guest does, for tests of backends.

use std::sync::atomic::{Ordering, fence};

use xen_abi::grant_table::{GrantEntryV1, V1_PER_FRAME, gtf};
use xen_abi::io::ring::{
    REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SringHeader, needs_notify, ring_size, slot_offset,
};
use xen_abi::{Domid, Gref};
use zerocopy::IntoBytes;

use crate::mem::{Fault, Gfn, Gpa, GuestMem, SpecialPage};
use crate::ring::Pages;

/// Grants dom0 a frame by entry `gref` of a table of version 1.
///
/// # Errors
/// The grant table is not there.
pub fn grant(mem: &dyn GuestMem, gref: Gref, gfn: Gfn, readonly: bool) -> Result<(), Fault> {
    let frame = u32::try_from(gfn.0).map_err(|_| Fault)?;
    let flags = gtf::PERMIT_ACCESS | if readonly { gtf::READONLY } else { 0 };
    mem.write(entry_v1(gref), GrantEntryV1 { flags, domid: Domid::DOM0, frame }.as_bytes())
}

/// Ends a grant, in use or not; true if it was in use, which a real driver waits for.
///
/// # Errors
/// The grant table is not there.
pub fn revoke(mem: &dyn GuestMem, gref: Gref) -> Result<bool, Fault> {
    let word = mem.fetch_and_u32(entry_v1(gref), 0)?;
    Ok(word & u32::from(gtf::READING | gtf::WRITING) != 0)
}

/// Where an entry of a table of version 1 is.
#[must_use]
pub fn entry_v1(gref: Gref) -> Gpa {
    let (page, index) = (gref.0 / V1_PER_FRAME, gref.0 % V1_PER_FRAME);
    SpecialPage::GrantFrame(u16::try_from(page).unwrap_or(u16::MAX)).home().offset(u64::from(index) * 8)
}

/// The front-end's end of a ring.
#[derive(Clone, Debug)]
pub struct FrontRing {
    pages: Pages,
    slot_bytes: usize,
    size: u32,
    req_put: u32,
    req_told: u32,
    rsp_cons: u32,
}

impl FrontRing {
    /// Makes an empty ring in these pages.
    ///
    /// # Errors
    /// The pages are not there, or too small for one slot.
    pub fn init(mem: &dyn GuestMem, pages: &[Gpa], slot_bytes: usize) -> Result<FrontRing, Fault> {
        let size = ring_size(pages.len() * 4096, slot_bytes).ok_or(Fault)?;
        let pages = Pages::new(pages);
        pages.write(mem, 0, SringHeader::INIT.as_bytes())?;
        Ok(FrontRing { pages, slot_bytes, size, req_put: 0, req_told: 0, rsp_cons: 0 })
    }

    /// Slots of the ring.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Requests that still fit.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.size - self.req_put.wrapping_sub(self.rsp_cons)
    }

    /// Puts a request; the back-end sees it after [`FrontRing::publish`]. False when the ring is full.
    ///
    /// # Errors
    /// The page is gone.
    pub fn put(&mut self, mem: &dyn GuestMem, request: &[u8]) -> Result<bool, Fault> {
        if self.free() == 0 {
            return Ok(false);
        }
        self.pages.write(mem, slot_offset(self.req_put, self.size, self.slot_bytes), request)?;
        self.req_put = self.req_put.wrapping_add(1);
        Ok(true)
    }

    /// Tells the requests put; true when the back-end wants to be notified.
    ///
    /// # Errors
    /// The page is gone.
    pub fn publish(&mut self, mem: &dyn GuestMem) -> Result<bool, Fault> {
        let (old, new) = (self.req_told, self.req_put);
        self.pages.store(mem, REQ_PROD, new)?;
        self.req_told = new;
        fence(Ordering::SeqCst);
        Ok(needs_notify(old, new, self.pages.load(mem, REQ_EVENT)?))
    }

    /// Takes the next response; false when there is none.
    ///
    /// # Errors
    /// The page is gone.
    pub fn take(&mut self, mem: &dyn GuestMem, buf: &mut [u8]) -> Result<bool, Fault> {
        if self.pages.load(mem, RSP_PROD)? == self.rsp_cons {
            return Ok(false);
        }
        let len = buf.len().min(self.slot_bytes);
        let from = slot_offset(self.rsp_cons, self.size, self.slot_bytes);
        self.pages.read(mem, from, buf.get_mut(..len).ok_or(Fault)?)?;
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(true)
    }

    /// Asks to be notified of the next response; true when there is one already.
    ///
    /// # Errors
    /// The page is gone.
    pub fn final_check_for_responses(&mut self, mem: &dyn GuestMem) -> Result<bool, Fault> {
        self.pages.store(mem, RSP_EVENT, self.rsp_cons.wrapping_add(1))?;
        fence(Ordering::SeqCst);
        Ok(self.pages.load(mem, RSP_PROD)? != self.rsp_cons)
    }

    /// Writes any `req_prod`, as a hostile front-end does.
    ///
    /// # Errors
    /// The page is gone.
    pub fn lie(&mut self, mem: &dyn GuestMem, req_prod: u32) -> Result<(), Fault> {
        self.pages.store(mem, REQ_PROD, req_prod)
    }
}
