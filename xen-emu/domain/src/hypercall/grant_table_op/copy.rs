//! GNTTABOP_copy: bytes from one page to another, each end a grant or a frame of the guest's own.

use xen_abi::grant_table::{Copy, CopyCompat, CopyPtr, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GntStatus};
use xen_abi::{Domid, Gref};

use crate::domain::Domain;
use crate::gnttab::Use;
use crate::hypercall::grant_table_op::{each, granter, status};
use crate::hypercall::{Answer, Call, Cx, Width};
use crate::mem::{Gfn, Gpa};
use crate::physmap::GFN_LIMIT;

const PAGE: u64 = 4096;

pub(super) fn copy(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let (size, offset) = match call.width {
        Width::Bits64 => (size_of::<Copy>(), core::mem::offset_of!(Copy, status)),
        Width::Bits32 => (size_of::<CopyCompat>(), core::mem::offset_of!(CopyCompat, status)),
    };
    each(call, size, |at| {
        let op = cx.get_twin::<Copy, CopyCompat>(call.width, at)?;
        let status = status(one(domain, &op, cx));
        cx.put(at.wrapping_add(offset as u64), &status)
    })
}

/// One end of a copy while it lasts.
struct End {
    /// The page.
    page: Gpa,
    /// Which bytes of it may be touched.
    from: u64,
    to: u64,
    /// The grant it comes from, to be given back.
    gref: Option<Gref>,
}

/// In Xen's order: the domains, the pages, the bounds.
fn one(domain: &Domain, op: &Copy, cx: &Cx<'_>) -> Result<(), GntStatus> {
    let (by_source, by_dest) = (op.flags & GNTCOPY_SOURCE_GREF != 0, op.flags & GNTCOPY_DEST_GREF != 0);
    whose(domain, &op.source, by_source)?;
    whose(domain, &op.dest, by_dest)?;
    let source = claim(domain, &op.source, by_source, false, cx)?;
    let copied = claim(domain, &op.dest, by_dest, true, cx).and_then(|dest| {
        let copied = transport(op, &source, &dest, cx);
        release(domain, &dest, true, cx);
        copied
    });
    release(domain, &source, false, cx);
    copied
}

/// Only the caller's own frames may be named as such.
fn whose(domain: &Domain, end: &CopyPtr, by_gref: bool) -> Result<(), GntStatus> {
    match (end.domid, by_gref) {
        (Domid::SELF, _) => Ok(()),
        (_, false) => Err(GntStatus::PERMISSION_DENIED),
        (other, true) => granter(domain, other),
    }
}

fn claim(domain: &Domain, end: &CopyPtr, by_gref: bool, write: bool, cx: &Cx<'_>) -> Result<End, GntStatus> {
    if !by_gref {
        let gfn = Gfn(end.u);
        let there = gfn.0 < GFN_LIMIT && domain.has_memory(gfn);
        return match there {
            true => Ok(End { page: gfn.gpa(), from: 0, to: PAGE, gref: None }),
            false => Err(GntStatus::BAD_PAGE),
        };
    }
    #[expect(clippy::cast_possible_truncation, reason = "a grant_ref_t in a union with a frame number")]
    let gref = Gref(end.u as u32);
    let usage = Use { by: domain.domid(), write, whole: false };
    let pinned = domain.grants.active.pin(cx.mem, gref, usage)?;
    let from = pinned.gpa.0 % PAGE;
    let to = from + u64::from(pinned.len);
    Ok(End { page: pinned.gpa.gfn().gpa(), from, to, gref: Some(gref) })
}

fn release(domain: &Domain, end: &End, write: bool, cx: &Cx<'_>) {
    if let Some(gref) = end.gref {
        domain.grants.active.unpin(cx.mem, gref, write);
    }
}

/// Checks the bounds and copies, through a buffer: the two may be one page.
fn transport(op: &Copy, source: &End, dest: &End, cx: &Cx<'_>) -> Result<(), GntStatus> {
    let len = u64::from(op.len);
    let ends = [(source, u64::from(op.source.offset)), (dest, u64::from(op.dest.offset))];
    if ends.iter().any(|(_, offset)| offset + len > PAGE) {
        return Err(GntStatus::BAD_COPY_ARG);
    }
    if ends.iter().any(|(end, offset)| *offset < end.from || offset + len > end.to) {
        return Err(GntStatus::GENERAL_ERROR);
    }
    let [(source, from), (dest, to)] = ends;
    let mut buf = [0; 4096];
    let bytes = buf.get_mut(..usize::from(op.len)).ok_or(GntStatus::BAD_COPY_ARG)?;
    cx.mem.read(source.page.offset(from), bytes).map_err(|_| GntStatus::BAD_PAGE)?;
    cx.mem.write(dest.page.offset(to), bytes).map_err(|_| GntStatus::BAD_PAGE)
}
