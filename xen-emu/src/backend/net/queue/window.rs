//! Receive requests that have been taken from the ring and wait for packets, with their pages pinned.

use super::Cx;
use crate::backend::device::DeviceError;
use crate::backend::net::counters::count;
use crate::backend::net::grant::Grant;
use crate::backend::net::link::Slice;
use crate::backend::net::proto::PAGE;
use crate::backend::net::proto::spread::{Announce, answer};
use crate::log::limited;
use std::collections::VecDeque;
use xen_abi::io::netif::{NR_SLOTS_MIN, NetifRsp, RX_SLOT, RxRequest};
use xen_domain::ring::{BackRing, RingError};
use zerocopy::FromBytes;

/// Requests held: for the longest packet and its extra descriptors.
const LEN: usize = NR_SLOTS_MIN + 2;

/// A request of the guest; no page = its grant is of no use, and it is to be answered with an error.
struct Slot {
    id: u16,
    page: Option<Grant>,
}

/// The next requests, in the order of the ring.
pub struct Window {
    ring: BackRing,
    slots: VecDeque<Slot>,
}

fn broken(e: RingError) -> DeviceError {
    DeviceError(format!("receive ring: {e}"))
}

impl Window {
    /// On a ring page.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub fn new(cx: &Cx, page: &Grant) -> Result<Window, DeviceError> {
        let ring = BackRing::attach(cx.mem(), &[page.at.gpa], RX_SLOT).map_err(broken)?;
        Ok(Window { ring, slots: VecDeque::with_capacity(LEN) })
    }

    /// Takes requests from the ring and pins their pages.
    ///
    /// # Errors
    /// The ring makes no sense any more; here and below.
    pub fn fill(&mut self, cx: &Cx) -> Result<(), DeviceError> {
        let mut bytes = [0; RX_SLOT];
        while self.slots.len() < LEN && self.ring.pop(cx.mem(), &mut bytes).map_err(broken)? {
            let Ok(request) = RxRequest::read_from_bytes(&bytes) else { break };
            let page = match Grant::pin(&cx.grants, request.gref, true) {
                Ok(grant) => Some(grant).filter(Grant::whole),
                Err(e) => {
                    limited!(warn, "{}: a receive request: {e}", cx.name);
                    None
                }
            };
            self.slots.push_back(Slot { id: request.id, page });
        }
        Ok(())
    }

    /// Requests there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many of the first `slots` requests come before one without a page, if there is such a one.
    pub fn flaw(&self, slots: usize) -> Option<usize> {
        self.slots.iter().take(slots).position(|slot| slot.page.is_none())
    }

    /// The page of a request.
    pub fn page<'m>(&self, cx: &'m Cx, slot: usize) -> Option<Slice<'m>> {
        let page = self.slots.get(slot)?.page.as_ref()?;
        cx.memory.slice(page.at.gpa, PAGE).ok()
    }

    /// Answers the first requests with an error.
    pub fn refuse(&mut self, cx: &Cx, slots: usize) -> Result<(), DeviceError> {
        for slot in self.slots.drain(..slots.min(self.slots.len())) {
            count(&cx.shared.counters.rx_errors, 1);
            self.ring.push(cx.mem(), &answer(slot.id, 0, NetifRsp::ERROR)).map_err(broken)?;
        }
        Ok(())
    }

    /// Uses up the first requests: their ids become the responses that announce a packet of `size` bytes.
    pub fn respond(&mut self, cx: &Cx, announce: &Announce, size: usize) -> Result<(), DeviceError> {
        let slots = announce.slots(size);
        let ids = self.slots.drain(..slots.min(self.slots.len())).map(|slot| slot.id);
        let mut responses = announce.responses(size, ids);
        responses.try_for_each(|response| self.ring.push(cx.mem(), &response)).map_err(broken)
    }

    /// Tells the guest of responses; true when it wants to be notified.
    pub fn publish(&mut self, cx: &Cx) -> Result<bool, DeviceError> {
        self.ring.publish(cx.mem()).map_err(broken)
    }

    /// Asks to be notified when there will be so many more requests; true when there are.
    pub fn wait_for(&mut self, cx: &Cx, more: usize) -> Result<bool, DeviceError> {
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.ring.final_check_for(cx.mem(), more).map_err(broken)
    }
}
