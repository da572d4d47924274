//! Layouts and numbers of Xen's public interface, as guests see it on x86.
//!
//! Source: Xen's MIT-licensed public headers, `xen/include/public/` (4.17 to master); each module names its header.
//! Pure vocabulary: no logic beyond index arithmetic, no I/O, no allocation.
//!
//! - Guest-visible integers that have names are open enums: any value is representable, `name()` tells the known ones.
//! - Structs are plain bytes (`zerocopy`), little-endian as x86 is, with the header's padding spelled out.
//! - Where a 32-bit guest sees another layout, the struct has a twin named `…Compat` (Xen's own word).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[macro_use]
mod macros;

pub mod errno;
pub mod io;
