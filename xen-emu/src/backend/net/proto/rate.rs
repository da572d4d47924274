//! `rate=`: so many bytes in each interval.

use std::time::{Duration, Instant};
use xen_emu_api::device::Rate as Limit;

/// A packet is never longer, so credit of this much is never too little.
const BURST: u64 = 128 << 10;

/// Credit, refilled in each interval.
#[derive(Debug)]
pub struct Rate {
    limit: Limit,
    credit: u64,
    refilled: Instant,
}

impl Rate {
    /// Full credit at `now`.
    pub fn new(limit: Limit, now: Instant) -> Rate {
        Rate { limit, credit: limit.bytes, refilled: now }
    }

    /// Takes the credit for `size` bytes.
    ///
    /// # Errors
    /// Not enough: the time from which on to try again.
    pub fn take(&mut self, size: usize, now: Instant) -> Result<(), Instant> {
        let interval = Duration::from_micros(u64::from(self.limit.interval_us.max(1)));
        // Whole intervals that have passed since the last refill.
        let passed = now.saturating_duration_since(self.refilled).as_nanos() / interval.as_nanos();
        if let Ok(passed @ 1..) = u64::try_from(passed) {
            let most = self.limit.bytes.max(BURST);
            self.credit = self.limit.bytes.saturating_mul(passed).saturating_add(self.credit).min(most);
            let caught_up = u32::try_from(passed).ok().and_then(|passed| interval.checked_mul(passed));
            self.refilled = caught_up.map_or(now, |span| self.refilled + span);
        }
        match self.credit.checked_sub(size as u64) {
            Some(left) => {
                self.credit = left;
                Ok(())
            }
            None => Err(self.refilled + interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_rate_over_time_and_big_packets_in_the_end() {
        let begin = Instant::now();
        let mut rate = Rate::new(Limit { bytes: 10_000, interval_us: 50_000 }, begin);
        let (mut now, mut sent) = (begin, 0);
        while now < begin + Duration::from_secs(1) {
            match rate.take(65_000, now) {
                Ok(()) => sent += 65_000,
                Err(later) => {
                    assert!(later > now, "no time passes");
                    now = later;
                }
            }
        }
        assert!((130_000..=200_000).contains(&sent), "{sent} of 200000 bytes a second");
        rate.take(100_000, now + Duration::from_secs(1 << 30)).unwrap();
        assert!(rate.take(100_000, now + Duration::from_secs(1 << 30)).is_err(), "credit is bounded");
    }
}
