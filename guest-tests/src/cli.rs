//! The commands and their options.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{bench, demo, image, script, suite};

#[derive(Debug, Parser)]
#[command(
    name = "cargo lab",
    about = "A real KVM with KVM_XEN on any machine: QEMU's TCG (L0), a small Linux (L1), Xen guests (L2)"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show an unmodified Debian kernel coming up as a Xen guest
    Demo(demo::Demo),
    /// Run the unit tests and every test that needs a guest
    Test(suite::Suite),
    /// Measure a guest's boot against QEMU's own Xen emulation, in one run of L1
    Bench(bench::Bench),
    /// Run a script in L1; its output and exit status come back
    Run(script::Run),
    /// Build a Debian disk image, for guests that live on a disk
    Image(image::Build),
    /// An interactive prompt in L1, with xlr ready
    Shell(script::Options),
}

/// Reads the command line and does what it says; the value is the exit status.
pub fn run() -> Result<u8> {
    match Cli::parse().command {
        Command::Demo(demo) => demo::run(&demo),
        Command::Test(suite) => suite::run(&suite),
        Command::Bench(bench) => bench::run(&bench),
        Command::Run(run) => script::run(&run),
        Command::Image(build) => image::run(&build),
        Command::Shell(options) => script::shell(&options),
    }
}
