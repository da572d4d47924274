//! `cargo lab bench`: the figures of docs/performance.md, ours and QEMU's from one run of L1. Only ratios and counts mean anything.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::binaries::{self, Built};
use crate::cache::Cache;
use crate::guests::{Guests, Linux};
use crate::image::drives;
use crate::kernel::Kernel;
use crate::l1::Contents;
use crate::qemu::{default_memory_mib, unpack_kernel};
use crate::run::{Job, with_retry};
use crate::script::{Host, print, status};
use crate::suite::scripts;

/// The measured guest.
const KERNEL: &str = "6.12-cloud";
/// The system whose fio and iperf3 measure devices, and a drive for the measured file.
const IMAGE: &str = "debian-12";
/// Loads of one program in one round of `devices.sh`, each run twice.
const LOADS: u64 = 6;

/// `cargo lab bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Boots, or disk and network under load; both if not given
    #[arg(value_enum)]
    what: Vec<What>,
    /// Rounds of each program, taken in turn
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each load of a device
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// What to measure: xlr, qemu-pvh (QEMU's vmlinux entry), qemu-hvm (its bzImage entry; boots only)
    #[arg(long, value_delimiter = ',', default_value = "xlr,qemu-pvh,qemu-hvm")]
    programs: Vec<String>,
}

/// A script of the folder `bench`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Boot time, exits, memory
    Boot,
    /// Disk and network
    Devices,
}

/// Runs the scripts in L1, one after the other, and prints what they measure; the status is that of the last one that failed.
pub fn run(bench: &Bench) -> Result<u8> {
    let cache = Cache::open()?;
    let built = binaries::build(&binaries::ALL, false)?;
    let chosen = if bench.what.is_empty() { &[What::Boot, What::Devices] } else { bench.what.as_slice() };
    let mut failure = 0;
    for what in chosen {
        match bench.measure(&cache, &built, *what)? {
            0 => {}
            status => failure = status,
        }
    }
    Ok(failure)
}

impl Bench {
    fn measure(&self, cache: &Cache, built: &Built, what: What) -> Result<u8> {
        let folder = tempfile::tempdir()?;
        let vmlinux = folder.path().join("vmlinux");
        unpack_kernel(cache, &Linux::get(cache, KERNEL)?.image, &vmlinux)?;
        let rounds = u64::from(self.rounds);
        let (script, words, limit, drives) = match what {
            What::Boot => ("boot.sh", self.words(None, &[]), 300 + rounds * 120, Vec::new()),
            What::Devices => {
                let one = (u64::from(self.seconds) + 20) * LOADS * 2 + 120;
                let programs = self.programs.len() as u64;
                let words = self.words(Some(self.seconds), &["qemu-hvm"]);
                ("devices.sh", words, 300 + rounds * programs * one, drives(cache, &[IMAGE])?)
            }
        };
        let mut files = scripts()?;
        files.push(("lab/bench".to_owned(), binaries::workspace().join("guest-tests/bench").join(script)));
        files.push(("guest/vmlinux-6.12-cloud".to_owned(), vmlinux));
        let job = Job {
            kernel: Kernel::get(cache, Host::WithXen.kernel())?,
            contents: Contents {
                programs: built.programs.clone(),
                guests: Guests::new(cache, &[KERNEL], built.micro.clone())?,
                files,
                settings: format!("limit={limit} interactive=\n"),
                start: format!("exec sh /lab/bench {words} 9>&-\n"),
                peer: true,
            },
            drives,
            memory_mib: default_memory_mib()?,
            limit,
            interactive: false,
            out: binaries::target_folder().join("lab/bench"),
        };
        status(with_retry(cache, &job, &mut print)?, limit)
    }

    /// What a script is given: rounds, seconds where it takes them, and the programs but `without`.
    fn words(&self, seconds: Option<u32>, without: &[&str]) -> String {
        let numbers = [Some(self.rounds), seconds].into_iter().flatten().map(|n| n.to_string());
        let programs = self.programs.iter().filter(|p| !without.contains(&p.as_str())).cloned();
        numbers.chain(programs).collect::<Vec<_>>().join(" ")
    }
}
