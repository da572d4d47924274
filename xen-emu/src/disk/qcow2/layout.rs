//! What a qcow2 header says of where things are, and reading of tables.
//!
//! Offsets in the header (docs/interop/qcow2.txt of QEMU): version 4, cluster_bits 20, crypt_method 32, l1_size 36,
//! l1_table_offset 40, refcount_table_offset 48, refcount_table_clusters 56, nb_snapshots 60, snapshots_offset 64; from
//! version 3 on incompatible_features 72, autoclear_features 88, refcount_order 96, header_length 100. All numbers are big-endian.

use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bits 9 to 55 of a table's entry: where its cluster is.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Incompatible feature: counts may be wrong.
pub const DIRTY: u64 = 1 << 0;
pub const EXTERNAL_DATA: u64 = 1 << 2;
/// Incompatible features that others have.
const FEATURE_NAMES: [(u64, &str); 3] =
    [(1 << 1, "marked corrupt"), (1 << 3, "zstd compression"), (1 << 4, "extended L2 entries")];
/// Where the incompatible features are.
pub const FEATURES: u8 = 72;
/// Where the header says what the table of counts is: its offset and its clusters.
pub const COUNTS: Range<usize> = 48..60;
/// Bytes of the header that are looked at, but for its extensions.
pub const HEADER: usize = 104;
/// Largest tables that QEMU takes: of reference counts, L1.
pub const MOST_COUNTS: u64 = 8 << 20;
const MOST_L1: u64 = 32 << 20;
/// Header extensions that name no clusters: their end, the backing file's format, names of features, the data file's name.
const PLAIN: [u32; 4] = [0, 0xe279_2aca, 0x6803_f857, 0x4441_5441];

/// The numbers of a header; sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub version: u32,
    pub features: u64,
    pub cluster_bits: u32,
    /// Binary logarithm of a count's bits.
    pub order: u32,
    pub l1: Range<u64>,
    /// The table that says where each block of counts is, or 0.
    pub counts: Range<u64>,
    pub snapshots: u64,
    pub snapshots_at: u64,
    /// Without encryption, bitmaps and whatever else may have clusters of its own.
    plain: bool,
    header_length: u32,
}

impl Layout {
    /// From the first bytes of an image.
    ///
    /// # Errors
    /// A number that cannot be; `Unsupported`: a version or an incompatible feature that we do not know.
    pub fn of(header: &[u8; HEADER]) -> io::Result<Layout> {
        let version = u32::from_be_bytes(field(header, 4));
        if !(2..=3).contains(&version) {
            return Err(unsupported(format!("it has version {version}; 2 and 3 are supported")));
        }
        let newer = |number: u64, older: u64| if version < 3 { older } else { number };
        let cluster_bits = u32::from_be_bytes(field(header, 20));
        let order = u32::try_from(newer(u32::from_be_bytes(field(header, 96)).into(), 4)).unwrap_or(u32::MAX);
        if !(9..=21).contains(&cluster_bits) || order > 6 {
            return Err(corrupt("its header is damaged"));
        }
        let (l1, counts) = (u64::from_be_bytes(field(header, 40)), u64::from_be_bytes(field(header, 48)));
        let l1_size = u64::from(u32::from_be_bytes(field(header, 36))) * 8;
        let counts_size = u64::from(u32::from_be_bytes(field(header, 56))) << cluster_bits;
        let features = newer(u64::from_be_bytes(field(header, FEATURES.into())), 0);
        let unknown = features & !(DIRTY | EXTERNAL_DATA);
        if unknown != 0 {
            let known = FEATURE_NAMES.iter().filter(|(bit, _)| unknown & bit != 0).map(|(_, name)| *name);
            let names: Vec<_> = known.collect();
            let named = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
            return Err(unsupported(format!(
                "its incompatible features {unknown:#x}{named} are not supported; qemu-img convert -O qcow2 makes an image without"
            )));
        }
        let unsafe_bits = newer(u64::from_be_bytes(field(header, 88)), 0);
        let layout = Layout {
            version,
            features,
            cluster_bits,
            order,
            l1: l1..l1.saturating_add(l1_size),
            counts: counts..counts.saturating_add(counts_size),
            snapshots: u32::from_be_bytes(field(header, 60)).into(),
            snapshots_at: u64::from_be_bytes(field(header, 64)),
            plain: u32::from_be_bytes(field(header, 32)) == 0 && unsafe_bits == 0,
            header_length: if version < 3 { 72 } else { u32::from_be_bytes(field(header, 100)) },
        };
        let aligned = [l1, counts].iter().all(|at| at.is_multiple_of(layout.cluster()) && *at <= OFFSET);
        if !aligned || counts == 0 || counts_size == 0 || counts_size > MOST_COUNTS || l1_size > MOST_L1 {
            return Err(corrupt("its header is damaged"));
        }
        Ok(layout)
    }

    /// Of an image file.
    ///
    /// # Errors
    /// The host's, or as [`Layout::of`].
    pub fn read(file: &File) -> io::Result<Layout> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let mut layout = Layout::of(&header)?;
        layout.plain &= layout.extensions_are_plain(file)?;
        Ok(layout)
    }

    fn extensions_are_plain(&self, file: &File) -> io::Result<bool> {
        let mut at = u64::from(self.header_length);
        while at + 8 <= self.cluster() {
            let mut head = [0; 8];
            file.read_exact_at(&mut head, at)?;
            let kind = u32::from_be_bytes(field(&head, 0));
            if kind == 0 || !PLAIN.contains(&kind) {
                return Ok(kind == 0);
            }
            at += 8 + u64::from(u32::from_be_bytes(field(&head, 4))).next_multiple_of(8);
        }
        Ok(false)
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Binary logarithm of the counts in a block.
    pub fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.order
    }

    /// Everything that has a cluster is known.
    pub fn is_plain(&self) -> bool {
        self.plain
    }
}

/// An error of the image's, not of the host's.
pub fn corrupt(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn unsupported(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}

/// Some bytes of more; zeros beyond their end.
pub fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// The words of a table; none of one that was never written.
///
/// # Errors
/// The host's; the image ends before the table does.
pub fn table(file: &File, at: u64, size: u64) -> io::Result<Vec<u64>> {
    if hole(file, at, size) {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, at).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => corrupt("it ends before its tables do"),
        _ => e,
    })?;
    Ok(words(&bytes).collect())
}

pub fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word))
}

/// Whether the host knows that this is all zeros.
fn hole(file: &File, at: u64, size: u64) -> bool {
    let (Ok(from), Ok(end)) = (i64::try_from(at), i64::try_from(at.saturating_add(size))) else {
        return false;
    };
    let inside = file.metadata().is_ok_and(|meta| meta.len() >= at.saturating_add(size));
    inside && lseek(file, from, Whence::SeekData).is_ok_and(|data| data >= end)
}
