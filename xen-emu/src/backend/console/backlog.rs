//! What the guest has written: the newest part in memory for every reader to follow at its own pace, and in a file.

use crate::log::{FILE_MAX, append, limited, old};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

/// Bytes kept for readers yet to come; the `limit` node of the console.
pub const KEEP: usize = 1 << 20;
/// Bytes kept while a reader is behind.
pub const MAX: usize = 4 << 20;

/// The newest output. Positions count bytes since the first.
#[derive(Default)]
pub struct Backlog {
    bytes: VecDeque<u8>,
    start: u64,
}

impl Backlog {
    /// Position of the oldest byte kept.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Position behind the newest byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Append. Of what is older than [`KEEP`] only the part from `needed` on is kept, and never more than [`MAX`].
    pub fn push(&mut self, bytes: &[u8], needed: u64) {
        self.bytes.extend(bytes);
        let end = self.end();
        let oldest = needed.min(end.saturating_sub(KEEP as u64)).max(end.saturating_sub(MAX as u64));
        let surplus = usize::try_from(oldest.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let surplus = surplus.min(self.bytes.len());
        self.bytes.drain(..surplus);
        self.start += surplus as u64;
        // The memory that a slow reader has cost is given back.
        if self.bytes.len() <= KEEP && self.bytes.capacity() > 2 * KEEP {
            self.bytes.shrink_to(2 * KEEP);
        }
    }

    /// Bytes that may be pushed before a reader at `needed` loses something.
    pub fn room(&self, needed: u64) -> usize {
        let behind = usize::try_from(self.end().saturating_sub(needed)).unwrap_or(usize::MAX);
        MAX.saturating_sub(behind)
    }

    /// Bytes from `position` on, up to an inner boundary: empty only at the end.
    pub fn from(&self, position: u64) -> &[u8] {
        let skip = usize::try_from(position.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let (head, tail) = self.bytes.as_slices();
        match head.get(skip..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => tail.get(skip.saturating_sub(head.len())..).unwrap_or_default(),
        }
    }
}

/// `console.log`: the output since the domain began, its newest 1 to 2 MiB.
pub struct LogFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl LogFile {
    /// Continue the log at `path`; what it holds already (of the domain before a restart) comes back, newest
    /// [`KEEP`] bytes at most.
    pub fn open(path: PathBuf) -> io::Result<(LogFile, Vec<u8>)> {
        let mut earlier = fs::read(old(&path)).unwrap_or_default();
        earlier.extend(fs::read(&path).unwrap_or_default());
        earlier.drain(..earlier.len().saturating_sub(KEEP));
        let file = append(&path)?;
        let len = file.metadata()?.len();
        Ok((LogFile { path, file, len }, earlier))
    }

    /// Append; a full disk costs the file, not the console.
    pub fn write(&mut self, bytes: &[u8]) {
        let written = self.file.write_all(bytes).and_then(|()| {
            self.len += bytes.len() as u64;
            if self.len < FILE_MAX {
                return Ok(());
            }
            fs::rename(&self.path, old(&self.path))?;
            self.reopen()
        });
        if let Err(e) = written {
            limited!(warn, "{}: {e}", self.path.display());
        }
    }

    /// Open the file anew, after somebody has moved it away.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = append(&self.path)?;
        self.len = self.file.metadata()?.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_from(log: &Backlog, position: u64) -> Vec<u8> {
        let mut all = Vec::new();
        while position + (all.len() as u64) < log.end() {
            all.extend(log.from(position + all.len() as u64));
        }
        all
    }

    #[test]
    fn keeps_the_newest_and_what_a_reader_still_needs() {
        let mut log = Backlog::default();
        let chunk = vec![b'a'; KEEP / 2];
        for _ in 0..4 {
            log.push(&chunk, u64::MAX);
        }
        assert_eq!((log.start(), log.end()), (KEEP as u64, 2 * KEEP as u64), "nobody is behind");
        let reader = log.start() + 5;
        for _ in 0..4 {
            log.push(&chunk, reader);
        }
        assert_eq!(log.start(), reader);
        assert_eq!(log.room(reader), MAX - (3 * KEEP - 5));
        for _ in 0..8 {
            log.push(&chunk, reader);
        }
        assert_eq!(log.end() - log.start(), MAX as u64, "bounded whatever a reader needs");
        assert_eq!(log.room(reader), 0);
    }

    #[test]
    fn every_position_reads_on_to_the_end() {
        let mut log = Backlog::default();
        let text: Vec<u8> = (0..KEEP + 5000).map(|i| (i % 251).to_le_bytes()[0]).collect();
        for chunk in text.chunks(777) {
            log.push(chunk, u64::MAX);
        }
        for position in [log.start(), log.start() + 1, log.end() - 3, log.end()] {
            assert_eq!(all_from(&log, position), text[usize::try_from(position).unwrap()..]);
        }
    }

    #[test]
    fn the_file_rotates_and_a_successor_continues_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let (mut log, earlier) = LogFile::open(path.clone()).unwrap();
        assert!(earlier.is_empty());
        let line = [b'x'; 4096];
        for _ in 0..FILE_MAX / 4096 {
            log.write(&line);
        }
        log.write(b"newest");
        assert_eq!(fs::metadata(old(&path)).unwrap().len(), FILE_MAX);
        assert_eq!(fs::read(&path).unwrap(), b"newest");
        let (_, earlier) = LogFile::open(path).unwrap();
        assert_eq!(earlier.len(), KEEP);
        assert!(earlier.ends_with(b"xnewest"));
    }
}
