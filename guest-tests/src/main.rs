//! `cargo lab`: a real KVM with KVM_XEN on any machine, and everything that is run in it. See docs/testing.md.

mod apt;
mod bench;
mod binaries;
mod cache;
mod cli;
mod cpio;
mod demo;
mod guests;
mod image;
mod kernel;
mod l1;
mod matrix;
mod packages;
mod qemu;
mod run;
mod script;
mod step;
mod suite;
mod system;
mod tsc;
mod ways;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
