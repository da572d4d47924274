//! hvm_op(cmd, arg).

use xen_abi::errno::Errno;
use xen_abi::hvm::op::{
    EvtchnUpcallVector, GetMemType, GetTime, HvmMemType, HvmOp, PagetableDying, XenHvmParam,
};
use xen_abi::hvm::params::{HvmParam, callback};

use crate::domain::Domain;
use crate::hvm_params::HvmParams;
use crate::hypercall::{Answer, Call, Cx, DONE, Handler};
use crate::mem::Gfn;

pub(super) const OPS: &[(u32, Handler)] = &[
    (HvmOp::SET_PARAM.0, set_param),
    (HvmOp::GET_PARAM.0, get_param),
    (HvmOp::FLUSH_TLBS.0, flush_tlbs),
    (HvmOp::PAGETABLE_DYING.0, pagetable_dying),
    (HvmOp::GET_TIME.0, get_time),
    (HvmOp::GET_MEM_TYPE.0, get_mem_type),
    (HvmOp::SET_EVTCHN_UPCALL_VECTOR.0, set_evtchn_upcall_vector),
    // Nobody monitors this domain.
    (HvmOp::GUEST_REQUEST_VM_EVENT.0, |_, _, _| DONE),
];

/// The lowest vector an upcall may have.
const MIN_VECTOR: u8 = 0x10;

fn get_param(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let mut param: XenHvmParam = cx.get(call.arg(1))?;
    if param.index.0 >= HvmParam::NR {
        return Err(Errno::EINVAL);
    }
    domain.target(param.domid)?;
    param.value = domain.param(param.index)?;
    cx.put(call.arg(1), &param)?;
    DONE
}

fn set_param(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let param: XenHvmParam = cx.get(call.arg(1))?;
    if param.index.0 >= HvmParam::NR {
        return Err(Errno::EINVAL);
    }
    domain.target(param.domid)?;
    HvmParams::check_guest_set(param.index, param.value)?;
    domain.hvm.set(param.index, param.value);
    if param.index == HvmParam::CALLBACK_IRQ {
        domain.latch_width(call.width.into(), cx);
        set_callback(domain, param.value, cx)?;
    }
    DONE
}

/// Tell the machine how vCPUs without a vector of their own hear of events, and whose flag is set already.
pub(crate) fn announce_callback(domain: &Domain, cx: &mut Cx<'_>) -> Result<(), Errno> {
    cx.fx.set_callback(domain.callback);
    (0..).zip(&domain.vcpus).try_for_each(|(id, _)| super::vcpu_area::remind(domain, id, cx))
}

/// HVM_PARAM_CALLBACK_IRQ: the type in the top byte. This machine has no interrupt lines, and so, as on Xen, whatever is no
/// vector leaves the one before in force.
fn set_callback(domain: &mut Domain, value: u64, cx: &mut Cx<'_>) -> Result<(), Errno> {
    if value >> callback::TYPE_SHIFT != callback::TYPE_VECTOR {
        return Ok(());
    }
    let [vector, ..] = value.to_le_bytes();
    domain.callback = if vector < MIN_VECTOR { 0 } else { vector };
    announce_callback(domain, cx)
}

fn set_evtchn_upcall_vector(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let EvtchnUpcallVector { vcpu, vector, .. } = cx.get(call.arg(1))?;
    let state = domain.vcpus.get_mut(vcpu as usize);
    // Xen looks at the vector first.
    if vector < MIN_VECTOR {
        return Err(Errno::EINVAL);
    }
    state.ok_or(Errno::ENOENT)?.upcall_vector = vector;
    cx.fx.set_upcall_vector(vcpu, vector);
    super::vcpu_area::remind(domain, vcpu, cx)?;
    DONE
}

/// Nothing of ours caches translations; the argument must be NULL.
fn flush_tlbs(_: &mut Domain, call: &Call, _: &mut Cx<'_>) -> Answer {
    if call.arg(1) == 0 { DONE } else { Err(Errno::EINVAL) }
}

/// A matter of shadow page tables: with hardware paging Xen answers -EINVAL.
fn pagetable_dying(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let dying: PagetableDying = cx.get(call.arg(1))?;
    domain.target(dying.domid)?;
    Err(Errno::EINVAL)
}

fn get_time(_: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    cx.put(call.arg(1), &GetTime { now: (cx.now)().system_ns })?;
    DONE
}

fn get_mem_type(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let mut get: GetMemType = cx.get(call.arg(1))?;
    domain.target(get.domid)?;
    get.mem_type = match domain.has_memory(Gfn(get.pfn)) {
        true => HvmMemType::RAM_RW,
        false => HvmMemType::MMIO_DM,
    };
    cx.put(call.arg(1), &get)?;
    DONE
}
