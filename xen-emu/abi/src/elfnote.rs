//! ELF notes of guest kernels (`public/elfnote.h`). Their name is `Xen`.

/// Name of every note below, with its NUL.
pub const NAME: &[u8; 4] = b"Xen\0";

open_enum! {
    /// `XEN_ELFNOTE_*`: type of a note.
    pub struct ElfNote(u32) {
        /// Ignored.
        INFO = 0,
        /// PV: virtual entry address.
        ENTRY = 1,
        /// PV: virtual address of the hypercall page.
        HYPERCALL_PAGE = 2,
        /// PV: where the kernel is mapped.
        VIRT_BASE = 3,
        /// Physical addresses in the program headers are off by this.
        PADDR_OFFSET = 4,
        /// Xen version, a string.
        XEN_VERSION = 5,
        /// Name of the guest system.
        GUEST_OS = 6,
        /// Version of the guest system.
        GUEST_VERSION = 7,
        /// Which loader: `generic`.
        LOADER = 8,
        /// PV: PAE, a string.
        PAE_MODE = 9,
        /// Features supported and required (`!`), a string with `|`.
        FEATURES = 10,
        /// Keep the symbol table, as BSD kernels want.
        BSD_SYMTAB = 11,
        /// PV: lowest address of the hypervisor hole.
        HV_START_LOW = 12,
        /// PV: which page-table entries hold valid frames.
        L1_MFN_VALID = 13,
        /// Suspend may be cancelled.
        SUSPEND_CANCEL = 14,
        /// PV: where to map the physical-to-machine list.
        INIT_P2M = 15,
        /// PV: the module may be unmapped.
        MOD_START_PFN = 16,
        /// Features supported, a bit mask.
        SUPPORTED_FEATURES = 17,
        /// PVH: physical 32-bit entry address, 4 or 8 bytes.
        PHYS32_ENTRY = 18,
        /// PVH: alignment, lowest and highest address for relocating the kernel.
        PHYS32_RELOC = 19,
    }
}
