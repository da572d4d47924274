//! The migration stream: a store's state as bytes, as `docs/designs/xenstore-migration.md` of Xen describes it.
//!
//! A header of 16 bytes, then records of type, length and body, each padded to 8 bytes. Versions 1 (C xenstored up to
//! 4.20) and 2 are read, 2 is written. Numbers are little-endian but for the header's. Records of unknown type are
//! passed over, so what only this daemon needs has types of its own.

use std::io;

mod fields;
mod record;

pub(crate) use record::{ConnSpec, NodePerm, Record};

use fields::Fields;

use crate::room::{self, MARGIN};

const IDENT: &[u8; 8] = b"xenstore";
/// The version that is written.
pub(crate) const VERSION: u32 = 2;
const END: u32 = 0;

/// Why a stream is no state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("not a xenstore stream")]
    Ident,
    #[error("xenstore stream of version {0}, known are 1 and 2")]
    Version(u32),
    #[error("xenstore stream with unknown flags {0:#x}")]
    Flags(u32),
    #[error("xenstore stream ends within a record, or without an END record")]
    Short,
    #[error("xenstore stream: record of type {0} makes no sense")]
    Record(u32),
}

/// A stream being written. One for which memory runs out ends there, and says so when it is finished.
#[derive(Debug)]
pub(crate) struct Stream {
    bytes: Vec<u8>,
    whole: bool,
    /// It takes no more memory.
    fixed: bool,
}

/// Bytes of any record.
pub(crate) const RECORD: usize = 256 * 1024;

impl Stream {
    pub(crate) fn new() -> Self {
        let mut bytes = IDENT.to_vec();
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&0u32.to_be_bytes());
        Self { bytes, whole: true, fixed: false }
    }

    /// One that is written beside the daemon's work, which may need what is left: it has room for so many bytes.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn of_size(len: usize) -> io::Result<Self> {
        let mut stream = Self::new();
        if !room::is_there(MARGIN + len) || stream.bytes.try_reserve_exact(len).is_err() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self { fixed: true, ..stream })
    }

    pub(crate) fn put(&mut self, record: &Record<'_>) {
        let output = if let Record::Conn { output, .. } = record { output.len() } else { 0 };
        if self.has_room(RECORD + output) {
            append(&mut self.bytes, record);
        }
    }

    /// Records that [`append`] made.
    pub(crate) fn put_all(&mut self, records: &[u8]) {
        if self.has_room(records.len()) {
            self.bytes.extend_from_slice(records);
        }
    }

    fn has_room(&mut self, len: usize) -> bool {
        let need = self.bytes.len() + len;
        if self.fixed {
            self.whole &= need <= self.bytes.capacity();
        } else if self.whole && need > self.bytes.capacity() {
            // It must not take the last that there is.
            self.whole = room::is_there(MARGIN + 2 * need) && self.bytes.try_reserve(len).is_ok();
        }
        self.whole
    }

    /// The whole stream, with its END.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn finish(mut self) -> io::Result<Vec<u8>> {
        if !self.has_room(8) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(&[0; 8]);
        Ok(self.bytes)
    }
}

/// Appends one record, padded.
pub(crate) fn append(bytes: &mut Vec<u8>, record: &Record<'_>) {
    let start = bytes.len();
    bytes.extend_from_slice(&record.kind().to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    record.encode(bytes);
    bytes.resize(start + (bytes.len() - start).next_multiple_of(8), 0);
    let len = u32::try_from(bytes.len() - start - 8).unwrap_or(u32::MAX);
    if let Some(field) = bytes.get_mut(start + 4..start + 8) {
        field.copy_from_slice(&len.to_le_bytes());
    }
}

/// A stream being read.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: Fields<'a>,
    version: u32,
}

impl<'a> Reader<'a> {
    /// # Errors
    /// For a header of something else.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = Fields::new(bytes);
        if rest.bytes(IDENT.len()) != Some(IDENT) {
            return Err(Malformed::Ident);
        }
        let version = rest.u32().ok_or(Malformed::Short)?.swap_bytes();
        if !(1..=VERSION).contains(&version) {
            return Err(Malformed::Version(version));
        }
        match rest.u32().map(u32::swap_bytes) {
            Some(0) => Ok(Self { rest, version }),
            Some(flags) => Err(Malformed::Flags(flags)),
            None => Err(Malformed::Short),
        }
    }

    /// Bytes behind the records that were read.
    pub(crate) fn left(&self) -> usize {
        self.rest.rest().len()
    }

    /// The next record; none at the END.
    ///
    /// # Errors
    /// For a record whose body is not what its type says, and for a stream that ends too early.
    pub(crate) fn next(&mut self) -> Result<Option<Record<'a>>, Malformed> {
        match self.rest.record().ok_or(Malformed::Short)? {
            (END, _) => Ok(None),
            (kind, body) => {
                let mut record = Record::decode(kind, body).ok_or(Malformed::Record(kind))?;
                if let Record::Domain { features, .. } = &mut record
                    && self.version < 2
                {
                    // Not filled in yet: all that there are.
                    *features = u32::MAX;
                }
                Ok(Some(record))
            }
        }
    }
}

/// The records of bytes that [`append`] made, up to the first that makes no sense.
pub(crate) fn records(bytes: &[u8]) -> impl Iterator<Item = Result<Record<'_>, Malformed>> {
    let mut rest = Fields::new(bytes);
    std::iter::from_fn(move || {
        if rest.rest().is_empty() {
            return None;
        }
        let Some((kind, body)) = rest.record() else {
            rest = Fields::new(&[]);
            return Some(Err(Malformed::Short));
        };
        Some(Record::decode(kind, body).ok_or(Malformed::Record(kind)))
    })
}

#[cfg(test)]
mod tests;
