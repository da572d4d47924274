//! Frames of a log: length and checksum, then records. A frame is taken whole or not at all.

use crate::migration::{Record, records};

/// Length and checksum.
const HEADER: usize = 8;

/// Begins one: records are appended to it.
pub(super) fn begin(frame: &mut Vec<u8>) {
    frame.clear();
    frame.extend_from_slice(&[0; HEADER]);
}

/// Ends one that was begun; `false` if there is nothing in it.
pub(super) fn seal(frame: &mut [u8]) -> bool {
    let Some((header, records)) = frame.split_first_chunk_mut::<HEADER>() else { return false };
    let len = u32::try_from(records.len()).unwrap_or(u32::MAX).to_le_bytes();
    let sum = checksum(records).to_le_bytes();
    for (byte, new) in header.iter_mut().zip(len.into_iter().chain(sum)) {
        *byte = new;
    }
    !records.is_empty()
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

/// What stands behind the stream of a snapshot: a mark, and the checksum of all before.
const SUM: [u8; 4] = *b"sum:";

/// The end of a snapshot's file.
pub(super) fn end(stream: &[u8]) -> [u8; HEADER] {
    let [a, b, c, d] = SUM;
    let [e, f, g, h] = checksum(stream).to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

/// Whether a snapshot's file is as it was written; those of earlier versions do not say.
pub(super) fn is_whole(file: &[u8]) -> bool {
    file.split_last_chunk::<HEADER>()
        .is_none_or(|(stream, last)| !last.starts_with(&SUM) || *last == end(stream))
}

/// CRC-32C: finds what a torn write leaves.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, &byte| {
        let [low, ..] = sum.to_le_bytes();
        (sum >> 8) ^ SUMS.get(usize::from(low ^ byte)).copied().unwrap_or_default()
    })
}

/// By the byte.
const SUMS: [u32; 256] = {
    let mut sums = [0u32; 256];
    let mut byte = 0u32;
    while byte < 256 {
        let (mut sum, mut bit) = (byte, 0);
        while bit < 8 {
            sum = (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
            bit += 1;
        }
        sums[byte as usize] = sum;
        byte += 1;
    }
    sums
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
    }
}
