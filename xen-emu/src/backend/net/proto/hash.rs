//! Hashes over packets for the guest, by which it may have them spread over its queues.

use super::headers::{Headers, Transport, parse};
use xen_abi::io::netif::{ExtraHash, hash_algorithm, hash_type};

/// Longest key (as Linux's backend has it).
pub const KEY_MAX: usize = 40;
/// Longest table of queues (likewise).
pub const MAPPING_MAX: u32 = 128;

/// What the guest has asked for on the control ring.
#[derive(Clone, Debug)]
pub struct Hash {
    /// `hash_algorithm`.
    pub algorithm: u32,
    /// `hash_type`.
    pub types: u32,
    /// Zero behind what the guest has given.
    pub key: [u8; KEY_MAX],
    /// Queue by hash; empty = by the remainder.
    pub mapping: Vec<u32>,
}

impl Default for Hash {
    fn default() -> Hash {
        Hash { algorithm: hash_algorithm::NONE, types: 0, key: [0; KEY_MAX], mapping: Vec::new() }
    }
}

impl Hash {
    /// Whether packets are to be hashed.
    pub fn is_on(&self) -> bool {
        self.algorithm != hash_algorithm::NONE && self.types != 0
    }

    /// The hash of the packet that begins with `head`, of the most detailed kind asked for.
    pub fn of(&self, head: &[u8]) -> Option<ExtraHash> {
        if !self.is_on() {
            return None;
        }
        let headers = parse(head)?;
        let (plain, tcp) = if headers.v6 {
            (hash_type::IPV6, hash_type::IPV6_TCP)
        } else {
            (hash_type::IPV4, hash_type::IPV4_TCP)
        };
        let ports = self.ports(&headers, head, tcp);
        let kind = if ports.is_some() { tcp } else { self.types & plain };
        let bit = u8::try_from(kind.checked_ilog2()?).ok()?;
        let mut input = headers.addresses(head)?.to_vec();
        input.extend(ports.unwrap_or_default());
        let value = toeplitz(&self.key, &input).to_le_bytes();
        Some(ExtraHash { r#type: bit, algorithm: hash_algorithm::TOEPLITZ.to_le_bytes()[0], value })
    }

    fn ports<'a>(&self, headers: &Headers, head: &'a [u8], tcp: u32) -> Option<&'a [u8]> {
        match headers.transport? {
            (Transport::Tcp, at) if self.types & tcp != 0 => head.get(at..at + 4),
            _ => None,
        }
    }

    /// Which of `queues` gets a packet with this hash; one without goes to the first.
    pub fn queue(&self, hash: Option<&ExtraHash>, queues: usize) -> usize {
        let hash = hash.map_or(0, |hash| u32::from_le_bytes(hash.value)) as usize;
        let queue = match self.mapping.len() {
            0 => hash.checked_rem(queues).unwrap_or(0),
            size => self.mapping.get(hash % size).map_or(0, |queue| *queue as usize),
        };
        if queue < queues { queue } else { 0 }
    }
}

/// The Toeplitz hash: for each bit of the input that is set, the 32 bits of the key from that bit on.
fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let byte = |i: usize| u64::from(key.get(i).copied().unwrap_or(0));
    let mut hash = 0;
    for (i, bits) in input.iter().enumerate() {
        // The 32 bits from bit n of byte i on are the high half of this, shifted by n.
        let window = (0..5).fold(0, |window, j| window << 8 | byte(i + j)) << 24;
        for bit in (0..8).filter(|bit| bits >> (7 - bit) & 1 != 0) {
            hash ^= ((window << bit) >> 32) as u32;
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::super::headers::tests::packet;
    use super::*;

    /// The key and examples with which Microsoft documents the hash for RSS.
    const KEY: [u8; KEY_MAX] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn the_published_examples() {
        let tcp = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(toeplitz(&KEY, &tcp), 0x51cc_c178);
        assert_eq!(toeplitz(&KEY, &tcp[..8]), 0x323e_8fc2);
        assert_eq!(toeplitz(&[], &tcp), 0);
    }

    #[test]
    fn the_most_detailed_kind_is_chosen() {
        let all = Hash { algorithm: 1, types: hash_type::ALL, key: KEY, mapping: vec![0, 2, 1, 9] };
        let kind = |hash: &Hash, p: &[u8]| hash.of(p).map(|h| h.r#type);
        assert_eq!(kind(&all, &packet(false, 0, 6, b"")), Some(1));
        assert_eq!(kind(&all, &packet(true, 0, 6, b"")), Some(3));
        assert_eq!(kind(&all, &packet(true, 0, 17, b"")), Some(2));
        let v4 = Hash { types: hash_type::IPV4, ..all.clone() };
        assert_eq!(
            (kind(&v4, &packet(false, 0, 6, b"")), kind(&v4, &packet(true, 0, 6, b""))),
            (Some(0), None)
        );
        let value = |n: u8| ExtraHash { r#type: 0, algorithm: 1, value: [n, 0, 0, 0] };
        let queues: Vec<_> = (0..5).map(|n| all.queue(Some(&value(n)), 3)).collect();
        assert_eq!(queues, [0, 2, 1, 0, 0], "a queue that is not there is the first");
        assert_eq!(Hash::default().queue(Some(&value(5)), 3), 2);
    }
}
