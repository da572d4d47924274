//! The store tool.
fn main() {}
