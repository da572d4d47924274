//! Event channels in the FIFO layout: event words in pages of the kernel's own, control blocks, and the upcall handler.
#![forbid(unsafe_code)]

use crate::events::evtchn_op;
use crate::{cpu, page::Page};
use core::sync::atomic::{AtomicU32, Ordering};
use xen_abi::Errno;
use xen_abi::event_channel::fifo::{BUSY, LINK_MASK, LINKED, MASKED, MAX_QUEUES, PENDING, WORDS_PER_PAGE};
use xen_abi::event_channel::{EvtchnOp, ExpandArray, InitControl, SetPriority};
use xen_abi::xen::Port;

/// vCPUs that can have a control block.
pub const VCPUS: usize = 8;
/// Pages of event words.
const PAGES: usize = 4;
/// Bytes from one control block to the next.
const BLOCK: usize = 128;
/// Offset of the heads in a control block.
const HEAD: usize = 8;

static WORDS: [Page; PAGES] = [const { Page::zero() }; PAGES];
static CONTROL: Page = Page::zero();
/// The next event of each queue that has been begun, per vCPU.
static HEADS: [[AtomicU32; MAX_QUEUES]; VCPUS] = [const { [const { AtomicU32::new(0) }; MAX_QUEUES] }; VCPUS];

/// Gives a vCPU its control block; the first such call makes FIFO the ABI.
///
/// # Errors
/// What the hypervisor answers.
pub fn init_control(vcpu: u32) -> Result<u8, Errno> {
    let offset = vcpu * u32::try_from(BLOCK).unwrap_or(0);
    let mut arg = InitControl { control_gfn: CONTROL.gfn(), offset, vcpu, link_bits: 0, pad: [0; 7] };
    evtchn_op(EvtchnOp::INIT_CONTROL, &mut arg)?;
    Ok(arg.link_bits)
}

/// Clears control blocks and heads, before FIFO is begun anew.
pub fn forget() {
    CONTROL.fill(0);
    HEADS.iter().flatten().for_each(|head| head.store(0, Ordering::SeqCst));
}

/// Adds the pages of event words, all ports masked, for so many ports at most.
///
/// # Errors
/// What the hypervisor answers.
pub fn expand_array(ports: u32) -> Result<(), Errno> {
    let pages = WORDS.iter().take(ports.div_ceil(WORDS_PER_PAGE) as usize);
    for page in pages {
        (0..WORDS_PER_PAGE as usize).for_each(|n| page.u32(n * 4).store(MASKED, Ordering::SeqCst));
        evtchn_op(EvtchnOp::EXPAND_ARRAY, &mut ExpandArray { array_gfn: page.gfn() })?;
    }
    Ok(())
}

/// `EVTCHNOP_set_priority`.
///
/// # Errors
/// What the hypervisor answers.
pub fn set_priority(port: Port, priority: u32) -> Result<(), Errno> {
    evtchn_op(EvtchnOp::SET_PRIORITY, &mut SetPriority { port, priority }).map(drop)
}

/// A port's event word; ports beyond the pages share one.
#[must_use]
pub fn word(port: Port) -> &'static AtomicU32 {
    let [first, ..] = &WORDS;
    let page = WORDS.get((port.0 / WORDS_PER_PAGE) as usize).unwrap_or(first);
    page.u32((port.0 % WORDS_PER_PAGE) as usize * 4)
}

/// Masks a port.
pub fn mask(port: Port) {
    word(port).fetch_or(MASKED, Ordering::SeqCst);
}

/// Whether a port is pending.
#[must_use]
pub fn is_pending(port: Port) -> bool {
    word(port).load(Ordering::SeqCst) & PENDING != 0
}

/// Unmasks a port; the hypervisor is asked only when an event is waiting.
///
/// # Errors
/// What the hypervisor answers.
pub fn unmask(port: Port) -> Result<(), Errno> {
    let word = word(port);
    let mut value = word.load(Ordering::SeqCst);
    while value & PENDING == 0 {
        let quiet = value & !BUSY;
        match word.compare_exchange(quiet, quiet & !MASKED, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Ok(()),
            Err(found) => value = found,
        }
        cpu::pause();
    }
    crate::events::unmask(port)
}

/// What a vCPU does in an upcall, after it has taken `evtchn_upcall_pending`: every event of its queues, the highest
/// priority first.
pub fn take(vcpu: usize, mut handle: impl FnMut(Port)) {
    let ready = CONTROL.u32(vcpu * BLOCK);
    let Some(heads) = HEADS.get(vcpu) else { return };
    let mut queues = ready.swap(0, Ordering::SeqCst);
    while queues != 0 {
        let queue = queues.trailing_zeros() as usize;
        let Some(next) = heads.get(queue) else { return };
        let port = match next.load(Ordering::SeqCst) {
            0 => CONTROL.u32(vcpu * BLOCK + HEAD + queue * 4).load(Ordering::SeqCst),
            port => port,
        };
        let word = word(Port(port));
        let left = word.fetch_and(!(LINKED | LINK_MASK), Ordering::SeqCst) & LINK_MASK;
        next.store(left, Ordering::SeqCst);
        if left == 0 {
            queues &= !(1 << queue);
        }
        let value = word.load(Ordering::SeqCst);
        if value & (PENDING | MASKED) == PENDING {
            word.fetch_and(!PENDING, Ordering::SeqCst);
            handle(Port(port));
        }
        queues |= ready.swap(0, Ordering::SeqCst);
    }
}
