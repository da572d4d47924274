//! Random choices from counted seeds, so that every failure can be had again by its seed.
//!
//! A short form runs with all tests, and as long as wanted with
//! `XEN_EMU_FUZZ_LIVES=100000 cargo test --release -p xen-emu fuzz -- --nocapture`.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Lives of the short form.
const SHORT: u64 = 24;

/// Choices that a seed makes.
pub struct Input(u64);

impl Input {
    fn new(seed: u64) -> Input {
        Input(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        u32::try_from((self.any() >> 32) % u64::from(end)).unwrap()
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(u32::try_from(from.len()).unwrap()) as usize]
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.any().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Lives one life after the other, or the one of `$XEN_EMU_FUZZ_SEED`. A life answers how many requests it made, and
/// panics when a promise is broken.
pub fn lives(name: &str, life: impl Fn(&mut Input) -> u64) {
    let first = variable("XEN_EMU_FUZZ_SEED");
    let count = if first.is_some() { 1 } else { variable("XEN_EMU_FUZZ_LIVES").unwrap_or(SHORT) };
    let first = first.unwrap_or(0);
    let requests: u64 = (first..first + count)
        .map(|seed| {
            catch_unwind(AssertUnwindSafe(|| life(&mut Input::new(seed)))).unwrap_or_else(|_| {
                panic!("{name} fails: XEN_EMU_FUZZ_SEED={seed} cargo test -p xen-emu {name}")
            })
        })
        .sum();
    println!("{name}: {count} lives from seed {first}, {requests} requests");
}
