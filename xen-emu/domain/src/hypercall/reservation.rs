//! Ballooning: XENMEM_{increase,decrease}_reservation and XENMEM_populate_physmap.
//!
//! All three return how many extents were done, errors included; a call that cannot even be read has done as many as
//! its continuation says.

use xen_abi::errno::Errno;
use xen_abi::memory::{MemoryReservation, MemoryReservationCompat};

use crate::domain::Domain;
use crate::effect::Effects;
use crate::hypercall::memory_op::{MEMOP_EXTENT_SHIFT, continue_at, start_extent};
use crate::hypercall::{Answer, Call, Cx, Width, value};
use crate::mem::Gfn;
use crate::physmap::GFN_LIMIT;

/// The largest extents an ordinary domain may ask for (2 MiB).
const MAX_ORDER: u32 = 9;
/// Frames in one go.
const BATCH_FRAMES: u64 = 4096;

/// Does one extent of `frames` frames; false ends the call there.
type Extent = fn(&mut Domain, Gfn, u64, &mut Released, &mut Cx<'_>) -> bool;

/// Frames without a place in the physmap do not exist here, so none can be had.
pub(super) fn increase(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    each_extent(domain, call, cx, |_, _, _, _, _| false)
}

pub(super) fn decrease(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    each_extent(domain, call, cx, |domain, first, frames, released, cx| {
        (first.0..first.0 + frames).all(|gfn| remove(domain, Gfn(gfn), released, cx))
    })
}

pub(super) fn populate(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    each_extent(domain, call, cx, |domain, first, frames, _, cx| {
        let range = first.0..first.0 + frames;
        let new = range.clone().filter(|&gfn| !domain.physmap.is_present(Gfn(gfn))).count() as u64;
        let room = domain.config.max_pages.saturating_sub(domain.pages());
        if new > room || !range.clone().all(|gfn| domain.physmap.is_ram(Gfn(gfn))) {
            return false;
        }
        if !range.clone().all(|gfn| clear_place(domain, Gfn(gfn), cx))
            || cx.fx.populate_ram(first, frames).is_err()
        {
            return false;
        }
        for gfn in range {
            domain.physmap.give(Gfn(gfn));
        }
        true
    })
}

/// Takes one frame from the guest: its RAM, or the special page it has put there.
fn remove(domain: &mut Domain, gfn: Gfn, released: &mut Released, cx: &mut Cx<'_>) -> bool {
    if let Some(page) = domain.physmap.special_at(gfn) {
        return domain.unplace_special(page, cx).is_ok();
    }
    let taken = !domain.is_away(gfn) && domain.physmap.take(gfn);
    if taken {
        released.add(gfn, cx.fx);
    }
    taken
}

/// Makes way for a fresh page: what is there goes, as Xen replaces a mapping.
fn clear_place(domain: &mut Domain, gfn: Gfn, cx: &mut Cx<'_>) -> bool {
    if let Some(page) = domain.physmap.special_at(gfn) {
        return domain.unplace_special(page, cx).is_ok();
    }
    // A page of another domain stays until it is unmapped.
    if domain.is_away(gfn) || domain.grants.mapped.is_at(gfn) {
        return false;
    }
    if domain.physmap.is_present(gfn) {
        cx.fx.release_ram(gfn, 1);
    }
    true
}

fn each_extent(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>, extent: Extent) -> Answer {
    let start = start_extent(call);
    let read = cx.get_twin::<MemoryReservation, MemoryReservationCompat>(call.width, call.arg(1));
    let Ok(wanted) = read else { return value(start) };
    if wanted.nr_extents > max_extents(call.width) || start >= wanted.nr_extents {
        return value(start);
    }
    match domain.target(wanted.domid) {
        Err(Errno::ESRCH) => return value(start),
        permitted => permitted?,
    }
    if wanted.extent_order > MAX_ORDER {
        return value(start);
    }
    let frames = 1 << wanted.extent_order;
    let mut released = Released::default();
    let mut done = start;
    let mut failed = false;
    while !failed && done < wanted.nr_extents && done - start < BATCH_FRAMES / frames {
        let first = cx.get_long(call.width, wanted.extent_start, done).ok().filter(|gfn| *gfn < GFN_LIMIT);
        failed = !first.is_some_and(|gfn| extent(domain, Gfn(gfn), frames, &mut released, cx));
        done += u64::from(!failed);
    }
    released.flush(cx.fx);
    if failed || done == wanted.nr_extents { value(done) } else { Ok(continue_at(call, done)) }
}

/// How many extents a continuation can tell.
const fn max_extents(width: Width) -> u64 {
    match width {
        Width::Bits64 => u64::MAX >> MEMOP_EXTENT_SHIFT,
        Width::Bits32 => (u32::MAX >> MEMOP_EXTENT_SHIFT) as u64,
    }
}

/// Frames given up, gathered into runs: balloons go frame by frame, upwards or downwards, the host by ranges.
#[derive(Default)]
struct Released {
    first: u64,
    frames: u64,
}

impl Released {
    fn add(&mut self, gfn: Gfn, fx: &mut dyn Effects) {
        let above = gfn.0 == self.first + self.frames;
        let below = gfn.0 + 1 == self.first;
        if self.frames > 0 && (above || below) {
            self.first = self.first.min(gfn.0);
            self.frames += 1;
        } else {
            self.flush(fx);
            *self = Released { first: gfn.0, frames: 1 };
        }
    }

    fn flush(&mut self, fx: &mut dyn Effects) {
        if self.frames > 0 {
            fx.release_ram(Gfn(self.first), self.frames);
        }
        *self = Released::default();
    }
}
