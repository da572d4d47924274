//! HVM parameters (`public/hvm/params.h`). Unset ones read 0.

open_enum! {
    /// `HVM_PARAM_*`.
    pub struct HvmParam(u32) {
        /// How event upcalls reach the guest: `callback`.
        CALLBACK_IRQ = 0,
        /// Frame of the store's ring.
        STORE_PFN = 1,
        /// The guest's port to the store.
        STORE_EVTCHN = 2,
        /// Device model.
        IOREQ_PFN = 5,
        /// Device model.
        BUFIOREQ_PFN = 6,
        /// Hyper-V enlightenments.
        VIRIDIAN = 9,
        /// How missed ticks are treated.
        TIMER_MODE = 10,
        /// Whether there is an HPET.
        HPET_ENABLED = 11,
        /// Identity page table of old Intel CPUs.
        IDENT_PT = 12,
        /// ACPI sleep state.
        ACPI_S_STATE = 14,
        /// TSS for real mode on old Intel CPUs.
        VM86_TSS = 15,
        /// Align periodic timers.
        VPT_ALIGN = 16,
        /// Frame of the console ring.
        CONSOLE_PFN = 17,
        /// The guest's port to the console.
        CONSOLE_EVTCHN = 18,
        /// Where the ACPI PM block is: 0 at 0x1f40, 1 at 0xb000.
        ACPI_IOPORTS_LOCATION = 19,
        /// Memory paging.
        PAGING_RING_PFN = 27,
        /// Monitoring.
        MONITOR_RING_PFN = 28,
        /// Memory sharing.
        SHARING_RING_PFN = 29,
        /// `ShutdownReason` of a triple fault.
        TRIPLE_FAULT_REASON = 31,
        /// Device model.
        IOREQ_SERVER_PFN = 32,
        /// Device model.
        NR_IOREQ_SERVER_PAGES = 33,
        /// Guest-physical address of the VM generation id.
        VM_GENERATION_ID_ADDR = 34,
        /// Alternate views.
        ALTP2M = 35,
        /// How x87 instruction pointers are kept.
        X87_FIP_WIDTH = 36,
        /// TSS and its size for real mode.
        VM86_TSS_SIZED = 37,
        /// Machine-check abilities.
        MCA_CAP = 38,
    }
}

impl HvmParam {
    /// Indices from here on are invalid (`HVM_NR_PARAMS`).
    pub const NR: u32 = 39;
    /// Indices that once meant something and are now refused.
    pub const DEPRECATED: [u32; 10] = [4, 13, 20, 21, 22, 23, 24, 25, 26, 30];
}

/// Values of `CALLBACK_IRQ`: bits 63-56 are the type, 0 is "none".
pub mod callback {
    /// Shift of the type.
    pub const TYPE_SHIFT: u32 = 56;
    /// Bits 55-0 are a GSI.
    pub const TYPE_GSI: u64 = 0;
    /// Domain 47-32, bus 31-16, devfn 15-8, INTx 1-0.
    pub const TYPE_PCI_INTX: u64 = 1;
    /// Bits 7-0 are a vector.
    pub const TYPE_VECTOR: u64 = 2;
}
