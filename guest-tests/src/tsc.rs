//! How fast this machine's time stamp counter runs, which QEMU hands to L1 as it is. L1's kernel would measure that for itself, against
//! an emulated timer, and on a crowded host be wrong by factors: its seconds, and every limit in them, were those of another world.
#![expect(unsafe_code, reason = "RDTSC")]

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long is measured: the error is that of reading two clocks at once, about a microsecond.
const SPAN: Duration = Duration::from_millis(100);

/// The counter's kHz.
pub fn khz() -> u64 {
    let (from, begin) = read();
    sleep(SPAN);
    let (to, end) = read();
    let ticks = u128::from(to.wrapping_sub(from));
    u64::try_from(ticks * 1_000_000 / (end - begin).as_nanos()).unwrap_or(0)
}

/// The counter and the clock at the same time: the pair of a hundred that nothing came between.
fn read() -> (u64, Instant) {
    let pairs = (0..100).map(|_| {
        // SAFETY: it reads a counter, which every x86-64 processor that runs Linux lets programs read.
        let before = unsafe { std::arch::x86_64::_rdtsc() };
        let now = Instant::now();
        // SAFETY: as above.
        let after = unsafe { std::arch::x86_64::_rdtsc() };
        (after.wrapping_sub(before), before, now)
    });
    pairs
        .min_by_key(|&(gap, ..)| gap)
        .map_or((0, Instant::now()), |(gap, before, now)| (before + gap / 2, now))
}

#[cfg(test)]
mod tests {
    #[test]
    fn twice_the_same() {
        let (first, second) = (super::khz(), super::khz());
        assert!(first > 100_000 && first.abs_diff(second) < first / 200, "{first} kHz, then {second} kHz");
    }
}
