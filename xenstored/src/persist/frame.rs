//! Frames of a log: length and checksum, then records. A frame is taken whole or not at all.

use crate::migration::{Record, records};

/// Length and checksum.
const HEADER: usize = 8;

/// Puts records into a frame.
pub(super) fn seal(records: &[u8]) -> Vec<u8> {
    let len = u32::try_from(records.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(HEADER + records.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&checksum(records).to_le_bytes());
    frame.extend_from_slice(records);
    frame
}

/// Hands the records of all whole frames to `take`, and answers how many bytes at the end are none.
pub(super) fn open(mut bytes: &[u8], mut take: impl FnMut(&Record<'_>) -> Option<()>) -> usize {
    while let Some((body, rest)) = first(bytes) {
        for record in records(body) {
            let Ok(record) = record else { return bytes.len() };
            if take(&record).is_none() {
                return bytes.len();
            }
        }
        bytes = rest;
    }
    bytes.len()
}

fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (body, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    let whole = !body.is_empty() && checksum(body) == u32::from_le_bytes(*sum);
    whole.then_some((body, rest))
}

/// CRC-32C: finds what a torn write leaves.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
    }
}
