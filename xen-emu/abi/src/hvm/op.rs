//! `HYPERVISOR_hvm_op(cmd, arg)` (`public/hvm/hvm_op.h`). All structs are the same for both widths.

use crate::hvm::params::HvmParam;
use crate::xen::Domid;

open_enum! {
    /// `HVMOP_*`.
    pub struct HvmOp(u32) {
        /// arg `XenHvmParam`.
        SET_PARAM = 0,
        /// arg `XenHvmParam`; `value` is out.
        GET_PARAM = 1,
        /// Device models of old.
        SET_PCI_INTX_LEVEL = 2,
        /// Device models of old.
        SET_ISA_IRQ_LEVEL = 3,
        /// Device models of old.
        SET_PCI_LINK_ROUTE = 4,
        /// Flush all TLBs; arg NULL.
        FLUSH_TLBS = 5,
        /// A hint; arg `PagetableDying`.
        PAGETABLE_DYING = 9,
        /// Host time; arg `GetTime`.
        GET_TIME = 10,
        /// Trace record.
        XENTRACE = 11,
        /// Toolstack of old.
        SET_MEM_ACCESS = 12,
        /// Toolstack of old.
        GET_MEM_ACCESS = 13,
        /// Type of a frame; arg `GetMemType`.
        GET_MEM_TYPE = 15,
        /// Per-vCPU upcall vector; arg `EvtchnUpcallVector`.
        SET_EVTCHN_UPCALL_VECTOR = 23,
        /// Raise an event to a monitor.
        GUEST_REQUEST_VM_EVENT = 24,
        /// Alternate views.
        ALTP2M = 25,
    }
}

open_enum! {
    /// `hvmmem_type_t`.
    pub struct HvmMemType(u16) {
        /// RAM.
        RAM_RW = 0,
        /// Read-only RAM.
        RAM_RO = 1,
        /// Emulated device.
        MMIO_DM = 2,
        /// Claimed by a device model.
        IOREQ_SERVER = 4,
    }
}

abi_structs! {
    /// `struct xen_hvm_param`.
    pub struct XenHvmParam {
        /// In: `SELF` for an ordinary domain.
        pub domid: Domid,
        /// Zero.
        pub pad: u16,
        /// In.
        pub index: HvmParam,
        /// In or out.
        pub value: u64,
    }

    /// `struct xen_hvm_evtchn_upcall_vector`.
    pub struct EvtchnUpcallVector {
        /// In.
        pub vcpu: u32,
        /// In: 16 to 255.
        pub vector: u8,
        /// Zero.
        pub pad: [u8; 3],
    }

    /// `struct xen_hvm_pagetable_dying`.
    pub struct PagetableDying {
        /// In.
        pub domid: Domid,
        /// Zero.
        pub pad: [u16; 3],
        /// In: guest-physical address of the top table.
        pub gpa: u64,
    }

    /// `struct xen_hvm_get_time`.
    pub struct GetTime {
        /// Out: ns since the host's boot.
        pub now: u64,
    }

    /// `struct xen_hvm_get_mem_type`.
    pub struct GetMemType {
        /// In.
        pub domid: Domid,
        /// Out.
        pub mem_type: HvmMemType,
        /// Zero.
        pub pad: [u16; 2],
        /// In: frame.
        pub pfn: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        XenHvmParam = 16 { domid: 0, index: 4, value: 8 }
        EvtchnUpcallVector = 8 { vcpu: 0, vector: 4 }
        PagetableDying = 16 { domid: 0, gpa: 8 }
        GetTime = 8 { now: 0 }
        GetMemType = 16 { domid: 0, mem_type: 2, pfn: 8 }
    }
}
