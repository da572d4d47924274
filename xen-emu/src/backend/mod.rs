//! Backends: the host's ends of the guest's paravirtual devices.

pub mod console;
#[allow(dead_code, reason = "nothing is plugged in here yet")]
pub mod device;
