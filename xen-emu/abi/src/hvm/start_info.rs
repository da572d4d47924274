//! What a PVH kernel is started with (`public/arch-x86/hvm/start_info.h`). Everything lies below 4 GiB.
//!
//! Entry: 32-bit protected mode without paging, flat segments, EBX the address of `HvmStartInfo`.

/// `magic`: `xEn3` with bit 7 of the `E` set.
pub const XEN_HVM_START_MAGIC_VALUE: u32 = 0x336e_c578;

open_enum! {
    /// `XEN_HVM_MEMMAP_TYPE_*`, the E820 types.
    pub struct MemmapType(u32) {
        /// Usable.
        RAM = 1,
        /// Not usable.
        RESERVED = 2,
        /// ACPI tables, usable once read.
        ACPI = 3,
        /// ACPI non-volatile storage.
        NVS = 4,
        /// Broken, or room for foreign pages.
        UNUSABLE = 5,
        /// Disabled.
        DISABLED = 6,
        /// Persistent memory.
        PMEM = 7,
    }
}

abi_structs! {
    /// `struct hvm_start_info`, version 1.
    pub struct HvmStartInfo {
        /// `XEN_HVM_START_MAGIC_VALUE`.
        pub magic: u32,
        /// 1; 0 ends before `memmap_paddr`.
        pub version: u32,
        /// `xen::SIF_*`.
        pub flags: u32,
        /// Modules; the first is the ramdisk.
        pub nr_modules: u32,
        /// Address of `HvmModlistEntry`s.
        pub modlist_paddr: u64,
        /// Address of the command line, NUL-terminated.
        pub cmdline_paddr: u64,
        /// Address of the RSDP.
        pub rsdp_paddr: u64,
        /// Address of `HvmMemmapTableEntry`s.
        pub memmap_paddr: u64,
        /// How many.
        pub memmap_entries: u32,
        /// Zero.
        pub reserved: u32,
    }

    /// `struct hvm_modlist_entry`.
    pub struct HvmModlistEntry {
        /// Address.
        pub paddr: u64,
        /// Bytes.
        pub size: u64,
        /// Address of its command line, 0 for none.
        pub cmdline_paddr: u64,
        /// Zero.
        pub reserved: u64,
    }

    /// `struct hvm_memmap_table_entry`.
    pub struct HvmMemmapTableEntry {
        /// Address.
        pub addr: u64,
        /// Bytes.
        pub size: u64,
        /// What it is.
        pub r#type: MemmapType,
        /// Zero.
        pub reserved: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        HvmStartInfo = 56 {
            magic: 0, version: 4, flags: 8, nr_modules: 12, modlist_paddr: 16, cmdline_paddr: 24, rsdp_paddr: 32,
            memmap_paddr: 40, memmap_entries: 48, reserved: 52,
        }
        HvmModlistEntry = 32 { paddr: 0, size: 8, cmdline_paddr: 16, reserved: 24 }
        HvmMemmapTableEntry = 24 { addr: 0, size: 8, r#type: 16, reserved: 20 }
    }
}
