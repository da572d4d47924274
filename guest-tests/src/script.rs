//! `cargo lab run` and `cargo lab shell`: anything in L1.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use console::Term;

use crate::binaries;
use crate::cache::Cache;
use crate::guests::Guests;
use crate::image::drives;
use crate::kernel::Kernel;
use crate::l1::Contents;
use crate::qemu::default_memory_mib;
use crate::run::{End, Event, Job, with_retry};

/// L1's kernels: the accelerated and the portable host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// With KVM_XEN.
    #[value(name = "6.12")]
    WithXen,
    /// Without KVM_XEN.
    #[value(name = "6.1")]
    Plain,
    /// With KVM_XEN, and two CPUs that take turns.
    #[value(name = "6.12-2cpu")]
    TwoCpus,
}

impl Host {
    /// Each of them.
    pub const ALL: [Host; 3] = [Host::WithXen, Host::Plain, Host::TwoCpus];

    /// The lab's name of the kernel.
    pub fn kernel(self) -> &'static str {
        match self {
            Self::WithXen | Self::TwoCpus => "6.12-cloud",
            Self::Plain => "6.1-cloud",
        }
    }

    /// L1's CPUs.
    pub fn cpus(self) -> u32 {
        match self {
            Self::WithXen | Self::Plain => 1,
            Self::TwoCpus => 2,
        }
    }
}

/// What L1 is like.
#[derive(Debug, Args)]
pub struct Options {
    /// L1's kernel: 6.12 has KVM_XEN, 6.1 has not; and its CPUs
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Host,
    /// L1's memory in MiB; 8192, or less on a smaller machine
    #[arg(long)]
    mem: Option<u64>,
    /// A host file to find in /lab in L1, under its own or another name; may be repeated
    #[arg(long, value_name = "FILE[=NAME]")]
    with: Vec<String>,
    /// Debian kernels below /guest: 6.12-cloud, 6.12-full, 6.1-cloud, 6.1-full
    #[arg(long, value_delimiter = ',', default_value = "6.12-cloud,6.1-cloud")]
    guests: Vec<String>,
    /// A Debian disk image to find below /disk in L1: debian-12 or debian-13; may be repeated, each is a fresh one
    #[arg(long, value_name = "NAME")]
    image: Vec<String>,
    /// QEMU in L1 too (qemu-system-x86_64), whose Xen emulation ours is compared with
    #[arg(long)]
    peer: bool,
    /// Debug builds of our programs
    #[arg(long)]
    debug: bool,
    /// Packages to build and hand in; `--build=` for none
    #[arg(long, value_delimiter = ',', value_name = "PACKAGE", default_values = binaries::ALL)]
    build: Vec<String>,
    /// Folder for L1's /out and its kernel log l1.log; target/lab/out if not given
    #[arg(long)]
    out: Option<PathBuf>,
}

/// `cargo lab run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    options: Options,
    /// Seconds after which the script is killed (status 124)
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// A script for busybox sh, or a static program
    script: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Runs the script in L1 and returns its status; 124 if it timed out, an error if L1 died twice.
pub fn run(run: &Run) -> Result<u8> {
    ensure!(run.script.is_file(), "no script {}", run.script.display());
    let cache = Cache::open()?;
    let mut contents = run.options.contents(&cache)?;
    contents.files.push(("lab/script".to_owned(), run.script.clone()));
    contents.start = format!(
        "exec /lab/script {} 9>&-\n",
        run.args.iter().map(|a| quote(a)).collect::<Vec<_>>().join(" ")
    );
    contents.settings = format!("limit={} interactive=\n", run.timeout);
    let job = run.options.job(&cache, contents, run.timeout, false)?;
    status(with_retry(&cache, &job, &mut print)?, run.timeout)
}

/// A prompt in L1 until its shell exits.
pub fn shell(options: &Options) -> Result<u8> {
    let cache = Cache::open()?;
    let mut contents = options.contents(&cache)?;
    let (rows, columns) = Term::stdout().size();
    contents.start = "exec sh -l\n".to_owned();
    contents.settings = format!("limit=0 interactive=1 rows={rows} columns={columns}\n");
    let job = options.job(&cache, contents, 0, true)?;
    status(crate::run::once(&cache, &job, &mut print)?, 0)
}

impl Options {
    fn contents(&self, cache: &Cache) -> Result<Contents> {
        let built = binaries::build(&names(&self.build), self.debug)?;
        let guests = Guests::new(cache, &names(&self.guests), built.micro)?;
        let files = self.with.iter().map(|w| extra_file(w)).collect::<Result<_>>()?;
        Ok(Contents { programs: built.programs, guests, files, peer: self.peer, ..Contents::default() })
    }

    fn job(&self, cache: &Cache, contents: Contents, limit: u64, interactive: bool) -> Result<Job> {
        Ok(Job {
            kernel: Kernel::get(cache, self.kernel.kernel())?,
            contents,
            drives: drives(cache, &names(&self.image))?,
            cpus: self.kernel.cpus(),
            memory_mib: self.mem.map_or_else(default_memory_mib, Ok)?,
            limit,
            interactive,
            out: self.out.clone().unwrap_or_else(|| binaries::target_folder().join("lab/out")),
        })
    }
}

/// The words of a list option; one empty word is an empty list.
fn names(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).filter(|name| !name.is_empty()).collect()
}

fn extra_file(with: &str) -> Result<(String, PathBuf)> {
    let (file, name) = match with.split_once('=') {
        Some((file, name)) => (Path::new(file), name.to_owned()),
        None => {
            (Path::new(with), Path::new(with).file_name().unwrap_or_default().to_string_lossy().into_owned())
        }
    };
    ensure!(file.is_file(), "no file {} to hand in", file.display());
    Ok((format!("lab/{name}"), file.to_owned()))
}

/// Script output as it comes, other lines of the run beside it.
pub fn print(event: Event) {
    // A reader of ours that has gone away is no reason to stop the run.
    let _ = match event {
        Event::Out(bytes) => io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush()),
        Event::Err(bytes) => io::stderr().write_all(&bytes),
        Event::Line(line) => writeln!(io::stderr(), "lab: {line}"),
    };
}

/// What a run's end means for our own exit status.
pub fn status(end: End, limit: u64) -> Result<u8> {
    match end {
        End::Exit(status) => Ok(u8::try_from(status).unwrap_or(u8::MAX)),
        End::Timeout => {
            eprintln!("lab: the script did not end in {limit} s and was killed");
            Ok(124)
        }
        End::Died(reason) => {
            Err(anyhow::anyhow!(reason)).context("L1 died, which says nothing about the script")
        }
    }
}

/// A word as sh takes it literally.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_reach_the_script_as_they_are() {
        assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
    }
}
