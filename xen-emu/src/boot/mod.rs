//! From a kernel file to a guest that can be entered: the direct boot of a PVH domain.
//!
//! [`kernel`] finds the PVH entry and the segments in an ELF or bzImage file, [`acpi`] builds the firmware tables,
//! [`pvh`] lays everything out in guest memory and writes it.

pub mod acpi;
pub mod bootloader;
pub mod elf;
pub mod kernel;
pub mod map;
pub mod pvh;
pub mod rewrite;
