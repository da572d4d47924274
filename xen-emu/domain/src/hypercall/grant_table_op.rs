//! grant_table_op(cmd, args, count): the table itself here; what works on arrays in `copy`, `map` and `entries`.
//!
//! Of the domains whose grants a guest can use, itself is one; the others are processes of their own, which are asked
//! (`peer`). Domain 0 grants nothing.

mod copy;
mod entries;
mod map;

use std::sync::Arc;

use xen_abi::Domid;
use xen_abi::errno::Errno;
use xen_abi::grant_table::{
    GetStatusFrames, GetStatusFramesCompat, GetVersion, GntStatus, GnttabOp, QuerySize, SetVersion,
    SetupTable, SetupTableCompat,
};

use crate::domain::Domain;
use crate::effect::VcpuId;
use crate::gnttab::status_frames;
use crate::hypercall::{Answer, Call, Cx, DONE, Handler, Outcome, Width};
use crate::mem::SpecialPage;
use crate::peer::{About, Ask};

pub(super) const OPS: &[(u32, Handler)] = &[
    (GnttabOp::MAP_GRANT_REF.0, map::map_grant_ref),
    (GnttabOp::UNMAP_GRANT_REF.0, map::unmap_grant_ref),
    (GnttabOp::SETUP_TABLE.0, setup_table),
    (GnttabOp::TRANSFER.0, entries::transfer),
    (GnttabOp::COPY.0, copy::copy),
    (GnttabOp::QUERY_SIZE.0, query_size),
    (GnttabOp::UNMAP_AND_REPLACE.0, map::unmap_and_replace),
    (GnttabOp::SET_VERSION.0, set_version),
    (GnttabOp::GET_STATUS_FRAMES.0, get_status_frames),
    (GnttabOp::GET_VERSION.0, get_version),
    (GnttabOp::SWAP_GRANT_REF.0, entries::swap_grant_ref),
    (GnttabOp::CACHE_FLUSH.0, entries::cache_flush),
];

/// Elements of an array in one go.
const BATCH: u32 = 32;

/// How far an element has come.
enum Step {
    /// It has its status.
    Done,
    /// Another domain has been asked; it is gone on with when that has answered.
    Ask,
}

/// Does `one` for each element of the array, which are `size` bytes apart, and continues the call behind those done.
fn each(call: &Call, size: usize, mut one: impl FnMut(u64) -> Result<Step, Errno>) -> Answer {
    let (mut at, count) = (call.arg(1), call.arg32(2));
    if count > i32::MAX.cast_unsigned() {
        return Err(Errno::EINVAL);
    }
    let now = count.min(BATCH);
    for done in 0..now {
        if let Step::Ask = one(at)? {
            return Ok(Outcome::Ask(call.with_args([call.arg(0), at, (count - done).into()])));
        }
        at = at.wrapping_add(size as u64);
    }
    match count - now {
        0 => DONE,
        left => Ok(Outcome::Again(call.with_args([call.arg(0), at, left.into()]))),
    }
}

/// These take one argument struct.
fn only_one(call: &Call) -> Result<u64, Errno> {
    if call.arg32(2) == 1 { Ok(call.arg(1)) } else { Err(Errno::EINVAL) }
}

/// Which domain's table: ours, or a status for the argument.
fn target(domain: &Domain, dom: Domid) -> Result<(), GntStatus> {
    domain.target(dom).map_err(|errno| match errno {
        Errno::EPERM => GntStatus::PERMISSION_DENIED,
        _ => GntStatus::BAD_DOMAIN,
    })
}

/// Whose grants are to be used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Granter {
    Own,
    Other(Domid),
}

/// Whose they are, if they may be used. Domain 0 has granted us nothing.
fn granter(domain: &Domain, dom: Domid) -> Result<Granter, GntStatus> {
    match dom {
        own if own == domain.domid() => Ok(Granter::Own),
        Domid::DOM0 => Err(GntStatus::GENERAL_ERROR),
        other if other.is_ordinary() => Ok(Granter::Other(other)),
        _ => Err(GntStatus::BAD_DOMAIN),
    }
}

/// Asks another domain for an element.
fn ask_for(
    domain: &mut Domain,
    vcpu: VcpuId,
    (dom, ask): (Domid, Ask),
    about: About,
    cx: &mut Cx<'_>,
) -> Result<Step, GntStatus> {
    let asked = domain.ask(vcpu, dom, ask, about, cx);
    asked.map(|()| Step::Ask).map_err(|_| GntStatus::GENERAL_ERROR)
}

/// The status that a result stands for.
fn status(result: Result<(), GntStatus>) -> GntStatus {
    result.err().unwrap_or(GntStatus::OKAY)
}

fn query_size(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let at = only_one(call)?;
    let mut query: QuerySize = cx.get(at)?;
    query.status = status(target(domain, query.dom));
    if query.status == GntStatus::OKAY {
        query.nr_frames = domain.grants.active.frames();
        query.max_nr_frames = domain.grants.max_frames;
    }
    cx.put(at, &query)?;
    DONE
}

/// Grows the table and tells where its frames are; one that is not in the physmap reads all ones.
fn setup_table(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let at = only_one(call)?;
    let setup = cx.get_twin::<SetupTable, SetupTableCompat>(call.width, at)?;
    let told = target(domain, setup.dom).and_then(|()| {
        if setup.nr_frames > 0 && !domain.grants.grow(u64::from(setup.nr_frames) - 1) {
            return Err(GntStatus::GENERAL_ERROR);
        }
        let list = (call.width, setup.frame_list);
        frames(domain, setup.nr_frames, SpecialPage::GrantFrame, list, cx)
    });
    let offset = core::mem::offset_of!(SetupTable, status) as u64;
    cx.put(at.wrapping_add(offset), &status(told))?;
    DONE
}

fn get_status_frames(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let at = only_one(call)?;
    let get = cx.get_twin::<GetStatusFrames, GetStatusFramesCompat>(call.width, at)?;
    let told = target(domain, get.dom).and_then(|()| {
        let active = &domain.grants.active;
        let there = if active.version() == 2 { status_frames(active.frames()) } else { 0 };
        if get.nr_frames > there {
            return Err(GntStatus::GENERAL_ERROR);
        }
        // An array of uint64_t for both widths.
        let list = (Width::Bits64, get.frame_list);
        frames(domain, get.nr_frames, SpecialPage::GrantStatus, list, cx)
    });
    let offset = core::mem::offset_of!(GetStatusFrames, status) as u64;
    cx.put(at.wrapping_add(offset), &status(told))?;
    DONE
}

/// Writes where the first `count` frames are.
fn frames(
    domain: &Domain,
    count: u32,
    page: fn(u16) -> SpecialPage,
    (width, list): (Width, u64),
    cx: &Cx<'_>,
) -> Result<(), GntStatus> {
    for index in 0..count {
        let page = u16::try_from(index).ok().map(page);
        let gfn = page.and_then(|page| domain.physmap.gfn_of(page)).map_or(u64::MAX, |gfn| gfn.0);
        cx.put_long(width, list, index.into(), gfn).map_err(|_| GntStatus::BAD_VIRT_ADDR)?;
    }
    Ok(())
}

fn set_version(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let at = call.arg(1);
    let set: SetVersion = cx.get(at)?;
    let changed = change_version(domain, set.version, cx);
    cx.put(at, &SetVersion { version: domain.grants.active.version() })?;
    changed.and(DONE)
}

/// Changes the version; the status frames leave the physmap when version 2 ends.
fn change_version(domain: &mut Domain, version: u32, cx: &mut Cx<'_>) -> Result<(), Errno> {
    if version != 1 && version != 2 {
        return Err(Errno::EINVAL);
    }
    if version > domain.config.max_grant_version {
        // As if there were no such operation.
        return Err(Errno::ENOSYS);
    }
    let active = Arc::clone(&domain.grants.active);
    if active.version() == version {
        return Ok(());
    }
    let quiet = active.quiet();
    quiet.may_become(cx.mem, version)?;
    let there = if version == 1 { status_frames(active.frames()) } else { 0 };
    for page in (0..there).filter_map(|index| u16::try_from(index).ok()).map(SpecialPage::GrantStatus) {
        if domain.physmap.gfn_of(page).is_some() {
            domain.unplace_special(page, cx)?;
        }
    }
    quiet.become_version(cx.mem, version).map_err(|_| Errno::ENOMEM)
}

fn get_version(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let at = call.arg(1);
    let get: GetVersion = cx.get(at)?;
    domain.target(get.dom)?;
    cx.put(at, &GetVersion { version: domain.grants.active.version(), ..get })?;
    DONE
}
