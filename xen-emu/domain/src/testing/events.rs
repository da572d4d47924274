//! The guest's side of both event channel ABIs, as their headers have it: masks, and what an upcall handler does.

use xen_abi::event_channel::fifo::{BUSY, LINK_MASK, LINKED, MASKED, MAX_QUEUES, PENDING};
use xen_abi::shared_info::Layout;

use crate::effect::Port;
use crate::mem::{Gpa, GuestMem};

/// Where a guest has its events.
#[derive(Clone, Debug)]
pub enum GuestEvents {
    /// The 2-level ABI.
    TwoLevel {
        /// shared_info.
        shared_info: Gpa,
        /// Its layout.
        layout: Layout,
    },
    /// The FIFO ABI.
    Fifo {
        /// The event array, in one piece.
        array: Gpa,
        /// Control blocks by vCPU.
        blocks: Vec<Gpa>,
        /// The next event of each queue that has been begun, by vCPU.
        heads: Vec<[Port; MAX_QUEUES]>,
    },
}

/// What a guest does about an unmasked port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmasked {
    /// Nothing was pending, or is on its way.
    Done,
    /// EVTCHNOP_unmask has to do it.
    Ask,
}

/// Guest memory that must be there.
macro_rules! must {
    ($access:expr) => {
        $access.unwrap_or_else(|fault| panic!("the guest's own memory: {fault}"))
    };
}

impl GuestEvents {
    /// FIFO with these pages.
    #[must_use]
    pub fn fifo(array: Gpa, blocks: Vec<Gpa>) -> GuestEvents {
        let heads = vec![[0; MAX_QUEUES]; blocks.len()];
        GuestEvents::Fifo { array, blocks, heads }
    }

    /// The word of a port in the bitmap at `offset`, or in the event array, and its bit there.
    fn word(&self, offset: impl Fn(&Layout) -> usize, bit: u32, port: Port) -> (Gpa, u32) {
        match self {
            GuestEvents::TwoLevel { shared_info, layout } => {
                let word = offset(layout) as u64 + u64::from(port / 32 * 4);
                (shared_info.offset(word), 1 << (port % 32))
            }
            GuestEvents::Fifo { array, .. } => (array.offset(u64::from(port) * 4), bit),
        }
    }

    fn mask_word(&self, port: Port) -> (Gpa, u32) {
        self.word(|layout| layout.mask, MASKED, port)
    }

    fn pending_word(&self, port: Port) -> (Gpa, u32) {
        self.word(|layout| layout.pending, PENDING, port)
    }

    /// Masks a port.
    pub fn mask(&self, mem: &dyn GuestMem, port: Port) {
        let (word, bit) = self.mask_word(port);
        must!(mem.fetch_or_u32(word, bit));
    }

    /// Whether a port is masked.
    #[must_use]
    pub fn is_masked(&self, mem: &dyn GuestMem, port: Port) -> bool {
        let (word, bit) = self.mask_word(port);
        must!(mem.load_u32(word)) & bit != 0
    }

    /// Whether a port is pending.
    #[must_use]
    pub fn is_pending(&self, mem: &dyn GuestMem, port: Port) -> bool {
        let (word, bit) = self.pending_word(port);
        must!(mem.load_u32(word)) & bit != 0
    }

    /// Unmasks a port where that needs no hypercall; `spin` is called while the word is BUSY.
    pub fn unmask(&self, mem: &dyn GuestMem, port: Port, spin: impl Fn()) -> Unmasked {
        let (word, bit) = self.mask_word(port);
        if matches!(self, GuestEvents::TwoLevel { .. }) {
            // The mask first, or an event that comes between is seen by nobody; EVTCHNOP_unmask wants it set.
            must!(mem.fetch_and_u32(word, !bit));
            if !self.is_pending(mem, port) {
                return Unmasked::Done;
            }
            must!(mem.fetch_or_u32(word, bit));
            return Unmasked::Ask;
        }
        let mut value = must!(mem.load_u32(word));
        loop {
            if value & PENDING != 0 {
                return Unmasked::Ask;
            }
            if value & BUSY != 0 {
                spin();
            }
            match must!(mem.cas_u32(word, value & !BUSY, value & !(BUSY | bit))) {
                Ok(_) => return Unmasked::Done,
                Err(found) => value = found,
            }
        }
    }

    /// The upcall handler of a vCPU whose vcpu_info lies at `info`: the ports it has an event of, in order.
    pub fn take(&mut self, mem: &dyn GuestMem, vcpu: usize, info: Gpa) -> Vec<Port> {
        // evtchn_upcall_pending is the first byte.
        if must!(mem.fetch_and_u32(info, !0xff)) & 0xff == 0 {
            return Vec::new();
        }
        let mut events = Vec::new();
        match self {
            GuestEvents::TwoLevel { shared_info, layout } => {
                take_2l(mem, *shared_info, layout, info, &mut events);
            }
            GuestEvents::Fifo { array, blocks, heads } => {
                if let (Some(block), Some(heads)) = (blocks.get(vcpu), heads.get_mut(vcpu)) {
                    take_fifo(mem, *array, *block, heads, &mut events);
                }
            }
        }
        events
    }
}

/// Every word whose bit is in the selector, and in it every port that is pending and not masked.
fn take_2l(mem: &dyn GuestMem, shared_info: Gpa, layout: &Layout, info: Gpa, events: &mut Vec<Port>) {
    let halves = layout.width.bits() / 32;
    let selector = info.offset(layout.vcpu_pending_sel as u64);
    for half in 0..halves {
        let selected = must!(mem.fetch_and_u32(selector.offset(u64::from(half) * 4), 0));
        for index in (0..32).filter(|index| selected >> index & 1 != 0) {
            for word in (0..halves).map(|part| (half * 32 + index) * halves + part) {
                let at = |offset: usize| shared_info.offset(offset as u64 + u64::from(word) * 4);
                let unmasked = !must!(mem.load_u32(at(layout.mask)));
                let ready = must!(mem.load_u32(at(layout.pending))) & unmasked;
                must!(mem.fetch_and_u32(at(layout.pending), !ready));
                events.extend((0..32).filter(|bit| ready >> bit & 1 != 0).map(|bit| word * 32 + bit));
            }
        }
    }
}

/// Event by event from the queue of the highest priority that is ready.
fn take_fifo(
    mem: &dyn GuestMem,
    array: Gpa,
    block: Gpa,
    heads: &mut [Port; MAX_QUEUES],
    events: &mut Vec<Port>,
) {
    let mut ready = must!(mem.fetch_and_u32(block, 0));
    while ready != 0 {
        let queue = ready.trailing_zeros();
        let Some(head) = heads.get_mut(queue as usize) else { return };
        if *head == 0 {
            *head = must!(mem.load_u32(block.offset(8 + u64::from(queue) * 4)));
        }
        let port = *head;
        let word = array.offset(u64::from(port) * 4);
        // The event leaves the queue, and says what comes next.
        let before = must!(mem.fetch_and_u32(word, !(LINKED | LINK_MASK)));
        *head = before & LINK_MASK;
        if *head == 0 {
            ready &= !(1 << queue);
        }
        let value = must!(mem.load_u32(word));
        if value & PENDING != 0 && value & MASKED == 0 {
            must!(mem.fetch_and_u32(word, !PENDING));
            events.push(port);
        }
        ready |= must!(mem.fetch_and_u32(block, 0));
    }
}
