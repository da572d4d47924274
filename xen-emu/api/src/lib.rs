//! What `xlr` and `xen-emu` say to each other: the configuration of a domain, the layout of the run
//! directory, and the control protocol on a domain's socket.
#![forbid(unsafe_code)]

pub mod bootloader;
pub mod config;
pub mod control;
pub mod device;
pub mod run_dir;
