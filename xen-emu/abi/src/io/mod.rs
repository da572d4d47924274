//! Protocols between front-ends and back-ends (`public/io/`).

pub mod blkif;
pub mod console;
pub mod netif;
pub mod ring;
pub mod xenbus;
pub mod xs_wire;

/// Value of a front-end's `protocol` node: 64-bit layouts (`XEN_IO_PROTO_ABI_X86_64`, `public/io/protocols.h`).
pub const PROTO_X86_64: &str = "x86_64-abi";
/// Value of a front-end's `protocol` node: 32-bit layouts (`XEN_IO_PROTO_ABI_X86_32`).
pub const PROTO_X86_32: &str = "x86_32-abi";
