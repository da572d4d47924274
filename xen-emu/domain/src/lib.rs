//! The Xen semantics of one domain: hypercalls, event channels, grant tables, physmap, vCPU registrations.
//!
//! Sans-IO: no fd, no clock, no thread. Guest memory comes in as [`mem::GuestMem`], the caller's page tables as
//! [`mem::Translate`], time as [`time::Now`]; the only way out is [`effect::Effects`]. `xen-emu` implements the
//! three for KVM, [`testing`] for tests.
#![forbid(unsafe_code)]

pub mod domain;
pub mod effect;
pub mod hypercall;
pub mod mem;
pub mod time;
pub mod version;

pub use domain::{Counters, Domain, MemmapEntry, Params};
