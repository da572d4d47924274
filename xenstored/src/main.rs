//! The store daemon.
fn main() {}
