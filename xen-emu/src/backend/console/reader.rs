//! One follower of the console's output: where it is, and what happens when it does not keep up.

use super::backlog::{Backlog, MAX};
use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

/// How long the guest's output is held back for a reader that is [`MAX`] bytes behind.
pub const GRACE: Duration = Duration::from_secs(2);
/// A reader has caught up when it is at most so far behind.
const CAUGHT_UP: u64 = MAX as u64 / 2;

/// A position in the backlog.
///
/// Nothing is lost for a reader that reads. One that is [`MAX`] bytes behind holds the guest back for [`GRACE`];
/// has it not caught up by half then, it is left behind: it loses the oldest output and is told how much.
#[derive(Default)]
pub struct Reader {
    position: u64,
    notice: Vec<u8>,
    /// Since when the guest has been waiting for this reader.
    held: Option<Instant>,
    left_behind: bool,
}

impl Reader {
    /// From the oldest byte kept.
    pub fn new(log: &Backlog) -> Reader {
        Reader { position: log.start(), ..Reader::default() }
    }

    /// The oldest position the guest's output must be kept from, if this reader may ask for that.
    pub fn needs(&self) -> Option<u64> {
        (!self.left_behind).then_some(self.position)
    }

    /// There is output to come.
    pub fn behind(&self, log: &Backlog) -> bool {
        self.position < log.end() || !self.notice.is_empty()
    }

    /// The backlog is full because of the slowest readers. When this one has to be left behind if nothing changes;
    /// `None` if it is not one of them, or no longer.
    pub fn hold(&mut self, log: &Backlog, now: Instant) -> Option<Instant> {
        if self.left_behind || log.room(self.position) > 0 {
            return None;
        }
        let until = *self.held.get_or_insert(now) + GRACE;
        self.left_behind = now >= until;
        (!self.left_behind).then_some(until)
    }

    /// Write to `to` all it takes without blocking. `skip` is told how much was lost, to make a notice of.
    ///
    /// # Errors
    /// Whatever writing says, but for `WouldBlock`: the reader is gone.
    pub fn flush(
        &mut self,
        log: &Backlog,
        mut to: impl Write,
        skip: impl Fn(u64) -> Option<String>,
    ) -> io::Result<()> {
        loop {
            if self.position < log.start() {
                let notice = skip(log.start() - self.position);
                self.notice.extend(notice.unwrap_or_default().into_bytes());
                self.position = log.start();
            }
            let from_log = self.notice.is_empty();
            let next = if from_log { log.from(self.position) } else { &self.notice };
            if next.is_empty() {
                break;
            }
            match to.write(next) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) if from_log => self.position += n as u64,
                Ok(n) => drop(self.notice.drain(..n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        if log.end() - self.position <= CAUGHT_UP {
            (self.held, self.left_behind) = (None, false);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then would block.
    struct Pipe {
        takes: usize,
        got: Vec<u8>,
    }

    impl Write for &mut Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.takes);
            self.takes -= n;
            self.got.extend(&bytes[..n]);
            if n == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(n) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn told(lost: u64) -> Option<String> {
        Some(format!("[{lost} lost]"))
    }

    #[test]
    fn a_slow_reader_gets_all_a_stuck_one_is_left_behind_and_told() {
        let (mut log, mut pipe) = (Backlog::default(), Pipe { takes: 10, got: Vec::new() });
        log.push(b"first", u64::MAX);
        let mut reader = Reader::new(&log);
        let now = Instant::now();
        reader.flush(&log, &mut pipe, told).unwrap();
        assert_eq!(pipe.got, b"first");
        assert!(!reader.behind(&log) && reader.hold(&log, now).is_none());

        let flood = vec![b'f'; MAX];
        log.push(&flood, reader.needs().unwrap());
        reader.flush(&log, &mut pipe, told).unwrap();
        assert_eq!(pipe.got, b"firstfffff");
        assert_eq!(log.start(), 5, "kept for it");
        log.push(b"fffff", reader.needs().unwrap());
        assert_eq!(reader.hold(&log, now), Some(now + GRACE));

        pipe.takes = 1;
        reader.flush(&log, &mut pipe, told).unwrap();
        log.push(b"f", reader.needs().unwrap());
        assert_eq!(reader.hold(&log, now + GRACE), None, "one byte is not catching up");
        assert_eq!(reader.needs(), None);

        log.push(&flood, u64::MAX);
        (pipe.takes, pipe.got) = (usize::MAX, Vec::new());
        reader.flush(&log, &mut pipe, told).unwrap();
        let notice = format!("[{} lost]", MAX - super::super::backlog::KEEP + MAX);
        assert!(pipe.got.starts_with(notice.as_bytes()), "{:?}", String::from_utf8_lossy(&pipe.got[..30]));
        assert!(!reader.behind(&log) && reader.needs().is_some(), "forgiven");
    }
}
