//! A ring of request and response slots over 1 to 16 shared pages (`public/io/ring.h`), the back-end's end of it.
//!
//! The front-end may change every byte at any time. Its index is read once per batch and refused when impossible;
//! ours are kept privately and only told. Requests are copied out once. A ring that has answered with an error is
//! broken by its front-end: the back-end closes the device.

use std::sync::atomic::{Ordering, fence};

use xen_abi::io::ring::{
    BadIndex, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, needs_notify, ring_size, slot_offset, unconsumed,
};

use super::RingError;
use crate::mem::{Fault, Gpa, GuestMem};

const PAGE: usize = 4096;

/// The pages of a ring, in order; they need not be neighbours. Words and slots by their offset from its start.
#[derive(Clone, Debug)]
pub(crate) struct Pages(Vec<Gpa>);

impl Pages {
    pub(crate) fn new(pages: &[Gpa]) -> Pages {
        Pages(pages.to_vec())
    }

    fn at(&self, offset: usize) -> Result<Gpa, Fault> {
        let page = self.0.get(offset / PAGE).ok_or(Fault)?;
        Ok(page.offset((offset % PAGE) as u64))
    }

    pub(crate) fn load(&self, mem: &dyn GuestMem, offset: usize) -> Result<u32, Fault> {
        mem.load_u32(self.at(offset)?)
    }

    pub(crate) fn store(&self, mem: &dyn GuestMem, offset: usize, value: u32) -> Result<(), Fault> {
        mem.store_u32(self.at(offset)?, value)
    }

    /// Copies out, piece by piece where a slot crosses pages.
    pub(crate) fn read(&self, mem: &dyn GuestMem, mut from: usize, mut buf: &mut [u8]) -> Result<(), Fault> {
        while !buf.is_empty() {
            let here = (PAGE - from % PAGE).min(buf.len());
            let (head, tail) = buf.split_at_mut(here);
            mem.read(self.at(from)?, head)?;
            from += here;
            buf = tail;
        }
        Ok(())
    }

    /// Copies in likewise.
    pub(crate) fn write(&self, mem: &dyn GuestMem, mut to: usize, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let (head, tail) = bytes.split_at((PAGE - to % PAGE).min(bytes.len()));
            mem.write(self.at(to)?, head)?;
            to += head.len();
            bytes = tail;
        }
        Ok(())
    }
}

/// The back-end's end of a ring.
#[derive(Clone, Debug)]
pub struct BackRing {
    pages: Pages,
    slot_bytes: usize,
    size: u32,
    /// Requests seen: `req_prod` as last read and judged.
    req_prod: u32,
    /// Requests taken.
    req_cons: u32,
    /// Responses put, told or not (`rsp_prod_pvt`).
    rsp_put: u32,
    /// Responses told.
    rsp_told: u32,
}

impl BackRing {
    /// Attaches to the ring in these pages, whose slots have `slot_bytes` bytes: the larger of request and response.
    /// It begins where the responses in the ring end: at 0 in a fresh ring.
    ///
    /// # Errors
    /// Not even one slot fits, a page is not there, or the ring holds an impossible number of requests.
    pub fn attach(mem: &dyn GuestMem, pages: &[Gpa], slot_bytes: usize) -> Result<BackRing, RingError> {
        let size = ring_size(pages.len().saturating_mul(PAGE), slot_bytes).ok_or(Fault)?;
        let pages = Pages::new(pages);
        pages.0.iter().try_for_each(|page| mem.read(*page, &mut [0]))?;
        let from = pages.load(mem, RSP_PROD)?;
        let (req_prod, req_cons, rsp_put, rsp_told) = (from, from, from, from);
        let mut ring = BackRing { pages, slot_bytes, size, req_prod, req_cons, rsp_put, rsp_told };
        ring.look(mem)?;
        Ok(ring)
    }

    /// Slots of the ring.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Requests taken and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_put)
    }

    /// Requests that wait, by the front-end's index of this moment.
    ///
    /// # Errors
    /// More than the ring can hold, fewer than were seen already, or the page is gone.
    pub fn pending(&mut self, mem: &dyn GuestMem) -> Result<u32, RingError> {
        self.look(mem)?;
        Ok(self.req_prod.wrapping_sub(self.req_cons))
    }

    /// Reads and judges `req_prod`. It may not be further from our responses than the ring is long
    /// (`RING_REQUEST_PROD_OVERFLOW`), nor go back.
    fn look(&mut self, mem: &dyn GuestMem) -> Result<(), RingError> {
        let prod = self.pages.load(mem, REQ_PROD)?;
        unconsumed(prod, self.rsp_put, self.size)?;
        unconsumed(prod, self.req_prod, self.size)?;
        self.req_prod = prod;
        Ok(())
    }

    /// Takes the next request into `buf`, as many bytes of it as `buf` and a slot have; false when there is none.
    /// The front-end's index is read only when all requests seen before are taken.
    ///
    /// # Errors
    /// As [`BackRing::pending`].
    pub fn pop(&mut self, mem: &dyn GuestMem, buf: &mut [u8]) -> Result<bool, RingError> {
        if self.req_cons == self.req_prod && self.pending(mem)? == 0 {
            return Ok(false);
        }
        let len = buf.len().min(self.slot_bytes);
        let from = slot_offset(self.req_cons, self.size, self.slot_bytes);
        self.pages.read(mem, from, buf.get_mut(..len).unwrap_or_default())?;
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(true)
    }

    /// Puts a response, at most a slot of it; the front-end sees it after [`BackRing::publish`].
    ///
    /// # Errors
    /// The page is gone, or there are more responses than requests were taken.
    pub fn push(&mut self, mem: &dyn GuestMem, response: &[u8]) -> Result<(), RingError> {
        if self.in_flight() == 0 {
            return Err(BadIndex { prod: self.req_cons, cons: self.rsp_put, size: self.size }.into());
        }
        let len = response.len().min(self.slot_bytes);
        let to = slot_offset(self.rsp_put, self.size, self.slot_bytes);
        self.pages.write(mem, to, response.get(..len).unwrap_or_default())?;
        self.rsp_put = self.rsp_put.wrapping_add(1);
        Ok(())
    }

    /// Tells the responses put since the last time; true when the front-end wants to be notified
    /// (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
    ///
    /// # Errors
    /// The page is gone.
    pub fn publish(&mut self, mem: &dyn GuestMem) -> Result<bool, RingError> {
        let (old, new) = (self.rsp_told, self.rsp_put);
        if old == new {
            return Ok(false);
        }
        self.pages.store(mem, RSP_PROD, new)?;
        self.rsp_told = new;
        // The front-end sets rsp_event and then reads rsp_prod.
        fence(Ordering::SeqCst);
        Ok(needs_notify(old, new, self.pages.load(mem, RSP_EVENT)?))
    }

    /// Before waiting: asks to be notified of the next request, and looks again; true when there is one already
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`).
    ///
    /// # Errors
    /// As [`BackRing::pending`].
    pub fn final_check_for_requests(&mut self, mem: &dyn GuestMem) -> Result<bool, RingError> {
        self.final_check_for(mem, 1)
    }

    /// The same for one who needs `count` requests at once, such as the buffers of a packet.
    ///
    /// # Errors
    /// As [`BackRing::pending`].
    pub fn final_check_for(&mut self, mem: &dyn GuestMem, count: u32) -> Result<bool, RingError> {
        if self.pending(mem)? >= count {
            return Ok(true);
        }
        self.pages.store(mem, REQ_EVENT, self.req_cons.wrapping_add(count))?;
        // The front-end sets req_prod and then reads req_event.
        fence(Ordering::SeqCst);
        Ok(self.pending(mem)? >= count)
    }
}
