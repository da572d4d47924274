//! `cargo lab bench`: the figures of docs/performance.md, ours and QEMU's from one run of L1, ours and C xenstored's on this
//! machine. Only ratios and counts mean anything.

mod store;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::binaries;
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
/// Loads of one program in one round of `devices.sh`, each run twice: of a disk, and of a network card.
const LOADS: [u64; 2] = [4, 3];

/// `cargo lab bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Boots, events, disk and network under load (or one of them), or the store; all if not given
    #[arg(value_enum)]
    what: Vec<What>,
    /// Rounds of each program, taken in turn
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each load of a device [default: 10] or of the store [default: 1]
    #[arg(long)]
    seconds: Option<u32>,
    /// What to measure: xlr, xlr-transient (no persistent grants; disk), qemu-pvh (QEMU's vmlinux entry), qemu-hvm (its bzImage entry; boots)
    #[arg(long, value_delimiter = ',', default_value = "xlr,qemu-pvh,qemu-hvm")]
    programs: Vec<String>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Boot time, exits, memory
    Boot,
    /// Hypercalls, events and timers by a microkernel, on both backends and with both event channel ABIs
    Events,
    /// Disk and network
    Devices,
    /// Disk alone
    Disk,
    /// Network alone
    Network,
    /// xenstored beside C xenstored, on this machine
    Store,
}

/// Measures one after the other and prints; the status is that of the last one that failed.
pub fn run(bench: &Bench) -> Result<u8> {
    let cache = Cache::open()?;
    let chosen = if bench.what.is_empty() {
        &[What::Boot, What::Events, What::Devices, What::Store]
    } else {
        bench.what.as_slice()
    };
    let mut failure = 0;
    for what in chosen {
        let status = match what {
            What::Boot => bench.boot(&cache)?,
            What::Events => bench.events(&cache)?,
            What::Devices => bench.devices(&cache, "disk,network", LOADS.iter().sum())?,
            What::Disk => bench.devices(&cache, "disk", LOADS[0])?,
            What::Network => bench.devices(&cache, "network", LOADS[1])?,
            What::Store => store::run(&cache, bench.rounds, bench.seconds.unwrap_or(1))?,
        };
        match status {
            0 => {}
            status => failure = status,
        }
    }
    Ok(failure)
}

impl Bench {
    fn boot(&self, cache: &Cache) -> Result<u8> {
        let limit = 300 + u64::from(self.rounds) * 120;
        self.measure(cache, "boot.sh", &self.words(None, &[]), limit, Vec::new())
    }

    fn events(&self, cache: &Cache) -> Result<u8> {
        let limit = 600 + u64::from(self.rounds) * 120;
        self.measure(cache, "events.sh", &self.rounds.to_string(), limit, Vec::new())
    }

    fn devices(&self, cache: &Cache, parts: &str, loads: u64) -> Result<u8> {
        let seconds = self.seconds.unwrap_or(10);
        let one = (u64::from(seconds) + 20) * loads * 2 + 120;
        let limit = 300 + u64::from(self.rounds) * self.programs.len() as u64 * one;
        self.measure(
            cache,
            "devices.sh",
            &format!("{parts} {}", self.words(Some(seconds), &["qemu-hvm"])),
            limit,
            drives(cache, &[IMAGE])?,
        )
    }

    /// Runs a script of the folder `bench` in L1.
    fn measure(
        &self,
        cache: &Cache,
        script: &str,
        words: &str,
        limit: u64,
        drives: Vec<PathBuf>,
    ) -> Result<u8> {
        let built = binaries::build(&binaries::ALL, false)?;
        let folder = tempfile::tempdir()?;
        let vmlinux = folder.path().join("vmlinux");
        unpack_kernel(cache, &Linux::get(cache, KERNEL)?.image, &vmlinux)?;
        let mut files = scripts()?;
        files.push(("lab/bench".to_owned(), binaries::workspace().join("guest-tests/bench").join(script)));
        files.push(("guest/vmlinux-6.12-cloud".to_owned(), vmlinux));
        let job = Job {
            kernel: Kernel::get(cache, Host::WithXen.kernel())?,
            contents: Contents {
                programs: built.programs,
                guests: Guests::new(cache, &[KERNEL], built.micro)?,
                files,
                settings: format!("limit={limit} interactive=\n"),
                start: format!("exec sh /lab/bench {words} 9>&-\n"),
                peer: true,
            },
            drives,
            cpus: 1,
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
