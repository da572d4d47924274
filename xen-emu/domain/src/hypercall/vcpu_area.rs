//! VCPUOP_register_*: areas of guest memory that the hypervisor keeps up to date.

use xen_abi::errno::Errno;
use xen_abi::shared_info::{Layout, VCPU_INFO_SIZE, VCPU_UPCALL_PENDING, VcpuTimeInfo};
use xen_abi::vcpu::{RegisterArea, RegisterVcpuInfo, RunstateInfo, RunstateInfoCompat};

use crate::domain::Domain;
use crate::effect::VcpuId;
use crate::hypercall::vcpu_op::subject;
use crate::hypercall::{Answer, Call, Cx, DONE, Outcome, Width};
use crate::mem::{Gfn, Gpa};
use crate::physmap::GFN_LIMIT;

/// Registers vcpu_info, once; the old one's contents move. The machine raises events all the while, and the vCPU may run: what
/// comes to the old place until the machine has switched is not told from what the guest has taken there, so when the call is
/// made again everything counts as pending, as on Xen.
pub(super) fn vcpu_info(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let id = subject(domain, call)?;
    if std::mem::take(&mut domain.vcpu_mut(call.vcpu)?.posted) {
        look_everywhere(domain, id, cx)?;
        return DONE;
    }
    let area: RegisterVcpuInfo = cx.get(call.arg(2))?;
    let page = xen_abi::xen::PAGE_SIZE as u64;
    let offset = u64::from(area.offset);
    if offset >= page {
        return Err(Errno::EINVAL);
    }
    if domain.vcpu(id)?.info.is_some() {
        return Err(Errno::EBUSY);
    }
    if offset > page - VCPU_INFO_SIZE as u64 || !offset.is_multiple_of(domain.width.bytes() as u64) {
        return Err(Errno::ENXIO);
    }
    if area.mfn >= GFN_LIMIT || !domain.owns(Gfn(area.mfn)) {
        return Err(Errno::EINVAL);
    }
    let new = Gfn(area.mfn).gpa().offset(offset);
    let mut contents = [0; VCPU_INFO_SIZE];
    if let Some(old) = domain.vcpu_info(id) {
        cx.mem.read(old, &mut contents)?;
    }
    cx.mem.write(new, &contents)?;
    domain.vcpu_mut(id)?.info = Some(new);
    cx.fx.set_vcpu_info(id, Some(new));
    domain.vcpu_mut(call.vcpu)?.posted = true;
    Ok(Outcome::Again(*call))
}

/// Has a vCPU look at every word of pending bits.
fn look_everywhere(domain: &Domain, id: VcpuId, cx: &mut Cx<'_>) -> Result<(), Errno> {
    let Some(info) = domain.vcpu_info(id) else { return Ok(()) };
    let layout = Layout::of(domain.width);
    let selector = info.offset(layout.vcpu_pending_sel as u64);
    match layout.width {
        xen_abi::Width::W64 => drop(cx.mem.fetch_or_u64(selector, u64::MAX)?),
        xen_abi::Width::W32 => drop(cx.mem.fetch_or_u32(selector, u32::MAX)?),
    }
    cx.mem.fetch_or_u8(info.offset(VCPU_UPCALL_PENDING as u64), 1)?;
    cx.fx.upcall(id);
    Ok(())
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

/// By virtual address: NULL unregisters. Xen walks the page tables at each update and tells nobody when that fails; here it is
/// done once, and what is not there, or not in one piece of memory, is not kept.
fn by_virt(domain: &Domain, call: &Call, cx: &Cx<'_>, size: usize) -> Result<(VcpuId, Option<Gpa>), Errno> {
    let id = subject(domain, call)?;
    let RegisterArea { addr } = cx.get(call.arg(2))?;
    let gva = match call.width {
        Width::Bits64 => addr,
        Width::Bits32 => addr & u64::from(u32::MAX),
    };
    let found = if gva == 0 { None } else { cx.contiguous(gva, size) };
    // Another domain's page goes away when it is unmapped.
    let owned = |gpa: &Gpa| domain.owns(gpa.gfn()) && domain.owns(gpa.offset(size as u64 - 1).gfn());
    Ok((id, found.filter(owned)))
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

pub(super) fn time_virt(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let (id, gpa) = by_virt(domain, call, cx, size_of::<VcpuTimeInfo>())?;
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
