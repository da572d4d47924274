//! What has to hold of a qcow2 image before the crate may allocate in it: whatever it uses has a count. An image that denies
//! its header's cluster would be overwritten at its beginning; without counts where clusters are freed or
//! allocated the crate calls itself for ever.
//!
//! Offsets in the header (docs/interop/qcow2.txt of QEMU): version 4, cluster_bits 20, l1_size 36, l1_table_offset 40,
//! refcount_table_offset 48, refcount_table_clusters 56; from version 3 on incompatible_features 72 and refcount_order 96.
//! All numbers are big-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bits 9 to 55 of a table's entry: where its cluster is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// An L2 entry of compressed data.
const COMPRESSED: u64 = 1 << 62;
const EXTERNAL_DATA: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;
/// Largest tables that QEMU takes: of reference counts, L1.
const MOST_COUNTS: u64 = 8 << 20;
const MOST_L1: u64 = 32 << 20;

/// Where the counts are.
struct Counts {
    /// The reference count table: where each block of counts is, or 0.
    blocks: Vec<u64>,
    cluster_bits: u32,
    /// Binary logarithm of the counts in a block.
    block_bits: u32,
}

impl Counts {
    /// Whether there is a count for the cluster at this offset.
    fn has(&self, offset: u64) -> bool {
        let block = usize::try_from(offset >> self.cluster_bits >> self.block_bits);
        block.is_ok_and(|block| self.blocks.get(block).is_some_and(|block| block & OFFSET != 0))
    }
}

/// Whether the reference count of cluster 0 is more than zero, and there are counts for all tables and all data.
///
/// # Errors
/// The host's; the image ends before what it needs.
pub fn counts_what_it_uses(file: &File) -> io::Result<bool> {
    let cluster_bits = u32::from_be_bytes(read(file, 20)?);
    let version = u32::from_be_bytes(read(file, 4)?);
    let order = if version < 3 { 4 } else { u32::from_be_bytes(read(file, 96)?) };
    let size = u64::from(u32::from_be_bytes(read(file, 56)?)).checked_shl(cluster_bits).unwrap_or(0);
    if !(9..=21).contains(&cluster_bits) || order > 6 || size == 0 || size > MOST_COUNTS {
        return Ok(false);
    }
    let blocks = table(file, u64::from_be_bytes(read(file, 48)?), size)?;
    let counts = Counts { blocks, cluster_bits, block_bits: cluster_bits + 3 - order };
    Ok(counts_its_header(file, &counts, order)? && counts_its_data(file, &counts, version)?)
}

fn counts_its_header(file: &File, counts: &Counts, order: u32) -> io::Result<bool> {
    let block = counts.blocks.first().copied().unwrap_or(0);
    if block == 0 || !block.is_multiple_of(1 << counts.cluster_bits) {
        return Ok(false);
    }
    let first: [u8; 8] = read(file, block)?;
    // Counts narrower than a byte begin at its lowest bit.
    let count = match order {
        0..3 => u64::from(first[0] & ((1 << (1 << order)) - 1)),
        _ => u64::from_be_bytes(first) >> (64 - (1 << order)),
    };
    Ok(count > 0)
}

fn counts_its_data(file: &File, counts: &Counts, version: u32) -> io::Result<bool> {
    let features = if version < 3 { 0 } else { u64::from_be_bytes(read(file, 72)?) };
    let size = u64::from(u32::from_be_bytes(read(file, 36)?)) * 8;
    if size > MOST_L1 {
        return Ok(false);
    }
    let step = if features & EXTENDED_L2 == 0 { 1 } else { 2 };
    // A compressed cluster begins at any byte; its offset has so many bits.
    let compressed = (1u64 << (62 - (counts.cluster_bits - 8))) - 1;
    let used = |entry: u64| if entry & COMPRESSED == 0 { entry & OFFSET } else { entry & compressed };
    for l2 in table(file, u64::from_be_bytes(read(file, 40)?), size)? {
        let l2 = l2 & OFFSET;
        if l2 == 0 {
            continue;
        }
        if !counts.has(l2) {
            return Ok(false);
        }
        let entries = table(file, l2, 1 << counts.cluster_bits)?;
        let mut offsets = entries.into_iter().step_by(step).map(used).filter(|&offset| offset != 0);
        if features & EXTERNAL_DATA == 0 && !offsets.all(|offset| counts.has(offset)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// So many bytes of a table.
fn table(file: &File, at: u64, size: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

fn read<const N: usize>(file: &File, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_found_in_every_width() {
        let image = |order: u32, first: u8| {
            let mut bytes = crate::disk::tests::header(1 << 20, "", None);
            bytes[96..100].copy_from_slice(&order.to_be_bytes());
            bytes[2 << 16..(2 << 16) + 8].copy_from_slice(&[first, 0, 0, 0, 0, 0, 0, u8::from(order == 6)]);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            counts_what_it_uses(file.as_file()).unwrap()
        };
        for (order, first, want) in [
            (0, 1, true),
            (0, 0xfe, false),
            (1, 2, true),
            (1, 4, false),
            (2, 8, true),
            (2, 0x10, false),
            (3, 0x80, true),
            (3, 0, false),
            (4, 1, true),
            (4, 0, false),
            (5, 1, true),
            (6, 0, true),
            (7, 1, false),
        ] {
            assert_eq!(image(order, first), want, "{order} {first:#x}");
        }
    }

    #[test]
    fn what_is_used_has_a_count() {
        let said = |words: &[(usize, u64)]| {
            let mut bytes = crate::disk::tests::header(1 << 20, "", None);
            bytes.resize(5 << 16, 0);
            // An L2 table behind the rest.
            bytes[3 << 16..(3 << 16) + 8].copy_from_slice(&(4u64 << 16).to_be_bytes());
            for &(at, word) in words {
                bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            counts_what_it_uses(file.as_file()).unwrap_or(false)
        };
        let (l1, l2, far) = (3 << 16, 4 << 16, 1 << 31);
        assert!(said(&[]));
        assert!(said(&[(l2, 1 << 63 | 5 << 16), (l2 + 8, COMPRESSED | 5 << 16 | 77), (l2 + 16, 1)]));
        for spoilt in [(l2, far), (l2 + 800, COMPRESSED | far), (l1, far), (56, 0), (36, u64::MAX)] {
            assert!(!said(&[spoilt]), "{spoilt:x?}");
        }
        // Data in another file, and the bitmaps of extended L2 entries.
        assert!(said(&[(l2, far), (72, EXTERNAL_DATA)]));
        assert!(said(&[(l2 + 8, far), (72, EXTENDED_L2)]));
        assert!(!said(&[(l2 + 16, far), (72, EXTENDED_L2)]));
    }
}
