//! GNTTABOP_map_grant_ref and its counterparts: the guest's own grants mapped into its own physmap.

use xen_abi::grant_table::{GntStatus, MapGrantRef, UnmapAndReplace, UnmapGrantRef, gntmap};

use crate::domain::Domain;
use crate::gnttab::{Mapping, Use};
use crate::hypercall::grant_table_op::{each, granter, status};
use crate::hypercall::{Answer, Call, Cx};
use crate::mem::{Gfn, Gpa};
use crate::physmap::GFN_LIMIT;

/// Flags that only a PV guest may use.
const PV_ONLY: u32 = gntmap::DEVICE_MAP | gntmap::APPLICATION_MAP | gntmap::CONTAINS_PTE;

pub(super) fn map_grant_ref(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    each(call, size_of::<MapGrantRef>(), |at| {
        let mut op: MapGrantRef = cx.get(at)?;
        op.status = match map(domain, &op, cx) {
            Ok((handle, frame)) => {
                (op.handle, op.dev_bus_addr) = (handle, frame.gpa().0);
                GntStatus::OKAY
            }
            Err(status) => status,
        };
        cx.put(at, &op)
    })
}

/// Maps one grant: its handle, and the frame it grants.
fn map(domain: &mut Domain, op: &MapGrantRef, cx: &mut Cx<'_>) -> Result<(u32, Gfn), GntStatus> {
    if op.flags & (gntmap::DEVICE_MAP | gntmap::HOST_MAP) == 0 {
        return Err(GntStatus::BAD_GNTREF);
    }
    if op.flags & PV_ONLY != 0 {
        return Err(GntStatus::GENERAL_ERROR);
    }
    granter(domain, op.dom)?;
    let handle = domain.grants.mapped.next().ok_or(GntStatus::NO_DEVICE_SPACE)?;
    let write = op.flags & gntmap::READONLY == 0;
    let usage = Use { by: domain.domid(), write, whole: true };
    let pinned = domain.grants.active.pin(cx.mem, op.r#ref, usage)?;
    let (at, frame) = (Gpa(op.host_addr).gfn(), pinned.gpa.gfn());
    if let Err(status) = show(domain, op.flags, at, frame, cx) {
        domain.grants.active.unpin(cx.mem, op.r#ref, write);
        return Err(status);
    }
    domain.grants.mapped.insert(handle, Mapping { gref: op.r#ref, write, at, frame });
    Ok((handle, frame))
}

/// Puts a frame of RAM at another frame where nothing is.
fn show(domain: &Domain, flags: u32, at: Gfn, frame: Gfn, cx: &mut Cx<'_>) -> Result<(), GntStatus> {
    let known = flags & !gntmap::READONLY == gntmap::HOST_MAP;
    let vacant = at.0 < GFN_LIMIT && !domain.physmap.is_ram(at) && !domain.has_memory(at);
    if !known || !vacant || !domain.physmap.is_present(frame) {
        return Err(GntStatus::GENERAL_ERROR);
    }
    let write = flags & gntmap::READONLY == 0;
    cx.fx.map_grant(at, Some((frame, write))).map_err(|_| GntStatus::GENERAL_ERROR)
}

pub(super) fn unmap_grant_ref(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    each(call, size_of::<UnmapGrantRef>(), |at| {
        let op: UnmapGrantRef = cx.get(at)?;
        let done = unmap(domain, op.handle, op.host_addr, op.dev_bus_addr, cx);
        let offset = core::mem::offset_of!(UnmapGrantRef, status) as u64;
        cx.put(at.wrapping_add(offset), &status(done))
    })
}

/// An HVM guest has nothing to replace a mapping by: with a new address the mapping stays, as on Xen.
pub(super) fn unmap_and_replace(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    each(call, size_of::<UnmapAndReplace>(), |at| {
        let op: UnmapAndReplace = cx.get(at)?;
        let known = domain.grants.mapped.get(op.handle).ok_or(GntStatus::BAD_HANDLE);
        let done = known.and_then(|_| match op.new_addr {
            _ if op.host_addr == 0 => Ok(()),
            0 => unmap(domain, op.handle, op.host_addr, 0, cx),
            _ => Err(GntStatus::GENERAL_ERROR),
        });
        let offset = core::mem::offset_of!(UnmapAndReplace, status) as u64;
        cx.put(at.wrapping_add(offset), &status(done))
    })
}

fn unmap(
    domain: &mut Domain,
    handle: u32,
    host_addr: u64,
    bus_addr: u64,
    cx: &mut Cx<'_>,
) -> Result<(), GntStatus> {
    let mapping = domain.grants.mapped.get(handle).ok_or(GntStatus::BAD_HANDLE)?;
    if bus_addr != 0 && bus_addr != mapping.frame.gpa().0 {
        return Err(GntStatus::GENERAL_ERROR);
    }
    if host_addr == 0 {
        return Ok(());
    }
    if Gpa(host_addr).gfn() != mapping.at || cx.fx.map_grant(mapping.at, None).is_err() {
        return Err(GntStatus::GENERAL_ERROR);
    }
    domain.grants.mapped.remove(handle);
    domain.grants.active.unpin(cx.mem, mapping.gref, mapping.write);
    Ok(())
}
