//! The guest's packets: zero-copy but for their headers, which are looked at and so must not change.

use super::Cx;
use crate::backend::device::DeviceError;
use crate::backend::net::counters::count;
use crate::backend::net::grant::Grant;
use crate::backend::net::link::{Link, Slice, Slices, behind, checksum, gather};
use crate::backend::net::proto::HEAD;
use crate::backend::net::proto::chain::{Chain, Step};
use crate::backend::net::proto::offload::{VnetHeader, transmit};
use crate::log::limited;
use smallvec::SmallVec;
use std::io::ErrorKind;
use std::time::Instant;
use xen_abi::io::netif::{NR_SLOTS_MIN, NetifRsp, TX_SLOT};
use xen_domain::ring::BackRing;

/// Slots taken in one turn.
const TURN: usize = 256;

/// Why the ring is not being emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// It is empty, and the guest will notify.
    Empty,
    /// There is more.
    Turn,
    /// The link has to become writable.
    Blocked,
    /// The rate is used up until then.
    Rate(Instant),
}

/// A transmit ring.
pub struct Tx {
    ring: BackRing,
    page: Grant,
    chain: Chain,
    /// The chain is a packet that has not been sent yet.
    whole: bool,
    /// The credit for it has been taken.
    paid: bool,
}

/// What became of a packet.
enum Sent {
    Answer(NetifRsp),
    Later(Idle),
}

impl Tx {
    /// On a ring page.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub fn new(cx: &Cx, page: Grant) -> Result<Tx, DeviceError> {
        let ring = BackRing::attach(cx.mem(), &[page.at.gpa], TX_SLOT);
        let ring = ring.map_err(|e| DeviceError(format!("transmit ring: {e}")))?;
        Ok(Tx { ring, page, chain: Chain::default(), whole: false, paid: false })
    }

    /// Grant reference of the ring.
    pub fn gref(&self) -> u32 {
        self.page.gref()
    }

    /// Sends what is on the ring; why it stopped, and whether the guest wants to be notified.
    ///
    /// # Errors
    /// The ring makes no sense any more.
    pub fn run(&mut self, cx: &Cx, link: &mut dyn Link) -> Result<(Idle, bool), DeviceError> {
        let broken = |e| DeviceError(format!("transmit ring: {e}"));
        let mut idle = self.turn(cx, link)?;
        let notify = self.ring.publish(cx.mem()).map_err(broken)?;
        if idle == Idle::Empty && self.ring.final_check_for_requests(cx.mem()).map_err(broken)? {
            idle = Idle::Turn;
        }
        Ok((idle, notify))
    }

    fn turn(&mut self, cx: &Cx, link: &mut dyn Link) -> Result<Idle, DeviceError> {
        let broken = |e| DeviceError(format!("transmit ring: {e}"));
        for _ in 0..TURN {
            if !self.whole {
                let mut slot = [0; TX_SLOT];
                if !self.ring.pop(cx.mem(), &mut slot).map_err(broken)? {
                    return Ok(Idle::Empty);
                }
                match self.chain.push(&slot) {
                    Step::More => continue,
                    Step::Packet => self.whole = true,
                    Step::Groups => self.groups(cx)?,
                    Step::Bad(why) => self.bad(cx, why)?,
                    Step::Fatal(why) => return Err(DeviceError(why.into())),
                }
            }
            if self.whole {
                if let Err(later) = self.pay(cx) {
                    return Ok(Idle::Rate(later));
                }
                match self.send(cx, link) {
                    Sent::Answer(status) => self.answer(cx, status)?,
                    Sent::Later(idle) => return Ok(idle),
                }
            }
        }
        Ok(Idle::Turn)
    }

    fn groups(&mut self, cx: &Cx) -> Result<(), DeviceError> {
        let fit = cx.shared.groups(&self.chain.groups);
        self.answer(cx, if fit { NetifRsp::OKAY } else { NetifRsp::ERROR })
    }

    fn bad(&mut self, cx: &Cx, why: &str) -> Result<(), DeviceError> {
        limited!(warn, "{}: {why}", cx.name);
        count(&cx.shared.counters.tx_errors, 1);
        self.answer(cx, NetifRsp::ERROR)
    }

    fn answer(&mut self, cx: &Cx, status: NetifRsp) -> Result<(), DeviceError> {
        let put = self.chain.answers(status).try_for_each(|answer| self.ring.push(cx.mem(), &answer));
        self.chain.clear();
        (self.whole, self.paid) = (false, false);
        put.map_err(|e| DeviceError(format!("transmit ring: {e}")))
    }

    /// Once for each packet, however often the link has to be asked to take it.
    fn pay(&mut self, cx: &Cx) -> Result<(), Instant> {
        if !self.paid {
            cx.shared.credit(self.chain.size.into())?;
            self.paid = true;
        }
        Ok(())
    }

    fn send(&self, cx: &Cx, link: &mut dyn Link) -> Sent {
        let counters = &cx.shared.counters;
        let refuse = |why: &str| {
            limited!(warn, "{}: {why}", cx.name);
            count(&counters.tx_errors, 1);
            Sent::Answer(NetifRsp::ERROR)
        };
        let pinned = match self.pin(cx) {
            Ok(pinned) => pinned,
            Err(why) => return refuse(&why),
        };
        let slices: Result<Slices<'_>, _> = pinned
            .iter()
            .zip(&self.chain.fragments)
            .map(|(grant, f)| cx.memory.slice(grant.at.gpa.offset(f.offset.into()), f.size.into()))
            .collect();
        let Ok(slices) = slices else { return refuse("a grant leads to no memory") };
        let mut head = [0; HEAD];
        let copied = gather(&slices, &mut head);
        let head = head.get_mut(..copied).unwrap_or_default();
        let rest = behind(&slices, copied);
        let header = match self.prepare(link, head, &rest) {
            Ok(header) => header,
            Err(why) => return refuse(why),
        };
        count(&counters.syscalls, 1);
        match link.send(&header, head, &rest) {
            Ok(()) => {
                count(&counters.tx_packets, 1);
                count(&counters.tx_bytes, self.chain.size.into());
                Sent::Answer(NetifRsp::OKAY)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Sent::Later(Idle::Blocked),
            Err(e) => refuse(&format!("a packet could not be sent: {e}")),
        }
    }

    fn pin(&self, cx: &Cx) -> Result<SmallVec<[Grant; NR_SLOTS_MIN]>, String> {
        let pin = |fragment: &super::Fragment| {
            let grant = Grant::pin(&cx.grants, fragment.gref, false).map_err(|e| e.to_string())?;
            match grant.at.len.checked_sub(fragment.offset) {
                Some(room) if room >= fragment.size => Ok(grant),
                _ => Err(format!("a packet goes beyond grant {}", fragment.gref)),
            }
        };
        self.chain.fragments.iter().map(pin).collect()
    }

    /// The header; for a link that cannot complete checksums, with the checksum completed in `head`.
    fn prepare(
        &self,
        link: &dyn Link,
        head: &mut [u8],
        rest: &[Slice<'_>],
    ) -> Result<VnetHeader, &'static str> {
        let chain = &self.chain;
        let header = transmit(chain.flags, chain.gso, head, chain.size.into())?;
        if link.offloads() {
            return Ok(header);
        }
        if chain.gso.is_some() {
            return Err("GSO, which was not offered");
        }
        if let Some((start, field)) = header.blank() {
            let sum = checksum(head.get(start..).unwrap_or_default(), rest);
            if let Some(to) = head.get_mut(field..field + 2) {
                to.copy_from_slice(&sum);
            }
        }
        Ok(header)
    }
}
