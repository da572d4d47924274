//! `cargo lab bench`: the figures of docs/performance.md, ours and QEMU's from one run of L1. Only ratios and counts mean anything.

use anyhow::Result;
use clap::Args;

use crate::binaries;
use crate::cache::Cache;
use crate::guests::{Guests, Linux};
use crate::kernel::Kernel;
use crate::l1::Contents;
use crate::qemu::{default_memory_mib, unpack_kernel};
use crate::run::{Job, with_retry};
use crate::script::{Host, print, status};

/// The measured guest.
const KERNEL: &str = "6.12-cloud";

/// `cargo lab bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Timed boots of each program, taken in turn
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// What to measure: xlr, qemu-pvh (QEMU's vmlinux entry), qemu-hvm (its bzImage entry)
    #[arg(long, value_delimiter = ',', default_value = "xlr,qemu-pvh,qemu-hvm")]
    programs: Vec<String>,
}

/// Runs `bench/boot.sh` in L1 and prints what it measures.
pub fn run(bench: &Bench) -> Result<u8> {
    let cache = Cache::open()?;
    let built = binaries::build(&binaries::ALL, false)?;
    let folder = tempfile::tempdir()?;
    let vmlinux = folder.path().join("vmlinux");
    unpack_kernel(&cache, &Linux::get(&cache, KERNEL)?.image, &vmlinux)?;
    let script = binaries::workspace().join("guest-tests/bench/boot.sh");
    let limit = 300 + u64::from(bench.rounds) * 120;
    let job = Job {
        kernel: Kernel::get(&cache, Host::WithXen.kernel())?,
        contents: Contents {
            programs: built.programs,
            guests: Guests::new(&cache, &[KERNEL], built.micro)?,
            files: vec![("lab/bench".to_owned(), script), ("guest/vmlinux-6.12-cloud".to_owned(), vmlinux)],
            settings: format!("limit={limit} interactive=\n"),
            start: format!("exec sh /lab/bench {} {} 9>&-\n", bench.rounds, bench.programs.join(" ")),
            peer: true,
        },
        drives: Vec::new(),
        memory_mib: default_memory_mib()?,
        limit,
        interactive: false,
        out: binaries::target_folder().join("lab/bench"),
    };
    status(with_retry(&cache, &job, &mut print)?, limit)
}
