//! The fuzz targets of `fuzz/` without a nightly compiler: random bytes from seeds that are counted up, so that every
//! failure can be had again by its seed.
//!
//! A short form runs with all tests. The long one counts requests, of all targets together, on all CPUs:
//! `XENSTORED_FUZZ_REQUESTS=100000000 cargo test --release -p xenstored --test fuzz -- --nocapture`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the verdict of a test")]

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// What the short form asks for.
const SHORT: u64 = 20_000;
/// Bytes of one run at most.
const LONGEST: usize = 4096;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Bytes of a seed: as random as they come, some runs of them long and some short.
fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let len = usize::try_from(next() >> 32).unwrap() % LONGEST;
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect()
}

/// Runs a target on one seed; a failure says which seed it was.
fn run(name: &str, target: fn(&[u8]) -> u64, seed: u64) -> u64 {
    std::panic::catch_unwind(|| target(&bytes(seed))).unwrap_or_else(|_| {
        panic!("{name} fails: XENSTORED_FUZZ_SEED={seed} cargo test -p xenstored --test fuzz");
    })
}

/// KiB of memory of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn no_bytes_break_the_store() {
    if let Some(seed) = variable("XENSTORED_FUZZ_SEED") {
        targets::TARGETS.iter().for_each(|(name, target)| {
            run(name, *target, seed);
        });
        return;
    }
    let wanted = variable("XENSTORED_FUZZ_REQUESTS").unwrap_or(SHORT);
    let first = variable("XENSTORED_FUZZ_FIRST").unwrap_or(0);
    let (seeds, done) = (AtomicU64::new(first), AtomicU64::new(0));
    let counts = targets::TARGETS.map(|_| AtomicU64::new(0));
    // Enough to have touched everything once; what is resident then may not grow much.
    let mut settled = 0;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..thread::available_parallelism().map_or(1, usize::from))
            .map(|_| {
                scope.spawn(|| {
                    while done.load(Ordering::Relaxed) < wanted {
                        let seed = seeds.fetch_add(1, Ordering::Relaxed);
                        for ((name, target), count) in targets::TARGETS.iter().zip(&counts) {
                            let requests = run(name, *target, seed);
                            count.fetch_add(requests, Ordering::Relaxed);
                            done.fetch_add(requests, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        let mut shown = 0;
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(std::time::Duration::from_millis(20));
            let count = done.load(Ordering::Relaxed);
            if settled == 0 && count > wanted / 10 {
                settled = resident();
            }
            if count - shown > 10_000_000 {
                shown = count;
                println!("{count} requests, {} KiB", resident());
            }
        }
    });
    let end = resident();
    for ((name, _), count) in targets::TARGETS.iter().zip(&counts) {
        println!("{name}: {} requests", count.load(Ordering::Relaxed));
    }
    println!(
        "{} seeds from {first}; {settled} KiB at a tenth, {end} at the end",
        seeds.load(Ordering::Relaxed) - first
    );
    assert!(settled == 0 || end < settled + 64 * 1024, "memory grew from {settled} to {end} KiB");
}
