//! A brake for log lines that a guest or client can cause.

use std::fmt::Arguments;
use std::time::{Duration, Instant};

/// Lines per period.
const LINES: u32 = 10;
/// The period.
const PERIOD: Duration = Duration::from_secs(10);

/// Lets a few warnings through per period and counts the others.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    since: Option<Instant>,
    lines: u32,
}

impl LogLimit {
    /// Logs, or counts.
    pub(super) fn warn(&mut self, line: Arguments<'_>) {
        let now = Instant::now();
        if self.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            if self.lines > LINES {
                tracing::warn!("{} warnings left out", self.lines - LINES);
            }
            (self.since, self.lines) = (Some(now), 0);
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines <= LINES {
            tracing::warn!("{line}");
        }
    }
}
