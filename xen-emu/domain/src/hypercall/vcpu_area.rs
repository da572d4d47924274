//! VCPUOP_register_*: areas of guest memory that the hypervisor keeps up to date.

use zerocopy::IntoBytes;

use xen_abi::errno::Errno;
use xen_abi::shared_info::{Layout, VCPU_INFO_SIZE, VCPU_UPCALL_PENDING, VcpuTimeInfo};
use xen_abi::vcpu::{RegisterArea, RegisterVcpuInfo, RunstateInfo, RunstateInfoCompat};

use crate::domain::Domain;
use crate::effect::VcpuId;
use crate::hypercall::vcpu_op::{look_first, subject};
use crate::hypercall::{Answer, Call, Cx, DONE, Width};
use crate::mem::{Fault, Gfn, Gpa};
use crate::physmap::GFN_LIMIT;

/// Registers vcpu_info, once, by oneself or for a vCPU that is down; the old one's contents and pending events move.
pub(super) fn vcpu_info(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = subject(domain, call)?;
    if let Some(again) = look_first(domain, call, cx, std::iter::once(id))? {
        return Ok(again);
    }
    let area: RegisterVcpuInfo = cx.get(call.arg(2))?;
    let page = xen_abi::xen::PAGE_SIZE as u64;
    let offset = u64::from(area.offset);
    if offset >= page {
        return Err(Errno::EINVAL);
    }
    let vcpu = domain.vcpu(id)?;
    if vcpu.info.is_some() {
        return Err(Errno::EBUSY);
    }
    if offset > page - VCPU_INFO_SIZE as u64 || !offset.is_multiple_of(domain.width.bytes() as u64) {
        return Err(Errno::ENXIO);
    }
    if id != call.vcpu && vcpu.online {
        return Err(Errno::EINVAL);
    }
    if area.mfn >= GFN_LIMIT || !domain.owns(Gfn(area.mfn)) {
        return Err(Errno::EINVAL);
    }
    let new = Gfn(area.mfn).gpa().offset(offset);
    move_vcpu_info(domain, id, new, cx)?;
    DONE
}

/// The machine raises events all the while: contents first, then the switch, then what still came to the old place.
fn move_vcpu_info(domain: &mut Domain, id: VcpuId, new: Gpa, cx: &mut Cx<'_>) -> Result<(), Errno> {
    let old = domain.vcpu_info(id);
    let mut contents = [0; VCPU_INFO_SIZE];
    match old {
        Some(old) => cx.mem.read(old, &mut contents)?,
        // Events may have come when it had none: everything counts as pending, as on Xen.
        None => {
            let layout = Layout::of(domain.width);
            let selector = layout.vcpu_pending_sel..layout.vcpu_pending_sel + layout.width.bytes();
            contents.get_mut(selector).into_iter().for_each(|bytes| bytes.fill(0xff));
            contents.get_mut(VCPU_UPCALL_PENDING).into_iter().for_each(|byte| *byte = 1);
        }
    }
    cx.mem.write(new, &contents)?;
    domain.vcpu_mut(id)?.info = Some(new);
    cx.fx.set_vcpu_info(id, Some(new));
    if let Some(old) = old {
        merge_pending(cx, Layout::of(domain.width), old, new)?;
    }
    remind(domain, id, cx)
}

/// Interrupt a vCPU that has events pending: after its vcpu_info or its vector has changed nobody else would, as
/// upcalls come only when evtchn_upcall_pending goes from 0 to 1.
pub(crate) fn remind(domain: &Domain, id: VcpuId, cx: &mut Cx<'_>) -> Result<(), Errno> {
    let Some(info) = domain.vcpu_info(id) else { return Ok(()) };
    let mut pending = [0];
    cx.mem.read(info.offset(VCPU_UPCALL_PENDING as u64), &mut pending)?;
    if pending != [0] {
        cx.fx.upcall(id);
    }
    Ok(())
}

fn merge_pending(cx: &Cx<'_>, layout: Layout, old: Gpa, new: Gpa) -> Result<(), Fault> {
    let selector = layout.vcpu_pending_sel as u64;
    match layout.width {
        xen_abi::Width::W64 => {
            cx.mem.fetch_or_u64(new.offset(selector), cx.mem.load_u64(old.offset(selector))?)?;
        }
        xen_abi::Width::W32 => {
            cx.mem.fetch_or_u32(new.offset(selector), cx.mem.load_u32(old.offset(selector))?)?;
        }
    }
    let mut pending = 0u8;
    cx.mem.read(old.offset(VCPU_UPCALL_PENDING as u64), pending.as_mut_bytes())?;
    cx.mem.fetch_or_u8(new.offset(VCPU_UPCALL_PENDING as u64), pending)?;
    Ok(())
}

/// By virtual address: NULL unregisters.
fn by_virt(domain: &Domain, call: &Call, cx: &Cx<'_>, size: usize) -> Result<(VcpuId, Option<Gpa>), Errno> {
    let id = subject(domain, call)?;
    let RegisterArea { addr } = cx.get(call.arg(2))?;
    let gva = match call.width {
        Width::Bits64 => addr,
        Width::Bits32 => addr & u64::from(u32::MAX),
    };
    if gva == 0 {
        return Ok((id, None));
    }
    let gpa = cx.contiguous(gva, size)?;
    Ok((id, Some(gpa.ok_or(Errno::EINVAL)?)))
}

/// By physical address: all ones unregisters; within a page, aligned, backed.
fn by_phys(domain: &Domain, call: &Call, cx: &Cx<'_>, size: usize) -> Result<(VcpuId, Option<Gpa>), Errno> {
    let id = subject(domain, call)?;
    let RegisterArea { addr } = cx.get(call.arg(2))?;
    if addr == u64::MAX {
        return Ok((id, None));
    }
    let gpa = Gpa(addr);
    let end = gpa.offset(size as u64 - 1);
    if gpa.gfn() != end.gfn() || !addr.is_multiple_of(domain.width.bytes() as u64) {
        return Err(Errno::ENXIO);
    }
    if gpa.gfn().0 >= GFN_LIMIT || !domain.owns(gpa.gfn()) {
        return Err(Errno::EINVAL);
    }
    Ok((id, Some(gpa)))
}

const fn runstate_size(width: Width) -> usize {
    match width {
        Width::Bits64 => size_of::<RunstateInfo>(),
        Width::Bits32 => size_of::<RunstateInfoCompat>(),
    }
}

pub(super) fn runstate_virt(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let (id, gpa) = by_virt(domain, call, cx, runstate_size(call.width))?;
    runstate(domain, id, gpa, cx)
}

pub(super) fn runstate_phys(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let (id, gpa) = by_phys(domain, call, cx, runstate_size(call.width))?;
    runstate(domain, id, gpa, cx)
}

fn runstate(domain: &mut Domain, id: VcpuId, gpa: Option<Gpa>, cx: &mut Cx<'_>) -> Answer {
    cx.fx.set_runstate(id, gpa);
    domain.vcpu_mut(id)?.runstate = gpa;
    DONE
}

/// The machine writes it as one block, so it may not cross a page.
pub(super) fn time_virt(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let (id, gpa) = by_virt(domain, call, cx, size_of::<VcpuTimeInfo>())?;
    let crosses = |gpa: &Gpa| gpa.gfn() != gpa.offset(size_of::<VcpuTimeInfo>() as u64 - 1).gfn();
    if gpa.as_ref().is_some_and(crosses) {
        return Err(Errno::EINVAL);
    }
    time(domain, id, gpa, cx)
}

pub(super) fn time_phys(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let (id, gpa) = by_phys(domain, call, cx, size_of::<VcpuTimeInfo>())?;
    time(domain, id, gpa, cx)
}

fn time(domain: &mut Domain, id: VcpuId, gpa: Option<Gpa>, cx: &mut Cx<'_>) -> Answer {
    if !cx.fx.set_vcpu_time_info(id, gpa) {
        return Err(Errno::ENOSYS);
    }
    domain.vcpu_mut(id)?.time_info = gpa;
    DONE
}
