//! Where the headers of an Ethernet packet are, as far as offloads need it.

use super::ETH_HLEN;

/// Longest walk through IPv6 extension headers.
const EXTENSIONS: usize = 8;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLANS: [u16; 2] = [0x8100, 0x88a8];

/// Protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Its number in IP headers.
    pub const fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        }
    }

    /// Where in its header the checksum is.
    pub const fn checksum_at(self) -> u16 {
        match self {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }

    /// Its shortest header.
    const fn header(self) -> usize {
        match self {
            Transport::Tcp => 20,
            Transport::Udp => 8,
        }
    }
}

/// The headers of an IP packet. Offsets count from the packet's first byte and lie within what was parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// First byte of the IP header.
    pub ip: usize,
    /// What is above it, and where; none for fragments, other protocols, and headers that are not all there.
    pub transport: Option<(Transport, usize)>,
}

fn byte(head: &[u8], at: usize) -> Option<u8> {
    head.get(at).copied()
}

fn be16(head: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(head.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Parses the beginning of a packet; `None` if it is no IP.
pub fn parse(head: &[u8]) -> Option<Headers> {
    let mut ip = ETH_HLEN;
    let mut ethertype = be16(head, 12)?;
    for _ in 0..2 {
        if VLANS.contains(&ethertype) {
            ethertype = be16(head, ip + 2)?;
            ip += 4;
        }
    }
    let version = byte(head, ip)? >> 4;
    match (ethertype, version) {
        (IPV4, 4) => Some(Headers { v6: false, ip, transport: above_v4(head, ip) }),
        (IPV6, 6) => Some(Headers { v6: true, ip, transport: above_v6(head, ip) }),
        _ => None,
    }
}

fn transport(head: &[u8], protocol: u8, at: usize) -> Option<(Transport, usize)> {
    let transport = [Transport::Tcp, Transport::Udp].into_iter().find(|t| t.number() == protocol)?;
    (head.len() >= at + transport.header()).then_some((transport, at))
}

fn above_v4(head: &[u8], ip: usize) -> Option<(Transport, usize)> {
    let length = usize::from(byte(head, ip)? & 0xf) * 4;
    let fragment = be16(head, ip + 6)? & 0x3fff;
    if length < 20 || fragment != 0 {
        return None;
    }
    transport(head, byte(head, ip + 9)?, ip + length)
}

fn above_v6(head: &[u8], ip: usize) -> Option<(Transport, usize)> {
    let mut next = byte(head, ip + 6)?;
    let mut at = ip + 40;
    for _ in 0..EXTENSIONS {
        match next {
            // Hop-by-hop, routing, destination: length in units of 8 bytes beyond the first 8.
            0 | 43 | 60 => {
                let length = (usize::from(byte(head, at + 1)?) + 1) * 8;
                next = byte(head, at)?;
                at += length;
            }
            // Authentication: length in units of 4 bytes, less 2.
            51 => {
                let length = (usize::from(byte(head, at + 1)?) + 2) * 4;
                next = byte(head, at)?;
                at += length;
            }
            protocol => return transport(head, protocol, at),
        }
    }
    None
}

impl Headers {
    /// Source and destination address of the packet that was parsed.
    pub fn addresses<'a>(&self, head: &'a [u8]) -> Option<&'a [u8]> {
        let (at, length) = if self.v6 { (self.ip + 8, 32) } else { (self.ip + 12, 8) };
        head.get(at..at + length)
    }

    /// Length of the TCP header with its options, if that is what is there.
    pub fn tcp_length(&self, head: &[u8]) -> Option<usize> {
        let (Transport::Tcp, at) = self.transport? else { return None };
        let length = usize::from(byte(head, at + 12)? >> 4) * 4;
        (length >= Transport::Tcp.header()).then_some(length)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An Ethernet header for IPv4 or IPv6 with some VLAN tags, an IP header, and a transport header of 20 bytes.
    pub fn packet(v6: bool, vlans: usize, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![2; 12];
        for _ in 0..vlans {
            packet.extend([0x81, 0, 0, 5]);
        }
        let length = u16::try_from(20 + payload.len()).unwrap();
        if v6 {
            packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend((0..32).collect::<Vec<u8>>());
        } else {
            packet.extend([8, 0, 0x45, 0]);
            packet.extend((length + 20).to_be_bytes());
            packet.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        let mut transport = [0; 20];
        transport[..4].copy_from_slice(&[0x30, 0x39, 0, 80]);
        transport[12] = 0x50;
        packet.extend(transport);
        packet.extend(payload);
        packet
    }

    #[test]
    fn finds_the_transport_behind_tags_and_extensions() {
        let at = |packet: &[u8]| parse(packet).and_then(|h| h.transport);
        assert_eq!(at(&packet(false, 0, 6, b"x")), Some((Transport::Tcp, 34)));
        assert_eq!(at(&packet(false, 2, 17, b"x")), Some((Transport::Udp, 42)));
        assert_eq!(at(&packet(true, 1, 6, b"x")), Some((Transport::Tcp, 58)));
        let mut extended = packet(true, 0, 60, b"");
        let mut tcp = extended.split_off(54);
        extended.extend([6, 1].into_iter().chain([0; 14]));
        extended.append(&mut tcp);
        assert_eq!(at(&extended), Some((Transport::Tcp, 54 + 16)));
        let mut fragment = packet(false, 0, 17, b"x");
        fragment[20] = 0x20;
        assert_eq!(at(&fragment), None, "a fragment has no checksum of its own");
        assert_eq!(at(&packet(false, 0, 6, b"")[..53]), None, "not all there");
        assert_eq!(parse(&[0; 64]), None);
    }

    proptest! {
        #[test]
        fn any_bytes(mut head in proptest::collection::vec(any::<u8>(), 0..300), kind in 0usize..4, ihl in 0u8..16) {
            let kinds: [&[u8]; 4] = [&[], &[8, 0, 0x40 | ihl], &[0x86, 0xdd, 0x60 | ihl], &[0x81, 0]];
            let kind = kinds[kind];
            if let Some(ethertype) = head.get_mut(12..12 + kind.len()) {
                ethertype.copy_from_slice(kind);
            }
            if let Some(headers) = parse(&head) {
                prop_assert!(headers.ip < head.len());
                if let Some((transport, at)) = headers.transport {
                    prop_assert!(at + usize::from(transport.checksum_at()) + 2 <= head.len());
                    prop_assert!(headers.addresses(&head).is_some());
                }
                headers.tcp_length(&head);
            }
        }
    }
}
