//! Backends: the host's ends of the guest's paravirtual devices.

#[allow(dead_code, reason = "parts that only tests and the bench use")]
pub mod blk;
pub mod bus;
pub mod channel;
pub mod console;
pub mod device;
pub mod evtchn;
pub mod kinds;
pub mod net;
pub mod script;
