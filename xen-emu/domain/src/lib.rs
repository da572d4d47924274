//! The Xen semantics of one domain: hypercalls, event channels, grant tables, physmap, vCPU registrations.
//!
//! Sans-IO: no fd, no clock, no thread. Guest memory comes in as [`mem::GuestMem`], the caller's page tables as
//! [`mem::Translate`], time as [`time::Now`]; the only way out is [`effect::Effects`]. `xen-emu` implements the
//! three for KVM, [`testing`] for tests.
#![forbid(unsafe_code)]
// An index that a guest can influence must not be able to panic.
#![warn(clippy::indexing_slicing)]

mod describe;
pub mod domain;
pub mod effect;
mod evtchn;
pub mod gnttab;
mod hvm_params;
pub mod hypercall;
pub mod mem;
pub mod peer;
mod physmap;
mod placing;
pub mod ring;
mod soft_reset;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod time;
mod vcpu;
pub mod version;
pub mod xenbus;

pub use domain::{Counters, Domain, MemmapEntry, Params};
