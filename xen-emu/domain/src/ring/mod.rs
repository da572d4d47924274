//! Shared rings from the back-end's side: byte rings (console, store) and rings of request and response slots
//! (block, net).

mod back;
mod bytes;

pub use back::BackRing;
#[cfg(any(test, feature = "testing"))]
pub(crate) use back::Pages;
pub use bytes::{ByteRing, ConsoleIn, ConsoleOut, RingError, RingPage, SpecialRing};
