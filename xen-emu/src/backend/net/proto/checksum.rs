//! The Internet checksum (RFC 1071), over data that comes in pieces.

use super::headers::{Headers, Transport};

/// A running sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    total: u64,
    /// The number of bytes so far is odd.
    odd: bool,
}

impl Sum {
    /// Adds the next bytes.
    pub fn add(&mut self, mut bytes: &[u8]) {
        if self.odd
            && let Some((first, rest)) = bytes.split_first()
        {
            self.total += u64::from(*first);
            self.odd = false;
            bytes = rest;
        }
        let (pairs, last) = bytes.as_chunks::<2>();
        self.total += pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>();
        if let [last] = last {
            self.total += u64::from(*last) << 8;
            self.odd = true;
        }
    }

    /// The sum in 16 bits, not complemented.
    pub fn folded(self) -> u16 {
        let mut total = self.total;
        while total >> 16 != 0 {
            total = (total & 0xffff) + (total >> 16);
        }
        (total & 0xffff) as u16
    }

    /// What goes into a checksum field; UDP says "none" with 0, so that 0 is written as all ones.
    pub fn field(self) -> [u8; 2] {
        match !self.folded() {
            0 => [0xff; 2],
            sum => sum.to_be_bytes(),
        }
    }
}

/// What a checksum field holds while the checksum is still to be filled in: the sum of the pseudo header, for a
/// packet of `size` bytes.
pub fn pseudo(
    head: &[u8],
    headers: &Headers,
    transport: Transport,
    at: usize,
    size: usize,
) -> Option<[u8; 2]> {
    let mut sum = Sum::default();
    sum.add(headers.addresses(head)?);
    sum.add(&[0, transport.number()]);
    sum.add(&u32::try_from(size.checked_sub(at)?).ok()?.to_be_bytes());
    Some(sum.folded().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::headers::{parse, tests::packet};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
    }

    #[test]
    fn a_filled_in_checksum_makes_the_sum_all_ones() {
        for (v6, at) in [(false, 34), (true, 54)] {
            let mut packet = packet(v6, 0, 6, b"odd");
            let headers = parse(&packet).unwrap();
            let blank = pseudo(&packet, &headers, Transport::Tcp, at, packet.len()).unwrap();
            packet[at + 16..at + 18].copy_from_slice(&blank);
            let mut sum = Sum::default();
            sum.add(&packet[at..]);
            packet[at + 16..at + 18].copy_from_slice(&sum.field());
            let mut check = Sum::default();
            check.add(headers.addresses(&packet).unwrap());
            check.add(&[0, 6]);
            check.add(&u32::try_from(packet.len() - at).unwrap().to_be_bytes());
            check.add(&packet[at..]);
            assert_eq!(check.folded(), 0xffff);
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(bytes in proptest::collection::vec(any::<u8>(), 0..200), cuts in any::<[u8; 3]>()) {
            let mut whole = Sum::default();
            whole.add(&bytes);
            let mut pieces = Sum::default();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (piece, behind) = rest.split_at(usize::from(cut).min(rest.len()));
                pieces.add(piece);
                rest = behind;
            }
            pieces.add(rest);
            prop_assert_eq!(whole.folded(), pieces.folded());
        }
    }
}
