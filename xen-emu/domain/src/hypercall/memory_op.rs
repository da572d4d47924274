//! memory_op(cmd, arg): the physmap. Ballooning is in `reservation`.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use xen_abi::errno::Errno;
use xen_abi::memory::{
    AddToPhysmap, AddToPhysmapBatch, AddToPhysmapBatchCompat, AddToPhysmapCompat, E820Entry,
    ForeignMemoryMap, ForeignMemoryMapCompat, MapSpace, MemoryDomain, MemoryMap, MemoryMapCompat, MemoryOp,
    RemoveFromPhysmap, RemoveFromPhysmapCompat, XENMAPIDX_GRANT_TABLE_STATUS,
};

use crate::domain::{Domain, MemmapEntry};
use crate::hypercall::{Answer, Call, Cx, DONE, Handler, Outcome, reservation, value};
use crate::mem::{Gfn, SpecialPage};

/// Above the command stands the extent where a continuation begins.
pub(super) const MEMOP_EXTENT_SHIFT: u32 = 6;
/// Entries of a memory map that the guest may set (E820MAX).
const E820_MAX: u32 = 1024;
/// Entries of a batch in one go.
const BATCH: u64 = 256;

pub(super) const OPS: &[(u32, Handler)] = &[
    (MemoryOp::INCREASE_RESERVATION.0, reservation::increase),
    (MemoryOp::DECREASE_RESERVATION.0, reservation::decrease),
    (MemoryOp::POPULATE_PHYSMAP.0, reservation::populate),
    (MemoryOp::MAXIMUM_RAM_PAGE.0, |domain, _, _| value(domain.physmap.ram_end())),
    (MemoryOp::CURRENT_RESERVATION.0, |domain, call, cx| ask(domain, call, cx, Domain::pages)),
    (MemoryOp::MAXIMUM_RESERVATION.0, |domain, call, cx| {
        ask(domain, call, cx, |domain| domain.config.max_pages)
    }),
    (MemoryOp::MAXIMUM_GPFN.0, |domain, call, cx| {
        ask(domain, call, cx, |d| d.physmap.end().saturating_sub(1))
    }),
    (MemoryOp::ADD_TO_PHYSMAP.0, add_to_physmap),
    (MemoryOp::ADD_TO_PHYSMAP_BATCH.0, add_to_physmap_batch),
    (MemoryOp::REMOVE_FROM_PHYSMAP.0, remove_from_physmap),
    (MemoryOp::MEMORY_MAP.0, memory_map),
    (MemoryOp::SET_MEMORY_MAP.0, set_memory_map),
];

/// Where a continuation begins.
pub(super) const fn start_extent(call: &Call) -> u64 {
    call.arg(0) >> MEMOP_EXTENT_SHIFT
}

/// The call again, from extent `done` on.
pub(super) fn continue_at(call: &Call, done: u64) -> Outcome {
    let cmd = call.arg(0) & ((1 << MEMOP_EXTENT_SHIFT) - 1);
    Outcome::Again(call.with_args([cmd | done << MEMOP_EXTENT_SHIFT]))
}

/// The questions about a domain.
fn ask(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>, answer: fn(&Domain) -> u64) -> Answer {
    let of: MemoryDomain = cx.get(call.arg(1))?;
    domain.target(of.domid)?;
    value(answer(domain))
}

fn add_to_physmap(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let add = cx.get_twin::<AddToPhysmap, AddToPhysmapCompat>(call.width, call.arg(1))?;
    domain.target(add.domid)?;
    add_one(domain, add.space, add.idx, Gfn(add.gpfn), cx)?;
    DONE
}

fn add_one(domain: &mut Domain, space: MapSpace, idx: u64, gfn: Gfn, cx: &mut Cx<'_>) -> Result<(), Errno> {
    let page = page_of(domain, space, idx)?;
    domain.place_special(page, gfn, cx)
}

/// The page that a map space and an index name; grant and status frames grow the table.
fn page_of(domain: &mut Domain, space: MapSpace, idx: u64) -> Result<SpecialPage, Errno> {
    match space {
        MapSpace::SHARED_INFO if idx == 0 => Ok(SpecialPage::SharedInfo),
        MapSpace::GRANT_TABLE
            if idx & XENMAPIDX_GRANT_TABLE_STATUS != 0 && domain.grants.active.version() == 2 =>
        {
            let index = idx & !XENMAPIDX_GRANT_TABLE_STATUS;
            let page = u16::try_from(index).ok().filter(|_| domain.grants.grow_status(index));
            page.map(SpecialPage::GrantStatus).ok_or(Errno::EINVAL)
        }
        MapSpace::GRANT_TABLE if domain.grants.grow(idx) => {
            u16::try_from(idx).map(SpecialPage::GrantFrame).map_err(|_| Errno::EINVAL)
        }
        // Moving RAM about is not built.
        MapSpace::GMFN | MapSpace::GMFN_RANGE => Err(Errno::EOPNOTSUPP),
        MapSpace::GMFN_FOREIGN => Err(Errno::ENOSYS),
        MapSpace::DEV_MMIO => Err(Errno::EACCES),
        _ => Err(Errno::EINVAL),
    }
}

/// Each entry has its own error; the call fails only where it cannot read or write the arrays.
fn add_to_physmap_batch(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let width = call.width;
    let batch = cx.get_twin::<AddToPhysmapBatch, AddToPhysmapBatchCompat>(width, call.arg(1))?;
    let space = MapSpace(batch.space.into());
    if space == MapSpace::GMFN_RANGE {
        return Err(Errno::EOPNOTSUPP);
    }
    domain.target(batch.domid)?;
    if space == MapSpace::GMFN_FOREIGN {
        domain.target(batch.foreign_domid)?;
    }
    let (start, size) = (start_extent(call), u64::from(batch.size));
    for index in start..size.min(start.saturating_add(BATCH)) {
        let idx = cx.get_long(width, batch.idxs, index)?;
        let gfn = Gfn(cx.get_long(width, batch.gpfns, index)?);
        let error = add_one(domain, space, idx, gfn, cx).err().map_or(0, Errno::neg);
        cx.put(batch.errs.wrapping_add(index * 4), &error)?;
    }
    match start.saturating_add(BATCH) {
        next if next < size => Ok(continue_at(call, next)),
        _ => DONE,
    }
}

fn remove_from_physmap(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    if start_extent(call) != 0 {
        return Err(Errno::EINVAL);
    }
    let remove = cx.get_twin::<RemoveFromPhysmap, RemoveFromPhysmapCompat>(call.width, call.arg(1))?;
    domain.target(remove.domid)?;
    let gfn = Gfn(remove.gpfn);
    if let Some(page) = domain.physmap.special_at(gfn) {
        domain.unplace_special(page, cx)?;
    } else if domain.is_away(gfn) {
        return Err(Errno::EBUSY);
    } else if domain.physmap.take(gfn) {
        cx.fx.release_ram(gfn, 1);
    } else {
        return Err(Errno::ENOENT);
    }
    DONE
}

const ENTRY: u64 = size_of::<E820Entry>() as u64;

fn memory_map(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let map = cx.get_twin::<MemoryMap, MemoryMapCompat>(call.width, call.arg(1))?;
    if domain.memory_map.is_empty() {
        return Err(Errno::ENOSYS);
    }
    let mut written = 0u32;
    for entry in domain.memory_map.iter().take(map.nr_entries as usize) {
        let entry = E820Entry {
            addr: U64::new(entry.addr),
            size: U64::new(entry.size),
            r#type: U32::new(entry.kind),
        };
        cx.copy_out(map.buffer.wrapping_add(u64::from(written) * ENTRY), entry.as_bytes())?;
        written += 1;
    }
    // nr_entries is the first field in both layouts.
    cx.put(call.arg(1), &written)?;
    DONE
}

fn set_memory_map(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let foreign = cx.get_twin::<ForeignMemoryMap, ForeignMemoryMapCompat>(call.width, call.arg(1))?;
    if foreign.map.nr_entries > E820_MAX {
        return Err(Errno::EINVAL);
    }
    domain.target(foreign.domid)?;
    let mut entries = Vec::with_capacity(foreign.map.nr_entries as usize);
    for index in 0..u64::from(foreign.map.nr_entries) {
        let entry: E820Entry = cx.get(foreign.map.buffer.wrapping_add(index * ENTRY))?;
        entries.push(MemmapEntry {
            addr: entry.addr.get(),
            size: entry.size.get(),
            kind: entry.r#type.get(),
        });
    }
    domain.memory_map = entries;
    DONE
}
