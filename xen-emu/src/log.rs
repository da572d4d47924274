//! The process's log: tracing to stderr, the newest part kept in memory for `xlr dmesg`, and the rate limit for
//! everything a guest can trigger.

use nix::unistd::dup2_stderr;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Bytes kept in memory.
const RING: usize = 256 << 10;
/// A log file that grows beyond this is renamed to `*.1` and begun anew.
pub const FILE_MAX: u64 = 1 << 20;
/// Longest line taken from a guest; longer ones are split.
const GUEST_LINE: usize = 1024;

/// Log to stderr from now on (filter: `XLR_LOG`, default `info`, but of the qcow2 crate, which guests can make warn, only
/// errors) and keep the newest lines. With `file`, stderr is that file: it is rotated, and opened again by
/// [`Dmesg::reopen`]. Call once, first of all.
pub fn init(file: Option<PathBuf>) -> Dmesg {
    let written = file.as_deref().and_then(|path| fs::metadata(path).ok()).map_or(0, |meta| meta.len());
    let dmesg = Dmesg(Arc::new(Mutex::new(Inner { file, written, ..Inner::default() })));
    let writer = dmesg.clone();
    let asked = std::env::var("XLR_LOG").ok().and_then(|text| text.parse().ok());
    let filter =
        asked.unwrap_or_else(|| Targets::new().with_default(Level::INFO).with_target("imago", Level::ERROR));
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::TRACE)
        .with_target(false)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish()
        .with(filter);
    if subscriber.try_init().is_err() {
        eprintln!("xen-emu: the log was already set up");
    }
    dmesg
}

/// The newest part of the log, and the way into it for lines that are the guest's.
#[derive(Clone, Default)]
pub struct Dmesg(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// Whole lines, one behind the other: one by one they would take twice the memory, in the heap of whichever thread wrote them.
    kept: VecDeque<u8>,
    /// What a guest has written of a line that has no end yet.
    partial: Vec<u8>,
    file: Option<PathBuf>,
    written: u64,
}

impl Dmesg {
    /// Everything kept, oldest first.
    pub fn text(&self) -> String {
        let inner = self.inner();
        let (first, rest) = inner.kept.as_slices();
        String::from_utf8_lossy(&[first, rest].concat()).into_owned()
    }

    /// Output of the guest through CONSOLEIO_write or the debug port. All of it is kept, as far as the memory goes;
    /// a flood is not all written to stderr.
    pub fn guest(&self, domid: u16, bytes: &[u8]) {
        static LIMIT: Limit = Limit::new(1000, Duration::from_secs(10));
        let mut inner = self.inner();
        for &byte in bytes {
            if byte != b'\n' {
                inner.partial.push(byte);
            }
            if byte == b'\n' || inner.partial.len() >= GUEST_LINE {
                let text = printable(&std::mem::take(&mut inner.partial));
                let line = format!("(d{domid}) {text}\n");
                if LIMIT.pass(Instant::now()).is_some() {
                    inner.print(line.as_bytes());
                }
                inner.keep(line.as_bytes());
            }
        }
    }

    /// Open the log file anew, after somebody has moved it away.
    pub fn reopen(&self) -> io::Result<()> {
        self.inner().reopen()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One formatted event per call, as tracing-subscriber writes them.
impl Write for Dmesg {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut inner = self.inner();
        inner.print(line);
        inner.keep(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inner {
    fn keep(&mut self, line: &[u8]) {
        while self.kept.len() + line.len() > RING
            && let Some(end) = self.kept.iter().position(|byte| *byte == b'\n')
        {
            self.kept.drain(..=end);
        }
        self.kept.extend(line);
    }

    /// Nowhere to report to when this fails.
    fn print(&mut self, bytes: &[u8]) {
        let _ = io::stderr().write_all(bytes);
        self.written += bytes.len() as u64;
        if self.written > FILE_MAX
            && let Some(file) = &self.file
        {
            let _ = fs::rename(file, old(file));
            let _ = self.reopen();
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        let file = append(path)?;
        dup2_stderr(&file)?;
        self.written = file.metadata()?.len();
        Ok(())
    }
}

/// `PATH.1`, where the previous part of a log goes.
pub fn old(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Open a log for appending, for its owner only.
pub fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Text of a guest without what could steer the reader's terminal.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches('\r').chars().map(|c| if c.is_control() && c != '\t' { '.' } else { c }).collect()
}

/// Lets through so many events per interval and counts the others.
pub struct Limit {
    burst: u32,
    interval: Duration,
    window: Mutex<Window>,
}

struct Window {
    since: Option<Instant>,
    passed: u32,
    suppressed: u64,
}

impl Limit {
    /// At most `burst` events in each `interval`.
    pub const fn new(burst: u32, interval: Duration) -> Limit {
        let window = Window { since: None, passed: 0, suppressed: 0 };
        Limit { burst, interval, window: Mutex::new(window) }
    }

    /// Whether the event of `now` may be logged; then with the number of those suppressed since the last one.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let over = window.since.is_none_or(|since| now.saturating_duration_since(since) >= self.interval);
        if over {
            window.since = Some(now);
            window.passed = 0;
        }
        if window.passed < self.burst {
            window.passed += 1;
            Some(std::mem::take(&mut window.suppressed))
        } else {
            window.suppressed += 1;
            None
        }
    }
}

/// `limited!(warn, "port {port}: …")`: an event of that level that something outside can trigger, at most 10 in 5 s
/// for each place in the code.
macro_rules! limited {
    ($level:ident, $($message:tt)+) => {{
        static LIMIT: $crate::log::Limit = $crate::log::Limit::new(10, std::time::Duration::from_secs(5));
        if let Some(suppressed) = LIMIT.pass(std::time::Instant::now()) {
            if suppressed > 0 {
                tracing::$level!("{suppressed} messages like the next one were suppressed");
            }
            tracing::$level!($($message)+);
        }
    }};
}
pub(crate) use limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_lets_a_burst_through_and_counts_the_rest() {
        let limit = Limit::new(2, Duration::from_secs(5));
        let start = Instant::now();
        let passes = [0, 1, 2, 3, 5, 6, 7].map(|s| limit.pass(start + Duration::from_secs(s)));
        assert_eq!(passes, [Some(0), Some(0), None, None, Some(2), Some(0), None]);
    }

    #[test]
    fn guest_lines_are_joined_made_harmless_and_bounded() {
        let dmesg = Dmesg::default();
        dmesg.guest(3, b"hel");
        dmesg.guest(3, b"lo\r\n\x1b[2Jgone\nunfinished");
        assert_eq!(dmesg.text(), "(d3) hello\n(d3) .[2Jgone\n");
        for n in 0..20_000 {
            dmesg.inner().keep(format!("line {n} of a long log\n").as_bytes());
        }
        let text = dmesg.text();
        assert!(text.len() <= RING && text.len() > RING / 2);
        assert!(text.ends_with("line 19999 of a long log\n") && !text.contains("hello"));
    }
}
