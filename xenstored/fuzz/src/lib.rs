//! What is fuzzed: each target takes any bytes, makes of them what a client or guest could do, and panics if the store
//! breaks a promise. A target answers how many requests that were.

pub mod input;
pub mod ring;
pub mod state;
pub mod store;
pub mod wire;

/// Takes any bytes; answers how many requests they made.
pub type Target = fn(&[u8]) -> u64;

/// The targets by name.
pub const TARGETS: [(&str, Target); 4] =
    [("wire", wire::run), ("store", store::run), ("ring", ring::run), ("state", state::run)];
