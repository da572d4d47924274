//! GNTTABOP_swap_grant_ref, and the operations that come to nothing here: transfer and cache_flush.

use xen_abi::errno::Errno;
use xen_abi::grant_table::{
    CACHE_CLEAN, CACHE_INVAL, CacheFlush, GntStatus, SwapGrantRef, Transfer, TransferCompat,
};

use crate::domain::Domain;
use crate::hypercall::grant_table_op::{Step, each};
use crate::hypercall::{Answer, Call, Cx, Width};
use crate::mem::{Gfn, Gpa};

pub(super) fn swap_grant_ref(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    each(call, size_of::<SwapGrantRef>(), |at| {
        let op: SwapGrantRef = cx.get(at)?;
        let status = domain.grants.active.quiet().swap(cx.mem, op.ref_a.0, op.ref_b.0);
        cx.put(at.wrapping_add(core::mem::offset_of!(SwapGrantRef, status) as u64), &status)?;
        Ok(Step::Done)
    })
}

/// An HVM guest's pages cannot be given away: Xen does not take them out of an external physmap either.
pub(super) fn transfer(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let (size, offset) = match call.width {
        Width::Bits64 => (size_of::<Transfer>(), core::mem::offset_of!(Transfer, status)),
        Width::Bits32 => (size_of::<TransferCompat>(), core::mem::offset_of!(TransferCompat, status)),
    };
    each(call, size, |at| {
        let op = cx.get_twin::<Transfer, TransferCompat>(call.width, at)?;
        let there = domain.has_memory(Gfn(op.mfn));
        let status = if there { GntStatus::GENERAL_ERROR } else { GntStatus::BAD_PAGE };
        cx.put(at.wrapping_add(offset as u64), &status)?;
        Ok(Step::Done)
    })
}

/// Checks as Xen does. Caches are coherent here, so that there is nothing to write back.
pub(super) fn cache_flush(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    each(call, size_of::<CacheFlush>(), |at| {
        let op: CacheFlush = cx.get(at)?;
        let end = u32::from(op.offset) + u32::from(op.length);
        if op.offset >= 4096 || end > 4096 || op.op & !(CACHE_CLEAN | CACHE_INVAL) != 0 {
            return Err(Errno::EINVAL);
        }
        match op.op {
            0 => Ok(Step::Done),
            _ if op.length == 0 => Ok(Step::Done),
            _ if !domain.has_memory(Gpa(op.a).gfn()) => Err(Errno::EINVAL),
            // x86 cannot drop cache lines of an address range alone.
            CACHE_INVAL => Err(Errno::EOPNOTSUPP),
            _ => Ok(Step::Done),
        }
    })
}
