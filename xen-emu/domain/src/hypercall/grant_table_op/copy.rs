//! GNTTABOP_copy: bytes from one page to another, each end a grant or a frame of the guest's own. What is another
//! domain's is read and written by that domain's process.

use xen_abi::grant_table::{Copy, CopyCompat, CopyPtr, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GntStatus};
use xen_abi::{Domid, Gref};

use crate::domain::Domain;
use crate::effect::VcpuId;
use crate::gnttab::Use;
use crate::hypercall::grant_table_op::{Granter, Step, ask_for, each, granter, status};
use crate::hypercall::{Answer, Call, Cx, Width};
use crate::mem::{Gfn, Gpa};
use crate::peer::{About, Ask, Told};
use crate::physmap::GFN_LIMIT;

const PAGE: u64 = 4096;

pub(super) fn copy(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let (size, offset) = match call.width {
        Width::Bits64 => (size_of::<Copy>(), core::mem::offset_of!(Copy, status)),
        Width::Bits32 => (size_of::<CopyCompat>(), core::mem::offset_of!(CopyCompat, status)),
    };
    each(call, size, |at| {
        let mine = |about| match about {
            About::Copy(op) => Some(op),
            _ => None,
        };
        let copied = match domain.told(call.vcpu, mine, cx) {
            Some((op, told)) => go_on(domain, call.vcpu, &op, told, cx),
            None => {
                let op = cx.get_twin::<Copy, CopyCompat>(call.width, at)?;
                begin(domain, call.vcpu, &op, cx)
            }
        };
        if let Ok(Step::Ask) = copied {
            return Ok(Step::Ask);
        }
        cx.put(at.wrapping_add(offset as u64), &status(copied.map(drop)))?;
        Ok(Step::Done)
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

/// Whether the ends are grants.
fn by_gref(op: &Copy) -> (bool, bool) {
    (op.flags & GNTCOPY_SOURCE_GREF != 0, op.flags & GNTCOPY_DEST_GREF != 0)
}

/// In Xen's order: the domains, the pages, the bounds.
fn begin(domain: &mut Domain, vcpu: VcpuId, op: &Copy, cx: &mut Cx<'_>) -> Result<Step, GntStatus> {
    let (by_source, by_dest) = by_gref(op);
    let from = whose(domain, &op.source, by_source)?;
    let to = whose(domain, &op.dest, by_dest)?;
    if (from, to) == (Granter::Own, Granter::Own) {
        return within(domain, op, cx);
    }
    in_page(op)?;
    if let Granter::Other(dom) = from {
        let ask = Ask::Read { gref: gref(&op.source), offset: op.source.offset, len: op.len };
        return ask_for(domain, vcpu, (dom, ask), About::Copy(*op), cx);
    }
    let source = claim(domain, &op.source, by_source, false, cx)?;
    let bytes = read(op, &source, cx);
    release(domain, &source, false, cx);
    put(domain, vcpu, op, bytes?, cx)
}

/// Another domain has answered: with what to write here or elsewhere, or that all is written.
fn go_on(
    domain: &mut Domain,
    vcpu: VcpuId,
    op: &Copy,
    told: Told,
    cx: &mut Cx<'_>,
) -> Result<Step, GntStatus> {
    match told {
        Told::Bytes(bytes) if bytes.len() == usize::from(op.len) => put(domain, vcpu, op, bytes, cx),
        Told::Done => Ok(Step::Done),
        told => Err(told.status()),
    }
}

/// Writes what was read.
fn put(
    domain: &mut Domain,
    vcpu: VcpuId,
    op: &Copy,
    bytes: Vec<u8>,
    cx: &mut Cx<'_>,
) -> Result<Step, GntStatus> {
    let (_, by_dest) = by_gref(op);
    if let Granter::Other(dom) = whose(domain, &op.dest, by_dest)? {
        let ask = Ask::Write { gref: gref(&op.dest), offset: op.dest.offset, bytes };
        return ask_for(domain, vcpu, (dom, ask), About::Copy(*op), cx);
    }
    let dest = claim(domain, &op.dest, by_dest, true, cx)?;
    let written = write(op, &dest, &bytes, cx);
    release(domain, &dest, true, cx);
    written.map(|()| Step::Done)
}

/// Both ends are the guest's own.
fn within(domain: &Domain, op: &Copy, cx: &Cx<'_>) -> Result<Step, GntStatus> {
    let (by_source, by_dest) = by_gref(op);
    let source = claim(domain, &op.source, by_source, false, cx)?;
    let copied = claim(domain, &op.dest, by_dest, true, cx).and_then(|dest| {
        let copied = transport(op, &source, &dest, cx);
        release(domain, &dest, true, cx);
        copied
    });
    release(domain, &source, false, cx);
    copied.map(|()| Step::Done)
}

/// Only the caller's own frames may be named as such.
fn whose(domain: &Domain, end: &CopyPtr, by_gref: bool) -> Result<Granter, GntStatus> {
    match (end.domid, by_gref) {
        (Domid::SELF, _) => Ok(Granter::Own),
        (_, false) => Err(GntStatus::PERMISSION_DENIED),
        (other, true) => granter(domain, other),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a grant_ref_t in a union with a frame number")]
const fn gref(end: &CopyPtr) -> Gref {
    Gref(end.u as u32)
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
    let usage = Use { by: domain.domid(), write, whole: false };
    let pinned = domain.grants.active.pin(cx.mem, gref(end), usage)?;
    let from = pinned.gpa.0 % PAGE;
    let to = from + u64::from(pinned.len);
    Ok(End { page: pinned.gpa.gfn().gpa(), from, to, gref: Some(gref(end)) })
}

fn release(domain: &Domain, end: &End, write: bool, cx: &Cx<'_>) {
    if let Some(gref) = end.gref {
        domain.grants.active.unpin(cx.mem, gref, write);
    }
}

/// Neither end crosses its page.
fn in_page(op: &Copy) -> Result<(), GntStatus> {
    let inside = |offset: u16| u64::from(offset) + u64::from(op.len) <= PAGE;
    if inside(op.source.offset) && inside(op.dest.offset) { Ok(()) } else { Err(GntStatus::BAD_COPY_ARG) }
}

/// Where the bytes of an end are, if it may be touched there.
fn place(op: &Copy, end: &End, offset: u16) -> Result<Gpa, GntStatus> {
    let (first, last) = (u64::from(offset), u64::from(offset) + u64::from(op.len));
    if first < end.from || last > end.to {
        return Err(GntStatus::GENERAL_ERROR);
    }
    Ok(end.page.offset(first))
}

fn read(op: &Copy, source: &End, cx: &Cx<'_>) -> Result<Vec<u8>, GntStatus> {
    let mut bytes = vec![0; usize::from(op.len)];
    cx.mem.read(place(op, source, op.source.offset)?, &mut bytes).map_err(|_| GntStatus::BAD_PAGE)?;
    Ok(bytes)
}

fn write(op: &Copy, dest: &End, bytes: &[u8], cx: &Cx<'_>) -> Result<(), GntStatus> {
    cx.mem.write(place(op, dest, op.dest.offset)?, bytes).map_err(|_| GntStatus::BAD_PAGE)
}

/// Checks the bounds and copies, through a buffer: the two may be one page.
fn transport(op: &Copy, source: &End, dest: &End, cx: &Cx<'_>) -> Result<(), GntStatus> {
    in_page(op)?;
    let (from, to) = (place(op, source, op.source.offset)?, place(op, dest, op.dest.offset)?);
    let mut buf = [0; 4096];
    let bytes = buf.get_mut(..usize::from(op.len)).ok_or(GntStatus::BAD_COPY_ARG)?;
    cx.mem.read(from, bytes).map_err(|_| GntStatus::BAD_PAGE)?;
    cx.mem.write(to, bytes).map_err(|_| GntStatus::BAD_PAGE)
}
