//! vm_assist(cmd, type).

use xen_abi::errno::Errno;
use xen_abi::xen::{VmAssistCmd, VmAssistType};

use crate::domain::Domain;
use crate::hypercall::{Answer, Call, Cx, DONE, Handler};

pub(super) const OPS: &[(u32, Handler)] = &[
    (VmAssistCmd::ENABLE.0, |domain, call, cx| assist(domain, call, cx, true)),
    (VmAssistCmd::DISABLE.0, |domain, call, cx| assist(domain, call, cx, false)),
];

/// The one assist that HVM guests have: the flag in the runstate area that tells of an update under way.
fn assist(_: &mut Domain, call: &Call, cx: &mut Cx<'_>, on: bool) -> Answer {
    if call.arg32(1) != VmAssistType::RUNSTATE_UPDATE_FLAG.0 {
        return Err(Errno::EINVAL);
    }
    if cx.fx.set_runstate_update_flag(on) { DONE } else { Err(Errno::EINVAL) }
}
