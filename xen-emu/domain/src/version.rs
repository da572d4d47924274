//! The Xen version that the personality tells, in CPUID and by XENVER_version.

/// `major << 16 | minor`.
pub const XEN_VERSION: u32 = (4 << 16) | 20;
/// XENVER_extraversion.
pub const EXTRAVERSION: &str = ".0-xlr";
