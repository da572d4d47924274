//! One domain: all the state that outlives a hypercall.

use crate::effect::{Backend, Port, VcpuId};
use crate::hypercall::{Call, Cx, Outcome};
use crate::mem::Gfn;

/// One entry of the guest's memory map: E820 types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemmapEntry {
    /// First byte.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// 1 RAM, 2 reserved, 3 ACPI.
    pub kind: u32,
}

/// What a domain is built with.
#[derive(Clone, Debug)]
pub struct Params {
    /// Domain id.
    pub domid: u16,
    /// UUID bytes (XENVER_guest_handle).
    pub uuid: [u8; 16],
    /// vCPUs that exist.
    pub max_vcpus: u32,
    /// RAM frames present at start.
    pub pages: u64,
    /// RAM frames the guest may have at most.
    pub max_pages: u64,
    /// As given in hvm_start_info; XENMEM_memory_map answers it.
    pub memory_map: Vec<MemmapEntry>,
    /// Grant table frames.
    pub max_grant_frames: u32,
    /// Highest port + 1 that may be allocated.
    pub max_ports: u32,
    /// Command line of "the hypervisor" shown by XENVER_commandline.
    pub commandline: String,
    /// The 64-bit layout is latched from the start (the loaded kernel is 64-bit).
    pub long_mode: bool,
    /// GSIs and INTx lines exist (a machine with IOAPIC and platform device); false for PVH, where Xen
    /// ignores such callbacks.
    pub legacy_callbacks: bool,
    /// Console ring frame.
    pub console_gfn: Gfn,
    /// Store ring frame.
    pub store_gfn: Gfn,
}
