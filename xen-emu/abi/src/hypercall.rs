//! Hypercall numbers and the calling convention (`public/xen.h`, `public/arch-x86/xen-x86_64.h`, `xen-x86_32.h`).
//!
//! 64-bit: number in RAX, arguments in RDI, RSI, RDX, R10, R8, R9, result in RAX.
//! 32-bit: number in EAX, arguments in EBX, ECX, EDX, ESI, EDI, EBP, result in EAX.
//! The hypercall page has one 32-byte stub per number.

open_enum! {
    /// `__HYPERVISOR_*`.
    pub struct Hypercall(u64) {
        /// PV only.
        SET_TRAP_TABLE = 0,
        /// PV only.
        MMU_UPDATE = 1,
        /// PV only.
        SET_GDT = 2,
        /// PV only.
        STACK_SWITCH = 3,
        /// PV only.
        SET_CALLBACKS = 4,
        /// PV only.
        FPU_TASKSWITCH = 5,
        /// Interface before 3.1.1.
        SCHED_OP_COMPAT = 6,
        /// Control domain only.
        PLATFORM_OP = 7,
        /// PV only.
        SET_DEBUGREG = 8,
        /// PV only.
        GET_DEBUGREG = 9,
        /// PV only.
        UPDATE_DESCRIPTOR = 10,
        /// See `memory`.
        MEMORY_OP = 12,
        /// A batch of calls, see `xen::MulticallEntry`.
        MULTICALL = 13,
        /// PV only.
        UPDATE_VA_MAPPING = 14,
        /// One absolute timeout for the calling vCPU.
        SET_TIMER_OP = 15,
        /// Interface before 3.2.2.
        EVENT_CHANNEL_OP_COMPAT = 16,
        /// See `version`.
        XEN_VERSION = 17,
        /// See `xen::ConsoleIo`.
        CONSOLE_IO = 18,
        /// Interface before 3.2.2.
        PHYSDEV_OP_COMPAT = 19,
        /// See `grant_table`.
        GRANT_TABLE_OP = 20,
        /// See `xen::VmAssistType`.
        VM_ASSIST = 21,
        /// PV only.
        UPDATE_VA_MAPPING_OTHERDOMAIN = 22,
        /// PV only; its stub in an HVM guest's page is UD2.
        IRET = 23,
        /// See `vcpu`.
        VCPU_OP = 24,
        /// PV only.
        SET_SEGMENT_BASE = 25,
        /// Page-table operations.
        MMUEXT_OP = 26,
        /// Security modules.
        XSM_OP = 27,
        /// PV only.
        NMI_OP = 28,
        /// See `sched`.
        SCHED_OP = 29,
        /// PV only.
        CALLBACK_OP = 30,
        /// Profiler.
        XENOPROF_OP = 31,
        /// See `event_channel`.
        EVENT_CHANNEL_OP = 32,
        /// See `physdev`.
        PHYSDEV_OP = 33,
        /// See `hvm::op`.
        HVM_OP = 34,
        /// Control domain only.
        SYSCTL = 35,
        /// Control domain only.
        DOMCTL = 36,
        /// Control domain only.
        KEXEC_OP = 37,
        /// Removed.
        TMEM_OP = 38,
        /// Argo messages.
        ARGO_OP = 39,
        /// Performance counters.
        XENPMU_OP = 40,
        /// Device models.
        DM_OP = 41,
        /// Hypervisor file system.
        HYPFS_OP = 42,
        /// Architecture-specific (`arch_0`), machine check on x86.
        ARCH_0 = 48,
        /// Architecture-specific (`arch_1`), paging on x86.
        ARCH_1 = 49,
    }
}

/// Bytes of one stub in the hypercall page.
pub const STUB_SIZE: usize = 32;
/// Stubs in the hypercall page.
pub const STUBS: usize = 128;
/// With Hyper-V enlightenments on, this bit of EAX marks a Hyper-V call.
pub const VIRIDIAN_BIT: u64 = 1 << 31;
