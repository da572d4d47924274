//! The migration stream: a store's state as bytes, as `docs/designs/xenstore-migration.md` of Xen describes it.
//!
//! A header of 16 bytes, then records of type, length and body, each padded to 8 bytes. Versions 1 (C xenstored up to
//! 4.20) and 2 are read, 2 is written. Numbers are little-endian but for the header's. Records of unknown type are
//! passed over, so what only this daemon needs has types of its own.

mod fields;
mod record;

pub(crate) use record::{ConnSpec, NodePerm, Record};

use fields::Fields;

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

/// A stream being written.
#[derive(Debug)]
pub(crate) struct Stream(Vec<u8>);

impl Stream {
    pub(crate) fn new() -> Self {
        let mut bytes = IDENT.to_vec();
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&0u32.to_be_bytes());
        Self(bytes)
    }

    pub(crate) fn put(&mut self, record: &Record<'_>) {
        append(&mut self.0, record);
    }

    /// Records that [`append`] made.
    pub(crate) fn put_all(&mut self, records: &[u8]) {
        self.0.extend_from_slice(records);
    }

    /// The whole stream, with its END.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 8]);
        self.0
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
