//! Who the personality says it is: in CPUID, by XENVER_* and to `xlr info`.

/// Version of Xen whose interface this is: `major << 16 | minor`.
pub const XEN_VERSION: u32 = (4 << 16) | 20;
/// XENVER_extraversion: what follows the version, for people.
pub const EXTRAVERSION: &str = ".0-xlr";
/// XENVER_capabilities: kinds of guests, as Xen words them on a 64-bit host; the blank at the end is Xen's.
pub const CAPABILITIES: &str = "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ";
/// XENVER_changeset: no source revision is told.
pub const CHANGESET: &str = "";
/// Compiler told by XENVER_compile_info.
pub const COMPILER: &str = concat!("rustc, xlr ", env!("CARGO_PKG_VERSION"));
/// XENVER_platform_parameters: HYPERVISOR_VIRT_START, of no use to HVM guests.
pub const VIRT_START: u64 = 0xffff_8000_0000_0000;
/// The same for 32-bit callers.
pub const VIRT_START_COMPAT: u64 = 0xf580_0000;
