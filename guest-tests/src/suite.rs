//! `cargo lab test`: unit tests, then the table of `matrix.rs` in as few boots of L1 as can be.
//!
//! Per test the runner in L1 says `begin NAME`, then `pass NAME`, `fail NAME REASON` or `skip NAME REASON` on the control channel. When L1
//! itself dies, that test runs once more in a fresh L1; if that dies too, the test has failed, and says why.
//!
//! Where the whole suite runs, tests that failed run once more when nothing runs beside them. One that then passes is shown as FLAKY, with all
//! that its failure has printed, and is no failure of the suite: two hundred tests share a few busy CPUs for half an hour. Tests that prove that
//! no data is lost do not run again: what is lost once in a while is lost.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::{fmt, fs};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;

use crate::binaries::{self, Built};
use crate::cache::Cache;
use crate::guests::Guests;
use crate::image::{IMAGES, drives};
use crate::kernel::Kernel;
use crate::l1::Contents;
use crate::matrix::{LONG, PORTABLE, TESTS, Test};
use crate::packages::{GRUB, KERNELS, XENSTORED};
use crate::qemu::{default_memory_mib, free_memory_mib};
use crate::run::{End, Event, Job, once};
use crate::script::{Host, print, quote};
use crate::step::step;
use crate::ways;

const FOLDER: &str = "guest-tests/tests";
/// What an L1 takes in which the largest guest of the table runs.
const LARGEST_L1_MIB: u64 = 7168;
/// How often a test is begun that the lab itself has ended.
const TRIES: u32 = 2;
/// Failures that are looked at once more; if there are more of them, it is not for chance.
const AGAIN: usize = 6;
const UNIT_TESTS: &str = "unit-tests";
/// How the names of tests begin that prove that no data is lost.
const DATA: &str = "durable-";

/// `cargo lab test`.
#[derive(Debug, Args)]
pub struct Suite {
    /// Only tests whose name contains one of these; then no unit tests run
    filter: Vec<String>,
    /// Name the tests and run none
    #[arg(long)]
    list: bool,
    /// Debug builds of our programs
    #[arg(long)]
    debug: bool,
    /// Run every chosen test this many times in a row
    #[arg(long, default_value_t = 1)]
    repeat: usize,
}

/// One test to run, by the name it reports under.
#[derive(Debug, Clone)]
pub struct Case {
    /// As `Test` has it.
    pub name: String,
    host: Host,
    words: Vec<String>,
    limit: u64,
    deaths: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Pass,
    Fail(String),
    Skip(String),
}

#[derive(Debug, Default)]
struct Tally {
    passed: Vec<String>,
    failed: Vec<String>,
    skipped: u32,
    l1_deaths: u32,
}

/// Runs what was asked for; status 1 if anything failed.
pub fn run(suite: &Suite) -> Result<u8> {
    let chosen = |name: &str| match suite.filter.as_slice() {
        [] => suite.list || !name.starts_with(LONG),
        filter => filter.iter().any(|f| name.contains(f.as_str())),
    };
    if suite.list {
        rows().filter(|case| chosen(&case.name)).for_each(|case| println!("{}", case.name));
        return Ok(0);
    }
    let tally = Mutex::new(Tally::default());
    if suite.filter.is_empty() {
        lock(&tally).count(UNIT_TESTS, &unit_tests());
    }
    let cache = Cache::open()?;
    let built = binaries::build(&binaries::ALL, suite.debug)?;
    let cases: Vec<Case> = cases(&built.micro).into_iter().filter(|case| chosen(&case.name)).collect();
    ensure!(
        !cases.is_empty() || suite.filter.is_empty(),
        "no test is named like {}; see --list",
        suite.filter.join(" or ")
    );
    let cases = that_have_a_kernel(&cache, cases, &mut lock(&tally));
    let out = binaries::target_folder().join("lab/test");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot clear {}", out.display()))?;
    }
    let all: Vec<Case> = (0..suite.repeat).flat_map(|_| cases.iter().cloned()).collect();
    let machines = machines()?.min(all.len().max(1));
    // Everything is fetched before two ask for it at once.
    for (host, cases) in by_host(&all) {
        job(&cache, &built, host, &cases, out.join("all"))?;
    }
    thread::scope(|scope| {
        let workers: Vec<_> = share(all, machines)
            .into_iter()
            .enumerate()
            .map(|(n, cases)| {
                let (cache, built, tally, out) = (&cache, &built, &tally, out.join(format!("machine-{n}")));
                scope.spawn(move || on_hosts(cache, built, &cases, &out, tally))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(anyhow!("a thread of the harness has panicked")))
        })
    })?;
    let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let alone =
        if suite.filter.is_empty() && suite.repeat == 1 { tally.worth_again(cases) } else { Vec::new() };
    if !alone.is_empty() {
        let second = Mutex::new(Tally::default());
        on_hosts(&cache, &built, &alone, &out.join("again"), &second)?;
        tally.forgive(second.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
    println!("{tally}");
    Ok(u8::from(!tally.failed.is_empty()))
}

/// Skips the cases whose kernel is of a release that mirrors drop at some time, where this machine's mirror has it no more.
fn that_have_a_kernel(cache: &Cache, mut cases: Vec<Case>, tally: &mut Tally) -> Vec<Case> {
    for (name, set) in KERNELS.iter().filter(|(_, set)| set.may_be_missing()) {
        let needs_it = |case: &Case| case.words.iter().any(|word| word == name);
        if cases.iter().any(needs_it)
            && let Err(why) = set.get(cache)
        {
            for case in cases.extract_if(.., |case| needs_it(case)) {
                tally.count(&case.name, &Verdict::Skip(format!("no kernel {name}: {why:#}")));
            }
        }
    }
    cases
}

/// How many L1s run at a time: one per CPU, as far as memory for the largest guest goes.
fn machines() -> Result<usize> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let memory = usize::try_from(free_memory_mib()? / LARGEST_L1_MIB).unwrap_or(usize::MAX);
    Ok(cpus.min(memory).max(1))
}

/// Deals the cases out so that every machine gets about the same time, keeping their order.
fn share(cases: Vec<Case>, machines: usize) -> Vec<Vec<Case>> {
    let mut shares = vec![(0, Vec::new()); machines];
    for case in cases {
        if let Some(least) = shares.iter_mut().min_by_key(|share| share.0) {
            least.0 += case.limit;
            least.1.push(case);
        }
    }
    shares.into_iter().map(|share| share.1).collect()
}

/// The cases of each L1 that there are some for.
fn by_host(cases: &[Case]) -> impl Iterator<Item = (Host, VecDeque<Case>)> {
    let of = |host| cases.iter().filter(|case| case.host == host).cloned().collect::<VecDeque<_>>();
    Host::ALL.into_iter().map(move |host| (host, of(host))).filter(|(_, cases)| !cases.is_empty())
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The table, and three cases for every microkernel there is: by each of KVM's ways, and without KVM_XEN.
fn cases(micro: &[PathBuf]) -> Vec<Case> {
    let kernel = |kind: &str, host, lines: &[&str]| {
        let case = |name: &str| {
            Case::new(format!("micro-{kind}{name}"), host, "micro.sh", &[&[name, "64"], lines].concat(), 120)
        };
        let names = micro.iter().filter_map(|path| path.file_name());
        names.map(|name| case(&name.to_string_lossy())).collect::<Vec<_>>()
    };
    let kernels = [
        kernel("", Host::WithXen, &[]),
        kernel("portable-", Host::WithXen, &[PORTABLE]),
        kernel("plain-", Host::Plain, &[]),
    ];
    kernels.into_iter().flatten().chain(rows()).collect()
}

/// All but those of the microkernels.
fn rows() -> impl Iterator<Item = Case> {
    TESTS.iter().map(Case::from).chain(ways::cases())
}

impl Case {
    /// A script with its arguments, and the seconds until it has failed.
    pub fn new(name: String, host: Host, script: &str, args: &[&str], limit: u64) -> Self {
        let words = [script].iter().chain(args).map(|word| (*word).to_owned()).collect();
        Self { name, host, words, limit, deaths: 0 }
    }
}

impl From<&Test> for Case {
    fn from(test: &Test) -> Self {
        Self::new(test.name.to_owned(), test.host, test.script, test.args, test.limit)
    }
}

fn unit_tests() -> Verdict {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["test", "--quiet"]).current_dir(binaries::workspace());
    match step("unit tests", || Ok(command.status()?)) {
        Ok(status) if status.success() => Verdict::Pass,
        Ok(status) => Verdict::Fail(format!("cargo test: {status}")),
        Err(error) => Verdict::Fail(format!("cargo test: {error}")),
    }
}

/// Runs the cases, one L1 after the other.
fn on_hosts(cache: &Cache, built: &Built, cases: &[Case], out: &Path, tally: &Mutex<Tally>) -> Result<()> {
    by_host(cases).try_for_each(|(host, cases)| on_host(cache, built, host, cases, out, tally))
}

/// Runs the cases in L1 boot after boot until none is left.
fn on_host(
    cache: &Cache,
    built: &Built,
    host: Host,
    mut left: VecDeque<Case>,
    out: &Path,
    tally: &Mutex<Tally>,
) -> Result<()> {
    let mut boot = 0;
    while !left.is_empty() {
        boot += 1;
        let (kernel, cpus) = (host.kernel(), host.cpus());
        let job = job(cache, built, host, &left, out.join(format!("{kernel}-{cpus}cpu-{boot}")))?;
        eprintln!("lab: booting L1 ({kernel}, {cpus} CPU) for {} tests", left.len());
        let end = once(cache, &job, &mut |event| match event {
            Event::Line(line) => {
                if let Some((name, verdict)) = parse(&line)
                    && left.front().is_some_and(|case| case.name == name)
                {
                    left.pop_front();
                    lock(tally).count(&name, &verdict);
                }
            }
            // The runner shows the end of a failed test's log.
            output => print(output),
        })?;
        give_up_or_retry(&end, &mut left, &mut lock(tally));
    }
    Ok(())
}

/// Judges the case at the front of what a boot left behind: it is the one L1 ended in.
fn give_up_or_retry(end: &End, left: &mut VecDeque<Case>, tally: &mut Tally) {
    let Some(case) = left.front_mut() else { return };
    match end {
        End::Died(reason) => {
            tally.l1_deaths += 1;
            case.deaths += 1;
            if case.deaths < TRIES {
                println!("RETRY {}: L1 died in it ({reason})", case.name);
                return;
            }
            tally.count(&case.name, &Verdict::Fail(format!("L1 died in it {TRIES} times: {reason}")));
        }
        End::Timeout => tally.count(&case.name, &Verdict::Fail("the whole run took too long".to_owned())),
        End::Exit(status) => {
            tally.count(&case.name, &Verdict::Fail(format!("the runner ended early with status {status}")))
        }
    }
    left.pop_front();
}

fn job(cache: &Cache, built: &Built, host: Host, cases: &VecDeque<Case>, out: PathBuf) -> Result<Job> {
    let used = |name: &str| cases.iter().any(|case| case.words.iter().any(|word| word == name));
    let linux: Vec<&str> =
        KERNELS.iter().map(|(name, _)| *name).filter(|name| *name == "6.12-cloud" || used(name)).collect();
    // A disk image for every test that names one.
    let words = || cases.iter().flat_map(|case| &case.words).map(String::as_str);
    let images: Vec<&str> = words().filter(|word| IMAGES.iter().any(|image| image.name == *word)).collect();
    let mut start = String::new();
    for case in cases {
        let words: Vec<String> = case.words.iter().map(|word| quote(word)).collect();
        start += &format!("sh /lab/tests/runner {} {} {}\n", quote(&case.name), case.limit, words.join(" "));
    }
    let limit = cases.iter().map(|case| case.limit + 10).sum();
    let mut files = scripts()?;
    if used("grub-pvh") {
        let grub = GRUB.get(cache)?.join("usr/lib/grub-xen/grub-i386-xen_pvh.bin");
        files.push(("guest/grub-pvh".to_owned(), grub));
    }
    if words().any(|word| word.contains("pvshim")) {
        let shim = XENSTORED.get(cache)?.join("usr/lib/xen-4.20/boot/xen-shim");
        files.push(("guest/xen-shim".to_owned(), shim));
    }
    Ok(Job {
        kernel: Kernel::get(cache, host.kernel())?,
        contents: Contents {
            programs: built.programs.clone(),
            guests: Guests::new(cache, &linux, built.micro.clone())?,
            files,
            settings: format!("limit={limit} interactive=\n"),
            start,
            peer: false,
        },
        drives: drives(cache, &images)?,
        cpus: host.cpus(),
        memory_mib: default_memory_mib()?,
        limit,
        interactive: false,
        out,
    })
}

/// Every file of guest-tests/tests goes to /lab/tests, examples to /lab/examples.
pub fn scripts() -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for (from, to) in [(FOLDER, "lab/tests"), ("examples", "lab/examples")] {
        for entry in
            fs::read_dir(binaries::workspace().join(from)).with_context(|| format!("no folder {from}"))?
        {
            let entry = entry?;
            files.push((format!("{to}/{}", entry.file_name().to_string_lossy()), entry.path()));
        }
    }
    Ok(files)
}

/// A verdict line of the runner; other lines are none.
fn parse(line: &str) -> Option<(String, Verdict)> {
    let mut words = line.splitn(3, ' ');
    let (kind, name) = (words.next()?, words.next()?);
    let reason = words.next().unwrap_or("no reason given").to_owned();
    let verdict = match kind {
        "pass" => Verdict::Pass,
        "fail" => Verdict::Fail(reason),
        "skip" => Verdict::Skip(reason),
        _ => return None,
    };
    Some((name.to_owned(), verdict))
}

impl Tally {
    fn fail(&mut self, name: &str, reason: &str) {
        self.failed.push(name.to_owned());
        println!("FAIL {name}: {reason}");
    }

    /// The cases that have failed, if they are few, and may have by chance.
    fn worth_again(&self, cases: Vec<Case>) -> Vec<Case> {
        let mut failed: Vec<Case> =
            cases.into_iter().filter(|case| self.failed.contains(&case.name)).collect();
        if failed.len() > AGAIN {
            return Vec::new();
        }
        failed.retain(|case| !case.name.starts_with(DATA));
        failed
    }

    /// Failures of this that `second` has seen pass are flaky. Whatever else it has seen, they stay failures.
    fn forgive(&mut self, second: Tally) {
        self.failed.retain(|name| !second.passed.contains(name));
        second
            .passed
            .iter()
            .for_each(|name| println!("FLAKY {name}: failed, and passed when nothing ran beside it"));
        self.passed.extend(second.passed);
        self.l1_deaths += second.l1_deaths;
    }

    fn count(&mut self, name: &str, verdict: &Verdict) {
        match verdict {
            Verdict::Pass => {
                self.passed.push(name.to_owned());
                println!("PASS {name}");
            }
            Verdict::Fail(reason) => self.fail(name, reason),
            Verdict::Skip(reason) => {
                self.skipped += 1;
                println!("SKIP {name}: {reason}");
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, failed, skipped) = (self.passed.len(), self.failed.len(), self.skipped);
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped; L1 died {} times", self.l1_deaths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(names: &[&str]) -> VecDeque<Case> {
        let case = |name: &&str| Case {
            name: (*name).to_owned(),
            host: Host::WithXen,
            words: Vec::new(),
            limit: 1,
            deaths: 0,
        };
        names.iter().map(case).collect()
    }

    #[test]
    fn a_death_of_l1_repeats_its_test() {
        let (mut left, mut tally) = (left(&["a", "b"]), Tally::default());
        let died = End::Died("panic".to_owned());
        (1..TRIES).for_each(|_| give_up_or_retry(&died, &mut left, &mut tally));
        assert_eq!((left.len(), tally.failed.len(), tally.l1_deaths), (2, 0, TRIES - 1));
        give_up_or_retry(&died, &mut left, &mut tally);
        assert_eq!((left.len(), tally.failed.len(), tally.l1_deaths), (1, 1, TRIES));
    }

    #[test]
    fn a_runner_that_ends_early_fails_its_test() {
        let (mut left, mut tally) = (left(&["a", "b"]), Tally::default());
        give_up_or_retry(&End::Exit(0), &mut left, &mut tally);
        assert_eq!((left.len(), tally.failed.len()), (1, 1));
    }

    #[test]
    fn only_a_pass_makes_a_failure_flaky() {
        let cases: Vec<Case> = left(&["a", "b", "c", "d", "durable-e"]).into();
        let mut tally = Tally::default();
        tally.count("a", &Verdict::Pass);
        ["b", "c", "d", "durable-e", UNIT_TESTS].iter().for_each(|name| tally.fail(name, "no reason"));
        let names = |cases: Vec<Case>| cases.into_iter().map(|case| case.name).collect::<Vec<_>>();
        assert_eq!(names(tally.worth_again(cases)), ["b", "c", "d"]);
        let mut second = Tally::default();
        second.count("b", &Verdict::Pass);
        second.count("c", &Verdict::Skip("no such device".to_owned()));
        second.fail("d", "again");
        tally.forgive(second);
        let failed: Vec<String> = ["c", "d", "durable-e", UNIT_TESTS].map(str::to_owned).into();
        assert_eq!((tally.failed, tally.passed.len()), (failed, 2));
        let failed = (0..=AGAIN).map(|n| n.to_string()).collect::<Vec<_>>();
        let many: Vec<Case> = left(&failed.iter().map(String::as_str).collect::<Vec<_>>()).into();
        assert!(Tally { failed, ..Tally::default() }.worth_again(many).is_empty(), "not by chance");
    }

    #[test]
    fn shares_are_even_and_in_order() {
        let cases: Vec<Case> = left(&["a", "b", "c", "d", "e"]).into();
        let names = |share: &Vec<Case>| share.iter().map(|c| c.name.clone()).collect::<String>();
        let shares = share(cases.clone(), 2);
        assert_eq!(shares.iter().map(names).collect::<Vec<_>>(), ["ace", "bd"]);
        assert_eq!(share(cases, 1)[0].len(), 5);
    }

    #[test]
    fn verdict_lines() {
        assert_eq!(parse("pass x"), Some(("x".to_owned(), Verdict::Pass)));
        assert_eq!(parse("fail x no cpu 3"), Some(("x".to_owned(), Verdict::Fail("no cpu 3".to_owned()))));
        assert_eq!(parse("begin x"), None);
    }
}
