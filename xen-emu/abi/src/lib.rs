//! Layouts and numbers of Xen's public interface, as guests see it on x86.
//!
//! Source: Xen's MIT-licensed public headers, `xen/include/public/` (4.17 to master); each module names its header.
//! Pure vocabulary: no logic beyond index arithmetic, no I/O, no allocation.
//!
//! - Guest-visible integers that have names are open enums: any value is representable, `name()` tells the known ones.
//! - Structs are plain bytes (`zerocopy`), little-endian as x86 is, with the header's padding spelled out.
//! - Where a 32-bit guest sees another layout, the struct has a twin named `…Compat` (Xen's own word): `From` widens
//!   the twin, `to_compat` narrows an answer. Structs without a twin are the same for both.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[macro_use]
mod macros;

pub mod cpuid;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod grant_table;
pub mod hvm;
pub mod hypercall;
pub mod io;
pub mod memory;
pub mod physdev;
pub mod sched;
pub mod shared_info;
pub mod vcpu;
pub mod version;
pub mod xen;

pub use errno::Errno;
pub use xen::{Domid, Gref, Port, Width};
