//! What has to hold of a qcow2 image before the crate may allocate in it: its header's cluster is counted as in use. An
//! image that denies that would be overwritten at its beginning, and without any counts the crate calls itself for ever.
//!
//! Offsets in the header (docs/interop/qcow2.txt of QEMU): version 4, cluster_bits 20, refcount_table_offset 48,
//! refcount_order 96 from version 3 on. All numbers are big-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Whether the reference count of cluster 0 is more than zero.
///
/// # Errors
/// The host's; the image ends before its counts.
pub fn counts_its_header(file: &File) -> io::Result<bool> {
    let version = u32::from_be_bytes(read(file, 4)?);
    let cluster = 1u64.checked_shl(u32::from_be_bytes(read(file, 20)?)).unwrap_or(0);
    let order = if version < 3 { 4 } else { u32::from_be_bytes(read(file, 96)?) };
    let block = u64::from_be_bytes(read(file, u64::from_be_bytes(read(file, 48)?))?);
    if block == 0 || cluster == 0 || !block.is_multiple_of(cluster) || order > 6 {
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
            counts_its_header(file.as_file()).unwrap()
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
}
