//! Offloads: between the flags of Xen's slots and the header that Linux's TAP puts before a packet
//! (`struct virtio_net_hdr_v1`, `linux/virtio_net.h`).

use super::chain::Gso;
use super::checksum::pseudo;
use super::headers::{Headers, Transport, parse};
use xen_abi::io::netif::{ExtraGso, GsoType, rxf, txf};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const GSO_TCPV6: u8 = 4;

/// `struct virtio_net_hdr_v1`, little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VnetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of all headers of a packet to be segmented.
    pub hdr_len: u16,
    /// Payload of each segment.
    pub gso_size: u16,
    /// Where summing begins.
    pub csum_start: u16,
    /// Where from there the checksum goes.
    pub csum_offset: u16,
    /// Always 1.
    pub num_buffers: u16,
}

impl VnetHeader {
    /// Where summing begins and where the checksum goes, if it is still to be filled in.
    pub fn blank(&self) -> Option<(usize, usize)> {
        let start = usize::from(self.csum_start);
        (self.flags & NEEDS_CSUM != 0).then_some((start, start + usize::from(self.csum_offset)))
    }
}

/// What a frontend takes on receive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    /// Packets of several slots.
    pub sg: bool,
    /// Blank checksums in IPv4.
    pub csum_v4: bool,
    /// Blank checksums in IPv6.
    pub csum_v6: bool,
    /// TCP over IPv4 to be segmented.
    pub gso_v4: bool,
    /// TCP over IPv6 to be segmented.
    pub gso_v6: bool,
}

impl Accepts {
    /// What makes sense together: a packet to be segmented has a blank checksum and several slots.
    pub fn consistent(self) -> Accepts {
        let (gso_v4, gso_v6) = (self.gso_v4 && self.csum_v4, self.gso_v6 && self.csum_v6 && self.csum_v4);
        Accepts { gso_v4: gso_v4 && self.sg, gso_v6: gso_v6 && self.sg, ..self }
    }
}

/// The header for a packet of the guest: `flags` of its first request, its first bytes in `head` (where the sum of
/// the pseudo header is filled in if the guest has left that to us), `size` bytes in all.
///
/// # Errors
/// What is asked for does not fit the packet.
pub fn transmit(
    flags: u16,
    gso: Option<Gso>,
    head: &mut [u8],
    size: usize,
) -> Result<VnetHeader, &'static str> {
    let plain = VnetHeader { num_buffers: 1, ..VnetHeader::default() };
    if gso.is_none() && flags & txf::CSUM_BLANK == 0 {
        let validated = if flags & txf::DATA_VALIDATED != 0 { DATA_VALID } else { 0 };
        return Ok(VnetHeader { flags: validated, ..plain });
    }
    let headers = parse(head).ok_or("a packet without IP has a blank checksum")?;
    let (transport, at) = headers.transport.ok_or("a packet without TCP or UDP has a blank checksum")?;
    let start = u16::try_from(at).map_err(|_| "the headers of a packet are too long")?;
    let blank =
        VnetHeader { flags: NEEDS_CSUM, csum_start: start, csum_offset: transport.checksum_at(), ..plain };
    let Some(gso) = gso else { return Ok(blank) };
    if flags & txf::CSUM_BLANK == 0 {
        fill_pseudo(head, &headers, transport, at, size)?;
    }
    let tcp = headers.tcp_length(head).ok_or("GSO of a packet that is not TCP")?;
    if headers.v6 != gso.v6 {
        return Err("GSO of another IP version than the packet's");
    }
    if at + tcp >= size {
        return Err("GSO of a packet without payload");
    }
    Ok(VnetHeader {
        gso_type: if gso.v6 { GSO_TCPV6 } else { GSO_TCPV4 },
        gso_size: gso.size,
        hdr_len: u16::try_from(at + tcp).map_err(|_| "the headers of a packet are too long")?,
        ..blank
    })
}

fn fill_pseudo(
    head: &mut [u8],
    headers: &Headers,
    transport: Transport,
    at: usize,
    size: usize,
) -> Result<(), &'static str> {
    let sum = pseudo(head, headers, transport, at, size).ok_or("a packet ends within its headers")?;
    let field = at + usize::from(transport.checksum_at());
    let field = head.get_mut(field..field + 2).ok_or("a packet ends within its headers")?;
    field.copy_from_slice(&sum);
    Ok(())
}

/// How a packet for the guest is announced: flags of its first response (`rxf`) and its segmentation.
pub fn receive(header: &VnetHeader) -> (u16, Option<ExtraGso>) {
    let flags = match header.flags {
        flags if flags & NEEDS_CSUM != 0 => rxf::CSUM_BLANK | rxf::DATA_VALIDATED,
        flags if flags & DATA_VALID != 0 => rxf::DATA_VALIDATED,
        _ => 0,
    };
    let gso = |r#type| Some(ExtraGso { size: header.gso_size, r#type, pad: 0, features: 0 });
    // Without its highest bit, which says that ECN is in use: Xen's protocol has no word for that.
    match header.gso_type & 0x7f {
        GSO_TCPV4 => (flags, gso(GsoType::TCPV4)),
        GSO_TCPV6 => (flags, gso(GsoType::TCPV6)),
        _ => (flags, None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::headers::tests::packet;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_blank_checksum_and_segments_are_found_in_the_packet() {
        let mut tcp = packet(false, 0, 6, &[7; 3000]);
        let size = tcp.len();
        let blank = transmit(txf::CSUM_BLANK, None, &mut tcp, size).unwrap();
        assert_eq!(blank.blank(), Some((34, 50)));
        let cut = transmit(txf::CSUM_BLANK, Some(Gso { v6: false, size: 1448 }), &mut tcp, size).unwrap();
        assert_eq!((cut.gso_type, cut.gso_size, cut.hdr_len), (GSO_TCPV4, 1448, 54));
        assert_eq!(tcp[50..52], [0, 0], "the guest has filled in the pseudo header, or so it says");
        transmit(0, Some(Gso { v6: false, size: 1448 }), &mut tcp, size).unwrap();
        assert_ne!(tcp[50..52], [0, 0], "filled in");
        let (flags, gso) = receive(&cut);
        assert_eq!(flags, rxf::CSUM_BLANK | rxf::DATA_VALIDATED);
        assert_eq!(gso.map(|gso| (gso.size, gso.r#type)), Some((1448, GsoType::TCPV4)));
    }

    #[test]
    fn what_does_not_fit_the_packet_is_refused() {
        let gso = Some(Gso { v6: true, size: 1000 });
        for (flags, gso, mut packet) in [
            (txf::CSUM_BLANK, None, vec![0; 60]),
            (txf::CSUM_BLANK, None, packet(false, 0, 1, b"icmp")),
            (txf::CSUM_BLANK, gso, packet(false, 0, 6, b"version 4")),
            (txf::CSUM_BLANK, gso, packet(true, 0, 17, b"udp")),
            (txf::CSUM_BLANK, gso, packet(true, 0, 6, b"")),
        ] {
            let size = packet.len();
            assert!(transmit(flags, gso, &mut packet, size).is_err());
        }
        assert_eq!(transmit(txf::DATA_VALIDATED, None, &mut [0; 60], 60).unwrap().flags, DATA_VALID);
    }

    proptest! {
        /// Whatever the packet, the host is told only of places inside it.
        #[test]
        fn any_packet(v6: bool, vlans in 0usize..3, protocol in prop_oneof![Just(6), Just(17), any::<u8>()],
                      flips in proptest::collection::vec((0usize..80, any::<u8>()), 0..4), flags: u16, gso: bool) {
            let mut packet = packet(v6, vlans, protocol, &[1; 40]);
            for (at, with) in flips {
                packet[at] ^= with;
            }
            let size = packet.len();
            let gso = gso.then_some(Gso { v6, size: 10 });
            if let Ok(header) = transmit(flags, gso, &mut packet, size)
                && let Some((start, field)) = header.blank()
            {
                prop_assert!(start < size && field + 2 <= size);
                prop_assert!(usize::from(header.hdr_len) < size);
            }
        }
    }
}
