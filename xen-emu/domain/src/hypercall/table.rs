//! Which hypercalls and operations there are. An unsupported one is a missing line.

use xen_abi::event_channel::EvtchnOp;
use xen_abi::grant_table::GnttabOp;
use xen_abi::hvm::op::HvmOp;
use xen_abi::hypercall::Hypercall;
use xen_abi::memory::MemoryOp;
use xen_abi::physdev::PhysdevOp;
use xen_abi::sched::SchedOp;
use xen_abi::vcpu::VcpuOp;
use xen_abi::version::XenVer;
use xen_abi::xen::{ConsoleIo, VmAssistCmd};

use crate::hypercall::{
    Call, Handler, console_io, evtchn_op, grant_table_op, hvm_op, memory_op, multicall, physdev_op, sched_op,
    timer_op, vcpu_op, vm_assist, xen_version,
};

/// One hypercall number.
pub(super) struct Family {
    nr: Hypercall,
    /// The bits of the first argument that name the operation; 0 where there are none.
    mask: u64,
    /// Xen's name of an operation.
    name: fn(u32) -> Option<&'static str>,
    ops: &'static [(u32, Handler)],
}

/// An `unsigned int cmd`.
const CMD: u64 = 0xffff_ffff;
/// MEMOP_CMD_MASK: above it stands the extent where a continuation begins.
const MEMOP: u64 = (1 << memory_op::MEMOP_EXTENT_SHIFT) - 1;

const TABLE: &[Family] = &[
    Family { nr: Hypercall::MEMORY_OP, mask: MEMOP, name: |n| MemoryOp(n).name(), ops: memory_op::OPS },
    Family { nr: Hypercall::MULTICALL, mask: 0, name: |_| None, ops: multicall::OPS },
    Family { nr: Hypercall::SET_TIMER_OP, mask: 0, name: |_| None, ops: timer_op::OPS },
    Family { nr: Hypercall::XEN_VERSION, mask: CMD, name: |n| XenVer(n).name(), ops: xen_version::OPS },
    Family { nr: Hypercall::CONSOLE_IO, mask: CMD, name: |n| ConsoleIo(n).name(), ops: console_io::OPS },
    Family {
        nr: Hypercall::GRANT_TABLE_OP,
        mask: CMD,
        name: |n| GnttabOp(n).name(),
        ops: grant_table_op::OPS,
    },
    Family { nr: Hypercall::VM_ASSIST, mask: CMD, name: |n| VmAssistCmd(n).name(), ops: vm_assist::OPS },
    Family { nr: Hypercall::VCPU_OP, mask: CMD, name: |n| VcpuOp(n).name(), ops: vcpu_op::OPS },
    Family { nr: Hypercall::SCHED_OP, mask: CMD, name: |n| SchedOp(n).name(), ops: sched_op::OPS },
    Family { nr: Hypercall::EVENT_CHANNEL_OP, mask: CMD, name: |n| EvtchnOp(n).name(), ops: evtchn_op::OPS },
    Family { nr: Hypercall::PHYSDEV_OP, mask: CMD, name: |n| PhysdevOp(n).name(), ops: physdev_op::OPS },
    Family { nr: Hypercall::HVM_OP, mask: CMD, name: |n| HvmOp(n).name(), ops: hvm_op::OPS },
];

impl Family {
    /// The operation that a call names; 0 where the family has none.
    pub(super) const fn op(&self, call: &Call) -> u64 {
        call.arg(0) & self.mask
    }

    pub(super) fn handler(&self, op: u64) -> Option<Handler> {
        self.ops.iter().find(|(nr, _)| u64::from(*nr) == op).map(|(_, handler)| *handler)
    }
}

/// The family of a hypercall number.
pub(super) fn family(nr: u64) -> Option<&'static Family> {
    TABLE.iter().find(|family| family.nr.0 == nr)
}

/// Xen's name of an operation, as "EVENT_CHANNEL_OP.SEND"; numbers where there is no name.
pub(crate) fn name(nr: u64, op: u64) -> String {
    let call = Hypercall(nr).name().map_or_else(|| nr.to_string(), str::to_owned);
    let Some(family) = family(nr).filter(|family| family.mask != 0) else { return call };
    let op_name = u32::try_from(op).ok().and_then(family.name);
    match op_name {
        Some(op_name) => format!("{call}.{op_name}"),
        None => format!("{call}.{op}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/hypercalls.md says exactly what is in the table. `XLR_BLESS=1` writes it anew.
    #[test]
    fn the_document_lists_the_table() {
        const START: &str = "<!-- the table, checked by a test -->\n";
        const END: &str = "<!-- end -->\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/hypercalls.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (head, rest) = text.split_once(START).unwrap();
        let (listed, tail) = rest.split_once(END).unwrap();
        let mut table = String::from("| nr | hypercall | operations |\n|---|---|---|\n");
        for family in TABLE {
            let name =
                |&(op, _): &(u32, Handler)| (family.name)(op).map_or(op.to_string(), str::to_lowercase);
            let ops = match family.mask {
                0 => "-".to_owned(),
                _ if family.ops.is_empty() => "none".to_owned(),
                _ => family.ops.iter().map(name).collect::<Vec<_>>().join(", "),
            };
            let nr = family.nr;
            table += &format!("| {} | {} | {ops} |\n", nr.0, nr.name().unwrap_or("?").to_lowercase());
        }
        if std::env::var_os("XLR_BLESS").is_some() {
            std::fs::write(path, format!("{head}{START}{table}{END}{tail}")).unwrap();
        } else {
            assert_eq!(listed, table, "run the test with XLR_BLESS=1 to write docs/hypercalls.md anew");
        }
    }
}
