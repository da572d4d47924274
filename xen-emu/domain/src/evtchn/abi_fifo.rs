//! The FIFO ABI: one event word per port in pages the guest provides, and per vCPU a control block with the heads of
//! 16 queues, one per priority (`public/event_channel.h`).
//!
//! A queue is a list through the LINK fields of event words. The guest takes events off at the head, clearing LINKED;
//! we append at the tail, whose number only we know. What the guest writes into a LINK is never followed.
//!
//! Order of a delivery: PENDING; if the port is neither masked nor LINKED already, LINKED; then the link of the tail,
//! or the head where the tail has been taken off meanwhile; then, if the queue was empty, its bit in `ready`; if that
//! was clear, `evtchn_upcall_pending`; if that was clear, interrupt. BUSY keeps the guest from unmasking the tail
//! while its link is written, so that the guest cannot make us try for ever.

use xen_abi::Width;
use xen_abi::errno::Errno;
use xen_abi::event_channel::fifo::{
    BUSY, LINK_MASK, LINKED, MASKED, MAX_QUEUES, NR_CHANNELS, PENDING, PRIORITY_DEFAULT, PRIORITY_MIN,
    WORDS_PER_PAGE,
};
use xen_abi::shared_info::VCPU_UPCALL_PENDING;

use crate::effect::{Port, VcpuId};
use crate::evtchn::abi::{Place, PortOps, Raised};
use crate::mem::{Fault, Gfn, Gpa, GuestMem};

/// Pages that the event array can have.
const MAX_PAGES: usize = (NR_CHANNELS / WORDS_PER_PAGE) as usize;
/// Changes that a guest can make to a word while it is BUSY, and some more.
const LINK_TRIES: u32 = 8;
/// Offset of `head` in the control block.
const HEAD: u64 = 8;

/// One queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Queue {
    vcpu: VcpuId,
    priority: u32,
}

/// What is known of a port besides its word.
#[derive(Clone, Copy, Debug)]
struct State {
    priority: u32,
    /// Where it was linked last.
    queue: Option<Queue>,
    /// It became pending when its word was not there yet.
    early: bool,
}

impl State {
    const FRESH: State = State { priority: PRIORITY_DEFAULT, queue: None, early: false };
}

/// A vCPU's control block and the tails of its queues (0 = empty), which the guest does not see.
#[derive(Debug)]
struct Control {
    block: Gpa,
    tails: [Port; MAX_QUEUES],
}

/// The ABI with the guest's pages.
#[derive(Debug)]
pub(crate) struct Fifo {
    pages: Vec<Gfn>,
    controls: Vec<Option<Control>>,
    ports: Vec<State>,
    /// The vCPU whose call has begun the switch, until it has taken over what was pending under the 2-level ABI.
    pub settler: Option<VcpuId>,
}

impl Fifo {
    /// For so many vCPUs, without a page, by a call of `settler`.
    pub(crate) fn new(vcpus: usize, settler: VcpuId) -> Fifo {
        let controls = (0..vcpus).map(|_| None).collect();
        Fifo { pages: Vec::new(), controls, ports: Vec::new(), settler: Some(settler) }
    }

    /// Sets a vCPU's control block, once.
    ///
    /// # Errors
    /// -EINVAL if it has one.
    pub(crate) fn set_control(&mut self, vcpu: VcpuId, block: Gpa) -> Result<(), Errno> {
        let slot = self.controls.get_mut(vcpu as usize).ok_or(Errno::ENOENT)?;
        if slot.is_some() {
            return Err(Errno::EINVAL);
        }
        *slot = Some(Control { block, tails: [0; MAX_QUEUES] });
        Ok(())
    }

    /// Whether the event array can grow.
    ///
    /// # Errors
    /// -ENOSPC if not.
    pub(crate) fn has_room(&self) -> Result<(), Errno> {
        if self.pages.len() < MAX_PAGES { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    /// One more page of the event array; the ports that became pending without it are to be raised now.
    pub(crate) fn add_page(&mut self, page: Gfn) -> Vec<Port> {
        let words = WORDS_PER_PAGE as usize;
        let first = self.pages.len() * words;
        self.pages.push(page);
        let ports = (0..).zip(&mut self.ports).skip(first).take(words);
        ports.filter_map(|(port, state)| std::mem::take(&mut state.early).then_some(port)).collect()
    }

    /// Every frame that is written to.
    #[cfg(test)]
    pub(crate) fn frames(&self) -> Vec<u64> {
        let blocks = self.controls.iter().flatten().map(|control| control.block.gfn());
        blocks.chain(self.pages.iter().copied()).map(|gfn| gfn.0).collect()
    }

    fn word(&self, port: Port) -> Option<Gpa> {
        let page = self.pages.get((port / WORDS_PER_PAGE) as usize)?;
        Some(page.gpa().offset(u64::from(port % WORDS_PER_PAGE) * 4))
    }

    fn state(&mut self, port: Port) -> &mut State {
        let index = (port % NR_CHANNELS) as usize;
        if self.ports.len() <= index {
            self.ports.resize(index + 1, State::FRESH);
        }
        #[expect(clippy::indexing_slicing, reason = "just made sure of it")]
        &mut self.ports[index]
    }

    fn tail(&mut self, queue: Queue) -> Option<&mut Port> {
        let control = self.controls.get_mut(queue.vcpu as usize)?.as_mut()?;
        control.tails.get_mut(queue.priority as usize)
    }

    /// Appends a port that is LINKED now. True: to a queue of which the guest may have seen the end.
    fn append(&mut self, mem: &dyn GuestMem, block: Gpa, queue: Queue, port: Port) -> Result<bool, Fault> {
        let last = self.state(port).queue.replace(queue);
        // The tail of its last queue was this port: that queue is empty, and its end leads elsewhere now.
        if let Some(tail) = last.and_then(|last| self.tail(last)).filter(|tail| **tail == port) {
            *tail = 0;
        }
        let tail = self.tail(queue).map_or(0, |tail| std::mem::replace(tail, port));
        let linked = match self.word(tail).filter(|_| tail != 0) {
            Some(word) => link(mem, word, port)?,
            None => false,
        };
        if !linked {
            mem.store_u32(block.offset(HEAD + u64::from(queue.priority) * 4), port)?;
        }
        Ok(!linked)
    }
}

/// Makes `word` lead to `next`; false if it is on no queue any more.
fn link(mem: &dyn GuestMem, word: Gpa, next: Port) -> Result<bool, Fault> {
    let mut value = mem.load_u32(word)?;
    for attempt in 0..LINK_TRIES {
        if value & LINKED == 0 {
            if attempt > 0 {
                mem.fetch_and_u32(word, !BUSY)?;
            }
            return Ok(false);
        }
        match mem.cas_u32(word, value, value & !(BUSY | LINK_MASK) | next)? {
            Ok(_) => return Ok(true),
            Err(_) if attempt == 0 => value = mem.fetch_or_u32(word, BUSY)? | BUSY,
            Err(found) => value = found,
        }
    }
    // Only a guest that breaks the rules gets here; it loses what was in the queue.
    mem.fetch_and_u32(word, !BUSY)?;
    Ok(false)
}

impl PortOps for Fifo {
    fn name(&self) -> &'static str {
        "FIFO"
    }

    fn max_ports(&self, _width: Width) -> u32 {
        NR_CHANNELS
    }

    fn offloadable(&self) -> bool {
        false
    }

    fn init(&mut self, port: Port) {
        let state = self.state(port);
        *state = State { queue: state.queue, ..State::FRESH };
    }

    fn is_busy(&self, mem: &dyn GuestMem, port: Port) -> bool {
        self.word(port).is_some_and(|word| mem.load_u32(word).is_ok_and(|word| word & LINKED != 0))
    }

    fn set_pending(&mut self, mem: &dyn GuestMem, at: &Place, port: Port) -> Result<Raised, Fault> {
        let Some(word) = self.word(port) else {
            self.state(port).early = true;
            return Ok(Raised::Quiet);
        };
        if mem.fetch_or_u32(word, PENDING)? & (MASKED | LINKED) != 0 {
            return Ok(Raised::Quiet);
        }
        // A guest must not unmask anything before the vCPU has its control block: as on Xen, such an event is on no queue.
        let control = self.controls.get(at.vcpu as usize).and_then(Option::as_ref);
        let Some(block) = control.map(|control| control.block) else { return Ok(Raised::Quiet) };
        if mem.fetch_or_u32(word, LINKED)? & LINKED != 0 {
            return Ok(Raised::Quiet);
        }
        let queue = Queue { vcpu: at.vcpu, priority: self.state(port).priority };
        let ready = 1 << queue.priority;
        if !self.append(mem, block, queue, port)? || mem.fetch_or_u32(block, ready)? & ready != 0 {
            return Ok(Raised::Quiet);
        }
        let Some(info) = at.vcpu_info else { return Ok(Raised::Quiet) };
        match mem.fetch_or_u8(info.offset(VCPU_UPCALL_PENDING as u64), 1)? {
            0 => Ok(Raised::Upcall),
            _ => Ok(Raised::Quiet),
        }
    }

    fn clear_pending(&mut self, mem: &dyn GuestMem, _at: &Place, port: Port) -> Result<bool, Fault> {
        let early = std::mem::take(&mut self.state(port).early);
        match self.word(port) {
            Some(word) => Ok(mem.fetch_and_u32(word, !PENDING)? & PENDING != 0),
            None => Ok(early),
        }
    }

    fn unmask(&mut self, mem: &dyn GuestMem, _at: &Place, port: Port) -> Result<bool, Fault> {
        match self.word(port) {
            Some(word) => Ok(mem.fetch_and_u32(word, !MASKED)? & PENDING != 0),
            None => Ok(false),
        }
    }

    fn is_pending(&self, mem: &dyn GuestMem, _at: &Place, port: Port) -> Result<bool, Fault> {
        match self.word(port) {
            Some(word) => Ok(mem.load_u32(word)? & PENDING != 0),
            None => Ok(false),
        }
    }

    fn set_priority(&mut self, port: Port, priority: u32) -> Result<(), Errno> {
        if priority > PRIORITY_MIN {
            return Err(Errno::EINVAL);
        }
        // An event that is queued already stays where it is.
        self.state(port).priority = priority;
        Ok(())
    }

    fn fifo(&mut self) -> Option<&mut Fifo> {
        Some(self)
    }
}
