//! xlr as a process, with a run directory of its own, a store and domains that are threads of the test.
#![expect(clippy::unwrap_used, reason = "a panic is the verdict of a test")]

mod bed;
mod cli;
mod devices;
mod life;
