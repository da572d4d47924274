//! grant_table_op(cmd, args, count). Mapping and copying of other domains' grants has no line yet.

use xen_abi::errno::Errno;
use xen_abi::grant_table::{
    GetVersion, GntStatus, GnttabOp, QuerySize, SetVersion, SetupTable, SetupTableCompat,
};
use xen_abi::{Domid, grant_table};

use crate::domain::Domain;
use crate::hypercall::{Answer, Call, Cx, DONE, Handler, Width};
use crate::mem::SpecialPage;

pub(super) const OPS: &[(u32, Handler)] = &[
    (GnttabOp::SETUP_TABLE.0, setup_table),
    (GnttabOp::QUERY_SIZE.0, query_size),
    (GnttabOp::SET_VERSION.0, set_version),
    (GnttabOp::GET_VERSION.0, get_version),
];

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

fn query_size(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let at = only_one(call)?;
    let mut query: QuerySize = cx.get(at)?;
    query.status = match target(domain, query.dom) {
        Ok(()) => {
            query.nr_frames = domain.grants.active.frames();
            query.max_nr_frames = domain.grants.max_frames;
            GntStatus::OKAY
        }
        Err(status) => status,
    };
    cx.put(at, &query)?;
    DONE
}

/// Grows the table and tells where its frames are; one that is not in the physmap reads all ones.
fn setup_table(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let at = only_one(call)?;
    let setup = cx.get_twin::<SetupTable, SetupTableCompat>(call.width, at)?;
    let status = match target(domain, setup.dom) {
        Ok(()) => frames(domain, call.width, &setup, cx),
        Err(status) => status,
    };
    let offset = core::mem::offset_of!(grant_table::SetupTable, status) as u64;
    cx.put(at.wrapping_add(offset), &status)?;
    DONE
}

fn frames(domain: &mut Domain, width: Width, setup: &SetupTable, cx: &mut Cx<'_>) -> GntStatus {
    let Some(last) = setup.nr_frames.checked_sub(1) else { return GntStatus::OKAY };
    if !domain.grants.grow(last.into()) {
        return GntStatus::GENERAL_ERROR;
    }
    for index in 0..setup.nr_frames {
        let page = u16::try_from(index).ok().map(SpecialPage::GrantFrame);
        let gfn = page.and_then(|page| domain.physmap.gfn_of(page)).map_or(u64::MAX, |gfn| gfn.0);
        if cx.put_long(width, setup.frame_list, index.into(), gfn).is_err() {
            return GntStatus::BAD_VIRT_ADDR;
        }
    }
    GntStatus::OKAY
}

/// Version 1 is the highest that this domain may have, which Xen answers so.
fn set_version(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let at = only_one(call)?;
    let set: SetVersion = cx.get(at)?;
    let answer = match set.version {
        1 => DONE,
        2 => Err(Errno::ENOSYS),
        _ => Err(Errno::EINVAL),
    };
    cx.put(at, &SetVersion { version: domain.grants.active.version() })?;
    answer
}

fn get_version(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let at = only_one(call)?;
    let get: GetVersion = cx.get(at)?;
    domain.target(get.dom)?;
    cx.put(at, &GetVersion { version: domain.grants.active.version(), ..get })?;
    DONE
}
