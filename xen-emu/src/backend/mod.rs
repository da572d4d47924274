//! Backends: the host's ends of the guest's paravirtual devices.

pub mod console;
