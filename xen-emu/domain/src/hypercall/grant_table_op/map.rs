//! GNTTABOP_map_grant_ref and its counterparts: the guest's own grants, and those of other domains, mapped into its
//! physmap.

use xen_abi::grant_table::{GntStatus, MapGrantRef, UnmapAndReplace, UnmapGrantRef, gntmap};

use crate::domain::Domain;
use crate::effect::VcpuId;
use crate::gnttab::{Mapping, Use};
use crate::hypercall::grant_table_op::{Granter, Step, ask_for, each, granter, status};
use crate::hypercall::{Answer, Call, Cx};
use crate::mem::{Gfn, Gpa};
use crate::peer::{About, Ask, Foreign, Told};
use crate::physmap::GFN_LIMIT;

/// Flags that only a PV guest may use.
const PV_ONLY: u32 = gntmap::DEVICE_MAP | gntmap::APPLICATION_MAP | gntmap::CONTAINS_PTE;

/// What mapping has come to: the handle and what dev_bus_addr tells, or a question to another domain.
type Mapped = Result<Option<(u32, Gfn)>, GntStatus>;

pub(super) fn map_grant_ref(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    each(call, size_of::<MapGrantRef>(), |at| {
        let mine = |about| match about {
            About::Map(op) => Some(op),
            _ => None,
        };
        let (mut op, mapped) = match domain.told(call.vcpu, mine, cx) {
            Some((op, told)) => (op, map_foreign(domain, &op, &told, cx)),
            None => {
                let op: MapGrantRef = cx.get(at)?;
                (op, map(domain, call.vcpu, &op, cx))
            }
        };
        op.status = match mapped {
            Ok(None) => return Ok(Step::Ask),
            Ok(Some((handle, frame))) => {
                (op.handle, op.dev_bus_addr) = (handle, frame.gpa().0);
                GntStatus::OKAY
            }
            Err(status) => status,
        };
        cx.put(at, &op)?;
        Ok(Step::Done)
    })
}

/// Maps one grant of the guest's own, or asks for the page.
fn map(domain: &mut Domain, vcpu: VcpuId, op: &MapGrantRef, cx: &mut Cx<'_>) -> Mapped {
    if op.flags & (gntmap::DEVICE_MAP | gntmap::HOST_MAP) == 0 {
        return Err(GntStatus::BAD_GNTREF);
    }
    if op.flags & PV_ONLY != 0 {
        return Err(GntStatus::GENERAL_ERROR);
    }
    let handle = domain.grants.mapped.next().ok_or(GntStatus::NO_DEVICE_SPACE)?;
    let (write, at) = (op.flags & gntmap::READONLY == 0, Gpa(op.host_addr).gfn());
    // A frame of RAM takes the place of another as other domains' pages do.
    let whose = match granter(domain, op.dom)? {
        Granter::Own if domain.physmap.is_ram(at) => Granter::Other(domain.domid()),
        whose => whose,
    };
    if let Granter::Other(dom) = whose {
        vacant(domain, op.flags, at)?;
        let ask = Ask::Map { gref: op.r#ref, write };
        return ask_for(domain, vcpu, (dom, ask), About::Map(*op), cx).map(|_| None);
    }
    let usage = Use { by: domain.domid(), write, whole: true };
    let pinned = domain.grants.active.pin(cx.mem, op.r#ref, usage)?;
    let frame = pinned.gpa.gfn();
    if let Err(status) = show(domain, op.flags, at, frame, cx) {
        domain.grants.active.unpin(cx.mem, op.r#ref, write);
        return Err(status);
    }
    domain.grants.mapped.insert(handle, Mapping { gref: op.r#ref, write, at, frame, foreign: None });
    Ok(Some((handle, frame)))
}

/// The other domain has answered.
fn map_foreign(domain: &mut Domain, op: &MapGrantRef, told: &Told, cx: &mut Cx<'_>) -> Mapped {
    let Told::Mapped(page) = *told else { return Err(told.status()) };
    let shown = show_foreign(domain, op, page, cx);
    shown.map(Some).inspect_err(|_| cx.fx.release_foreign(page))
}

fn show_foreign(
    domain: &mut Domain,
    op: &MapGrantRef,
    page: Foreign,
    cx: &mut Cx<'_>,
) -> Result<(u32, Gfn), GntStatus> {
    let (write, at) = (op.flags & gntmap::READONLY == 0, Gpa(op.host_addr).gfn());
    // Another vCPU may have been faster.
    vacant(domain, op.flags, at)?;
    let handle = domain.grants.mapped.next().ok_or(GntStatus::NO_DEVICE_SPACE)?;
    let mut place = || cx.fx.map_foreign(at, Some((page, write))).map_err(|_| GntStatus::GENERAL_ERROR);
    match domain.physmap.is_ram(at) {
        // A backend that began to write to the RAM that was there is to end before.
        true => domain.grants.active.unless_written(at, place).ok_or(GntStatus::EAGAIN)??,
        false => place()?,
    }
    let foreign = Some((op.dom, page));
    domain.grants.mapped.insert(handle, Mapping { gref: op.r#ref, write, at, frame: at, foreign });
    Ok((handle, at))
}

/// Whether nothing is at a frame, not even RAM unless the guest has given it up, and the flags are known.
fn vacant(domain: &Domain, flags: u32, at: Gfn) -> Result<(), GntStatus> {
    let known = flags & !gntmap::READONLY == gntmap::HOST_MAP;
    let vacant = at.0 < GFN_LIMIT && !domain.has_memory(at);
    if known && vacant { Ok(()) } else { Err(GntStatus::GENERAL_ERROR) }
}

/// Puts a frame of RAM at another frame where nothing is.
fn show(domain: &Domain, flags: u32, at: Gfn, frame: Gfn, cx: &mut Cx<'_>) -> Result<(), GntStatus> {
    vacant(domain, flags, at)?;
    if !domain.physmap.is_present(frame) {
        return Err(GntStatus::GENERAL_ERROR);
    }
    let write = flags & gntmap::READONLY == 0;
    cx.fx.map_grant(at, Some((frame, write))).map_err(|_| GntStatus::GENERAL_ERROR)
}

pub(super) fn unmap_grant_ref(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let offset = core::mem::offset_of!(UnmapGrantRef, status) as u64;
    each(call, size_of::<UnmapGrantRef>(), |at| {
        let op = cx.get(at);
        finish(domain, call.vcpu, at.wrapping_add(offset), cx, |domain, cx| {
            let UnmapGrantRef { handle, host_addr, dev_bus_addr, .. } = op?;
            Ok(unmap(domain, handle, host_addr, dev_bus_addr, cx))
        })
    })
}

/// An HVM guest has nothing to replace a mapping by: with a new address the mapping stays, as on Xen.
pub(super) fn unmap_and_replace(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let offset = core::mem::offset_of!(UnmapAndReplace, status) as u64;
    each(call, size_of::<UnmapAndReplace>(), |at| {
        let op = cx.get(at);
        finish(domain, call.vcpu, at.wrapping_add(offset), cx, |domain, cx| {
            let UnmapAndReplace { handle, host_addr, new_addr, .. } = op?;
            let known = domain.grants.mapped.get(handle).ok_or(GntStatus::BAD_HANDLE);
            Ok(known.and_then(|_| match new_addr {
                _ if host_addr == 0 => Ok(None),
                0 => unmap(domain, handle, host_addr, 0, cx),
                _ => Err(GntStatus::GENERAL_ERROR),
            }))
        })
    })
}

/// The mapping that is gone, or nothing to do.
type Unmapped = Result<Option<Mapping>, GntStatus>;

/// Unmaps with `act`; where the page is another domain's the status is told when that has it back.
fn finish(
    domain: &mut Domain,
    vcpu: VcpuId,
    at: u64,
    cx: &mut Cx<'_>,
    act: impl FnOnce(&mut Domain, &mut Cx<'_>) -> Result<Unmapped, xen_abi::errno::Errno>,
) -> Result<Step, xen_abi::errno::Errno> {
    let mine = |about| matches!(about, About::Unmap).then_some(());
    // A domain that has died since has its page back as well.
    let unmapped = match domain.told(vcpu, mine, cx) {
        Some(_) => Ok(None),
        None => act(domain, cx)?,
    };
    if let Ok(Some(Mapping { foreign: Some((dom, page)), .. })) = unmapped
        && let Ok(step) = ask_for(domain, vcpu, (dom, Ask::Unmap(page)), About::Unmap, cx)
    {
        return Ok(step);
    }
    cx.put(at, &status(unmapped.map(drop)))?;
    Ok(Step::Done)
}

fn unmap(domain: &mut Domain, handle: u32, host_addr: u64, bus_addr: u64, cx: &mut Cx<'_>) -> Unmapped {
    let mapping = domain.grants.mapped.get(handle).ok_or(GntStatus::BAD_HANDLE)?;
    if bus_addr != 0 && bus_addr != mapping.frame.gpa().0 {
        return Err(GntStatus::GENERAL_ERROR);
    }
    if host_addr == 0 {
        return Ok(None);
    }
    let hidden = |cx: &mut Cx<'_>| match mapping.foreign {
        Some(_) => cx.fx.map_foreign(mapping.at, None),
        None => cx.fx.map_grant(mapping.at, None),
    };
    if Gpa(host_addr).gfn() != mapping.at || hidden(cx).is_err() {
        return Err(GntStatus::GENERAL_ERROR);
    }
    domain.grants.mapped.remove(handle);
    if mapping.foreign.is_none() {
        domain.grants.active.unpin(cx.mem, mapping.gref, mapping.write);
    }
    Ok(Some(mapping))
}
