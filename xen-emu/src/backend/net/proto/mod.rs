//! The pure part of the network protocol (`public/io/netif.h`): no memory, no descriptors, no clocks of its own.

pub mod chain;
pub mod checksum;
pub mod control;
pub mod hash;
pub mod headers;
pub mod multicast;
pub mod offload;
pub mod rate;
pub mod spread;

/// Bytes of a granted page.
pub const PAGE: usize = 4096;
/// Length of an Ethernet header.
pub const ETH_HLEN: usize = 14;
/// Headers of a packet lie within so many first bytes of it: what is copied to be looked at.
pub const HEAD: usize = 256;
