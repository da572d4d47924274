//! Protocols between front-ends and back-ends (`public/io/`).

pub mod ring;
pub mod xs_wire;
