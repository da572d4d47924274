//! Packets for the guest.
//!
//! The kernel puts a packet into the guest's pages directly: its first 4096 bytes always; the rest too while packets
//! have been long lately, with as many pages left out for extra descriptors as the last long one had. Where that guess
//! is wrong, and for what comes through another queue, the rest goes through a buffer: one copy.

use super::Cx;
use super::stage::{Buffer, CHUNKS, Layout, Staged};
use super::window::Window;
use crate::backend::device::DeviceError;
use crate::backend::net::counters::count;
use crate::backend::net::grant::Grant;
use crate::backend::net::link::{Link, Slice, Slices, behind, checksum, gather, scatter};
use crate::backend::net::proto::headers::parse;
use crate::backend::net::proto::offload::{VnetHeader, receive};
use crate::backend::net::proto::spread::{Announce, chunks};
use crate::backend::net::proto::{ETH_HLEN, HEAD, PAGE};
use crate::backend::net::shared::Steering;
use std::io::ErrorKind;
use xen_abi::io::netif::{GsoType, rxf};

/// Packets taken in one turn.
const TURN: usize = 64;
/// After a long packet so many short ones are still expected to be long.
const LONG: u8 = 16;

/// Why no packet is being taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// The link has none.
    Empty,
    /// There may be more.
    Turn,
    /// The guest has to post buffers.
    Starved,
}

/// A receive ring.
pub struct Rx {
    window: Window,
    page: Grant,
    buffer: Buffer,
    staged: Option<Staged>,
    long: u8,
    extras: usize,
    steering: (u32, Steering),
}

impl Rx {
    /// On a ring page.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub fn new(cx: &Cx, page: Grant) -> Result<Rx, DeviceError> {
        let buffer = Buffer::new().ok_or_else(|| DeviceError("no memory for a packet".into()))?;
        let window = Window::new(cx, &page)?;
        let steering = (u32::MAX, Steering::default());
        Ok(Rx { window, page, buffer, staged: None, long: 0, extras: 0, steering })
    }

    /// Grant reference of the ring.
    pub fn gref(&self) -> u32 {
        self.page.gref()
    }

    /// Delivers what there is; why it stopped, and whether the guest wants to be notified. A link that is not `readable`
    /// has nothing.
    ///
    /// # Errors
    /// The ring makes no sense any more, or the link is gone.
    pub fn run(&mut self, cx: &Cx, link: &mut dyn Link, readable: bool) -> Result<(Idle, bool), DeviceError> {
        cx.shared.refresh(&mut self.steering);
        let mut idle = Idle::Turn;
        for _ in 0..TURN {
            idle = self.step(cx, link, readable)?;
            if idle != Idle::Turn {
                break;
            }
        }
        let notify = self.window.publish(cx)?;
        if idle == Idle::Starved && self.window.wait_for(cx, self.missing())? {
            idle = Idle::Turn;
        }
        Ok((idle, notify))
    }

    /// Requests that have to come before anything can go on.
    fn missing(&self) -> usize {
        let need = self.staged.as_ref().map_or(1, |staged| staged.announce.slots(staged.size));
        need.saturating_sub(self.window.len()).max(1)
    }

    /// One packet further.
    fn step(&mut self, cx: &Cx, link: &mut dyn Link, readable: bool) -> Result<Idle, DeviceError> {
        self.window.fill(cx)?;
        if self.staged.is_none() {
            if self.window.flaw(1).is_some() {
                self.window.refuse(cx, 1)?;
                return Ok(Idle::Turn);
            }
            if self.window.len() == 0 {
                return Ok(Idle::Starved);
            }
            match self.receive(cx, link, readable)? {
                Idle::Turn => {}
                idle => return Ok(idle),
            }
        }
        self.deliver(cx)
    }

    /// Where the next packet is to be put.
    fn layout(&self, longest: usize) -> Layout {
        let long = self.long > 0;
        let skipped = if long { self.extras } else { 0 };
        let usable = self.window.flaw(usize::MAX).unwrap_or(self.window.len());
        let wanted = if long { chunks(longest).min(CHUNKS) } else { 1 };
        Layout { placed: wanted.min(usable.saturating_sub(skipped)).max(1), skipped }
    }

    /// Takes a packet from another queue or the link; `Turn` if there was one.
    fn receive(&mut self, cx: &Cx, link: &mut dyn Link, readable: bool) -> Result<Idle, DeviceError> {
        if let Some((header, packet)) = cx.shared.handed(cx.queue) {
            let size = self.buffer.from(0).map_or(0, |buffer| scatter(&packet, &[buffer]));
            self.stage(cx, header, size, Layout::BUFFER, true);
            return Ok(Idle::Turn);
        }
        if !readable {
            return Ok(Idle::Empty);
        }
        let layout = self.layout(link.longest());
        let page = |chunk| self.window.page(cx, layout.slot(chunk));
        let Some(mut into) = (0..layout.placed).map(page).collect::<Option<Slices<'_>>>() else {
            // The guest has given away the memory under a grant in use.
            self.window.refuse(cx, 1)?;
            return Ok(Idle::Turn);
        };
        into.extend(self.buffer.from(layout.placed));
        let mut header = VnetHeader::default();
        count(&cx.shared.counters.syscalls, 1);
        match link.receive(&mut header, &into) {
            Ok(size) if (ETH_HLEN..=CHUNKS * PAGE).contains(&size) => {
                drop(into);
                self.stage(cx, header, size, layout, false);
            }
            Ok(_) => count(&cx.shared.counters.rx_dropped, 1),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(Idle::Empty);
            }
            Err(e) => return Err(DeviceError(format!("the host's end is gone: {e}"))),
        }
        Ok(Idle::Turn)
    }

    /// Decides about a packet: it is staged, dropped, or another queue's.
    fn stage(&mut self, cx: &Cx, header: VnetHeader, size: usize, layout: Layout, handed: bool) {
        let layout = Layout { placed: layout.placed.min(chunks(size)), ..layout };
        let mut staged = Staged { header, size, layout, announce: Announce::default() };
        let (accepts, steering) = (cx.shared.accepts, &self.steering.1);
        let dropped = || count(&cx.shared.counters.rx_dropped, 1);
        if steering.filter.on || steering.hash.is_on() || (!accepts.csum_v6 && header.blank().is_some()) {
            let pieces = staged.pieces(cx, &self.window, &self.buffer);
            let mut head = [0; HEAD];
            let known = gather(&pieces, &mut head);
            let head = head.get(..known).unwrap_or_default();
            if head.first_chunk().is_some_and(|to| !steering.filter.passes(to)) {
                return dropped();
            }
            staged.announce.hash = steering.hash.of(head);
            let queue = steering.hash.queue(staged.announce.hash.as_ref(), cx.shared.queues());
            if steering.hash.is_on() && queue != cx.queue && !handed {
                let mut packet = vec![0; size];
                gather(&pieces, &mut packet);
                if !cx.shared.hand_over(queue, header, packet) {
                    dropped();
                }
                return;
            }
            if !accepts.csum_v6 && parse(head).is_some_and(|headers| headers.v6) {
                complete(&mut staged.header, &pieces);
            }
        }
        (staged.announce.flags, staged.announce.gso) = receive(&staged.header);
        let gso_refused = staged.announce.gso.is_some_and(|gso| match gso.r#type {
            GsoType::TCPV6 => !accepts.gso_v6,
            _ => !accepts.gso_v4,
        });
        let blank_refused = staged.announce.flags & rxf::CSUM_BLANK != 0 && !accepts.csum_v4;
        if (chunks(size) > 1 && !accepts.sg) || gso_refused || blank_refused {
            return dropped();
        }
        self.staged = Some(staged);
    }

    /// Announces the staged packet, if there are requests enough for it.
    fn deliver(&mut self, cx: &Cx) -> Result<Idle, DeviceError> {
        let Some(mut staged) = self.staged.take() else { return Ok(Idle::Turn) };
        let slots = staged.announce.slots(staged.size);
        if let Some(good) = self.window.flaw(slots) {
            // Not enough in a row: save what is in them, and have done with them.
            staged.unplace(cx, &self.window, &self.buffer);
            self.staged = Some(staged);
            self.window.refuse(cx, good + 1)?;
            return Ok(Idle::Turn);
        }
        if self.window.len() < slots {
            self.staged = Some(staged);
            return Ok(Idle::Starved);
        }
        staged.place(cx, &self.window, &self.buffer);
        self.window.respond(cx, &staged.announce, staged.size)?;
        if chunks(staged.size) > 1 {
            (self.long, self.extras) = (LONG, staged.announce.extras());
        } else {
            self.long = self.long.saturating_sub(1);
        }
        count(&cx.shared.counters.rx_packets, 1);
        count(&cx.shared.counters.rx_bytes, staged.size);
        Ok(Idle::Turn)
    }
}

/// Fills in a blank checksum.
fn complete(header: &mut VnetHeader, pieces: &[Slice<'_>]) {
    let Some((start, field)) = header.blank() else { return };
    let sum = checksum(&[], &behind(pieces, start));
    if let Some(to) = pieces.first().and_then(|first| first.subslice(field, 2).ok()) {
        to.copy_from(&sum);
    }
    header.flags = 0;
}
