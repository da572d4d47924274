//! Backends: the host's ends of the guest's paravirtual devices.

#[allow(dead_code, reason = "used by the bus, which is on its way")]
pub mod blk;
pub mod console;
#[allow(dead_code, reason = "nothing is plugged in here yet")]
pub mod device;
