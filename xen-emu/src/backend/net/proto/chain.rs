//! Transmit requests of the guest, put together to packets.
//!
//! A packet is a chain of slots: the first request with the size of the whole packet, extra descriptors, and the
//! other requests with the size of their own part each. Every slot is answered once, in order.

use super::{ETH_HLEN, PAGE};
use xen_abi::Gref;
use xen_abi::io::netif::{
    EXTRA_FLAG_MORE, ExtraGso, ExtraInfo, ExtraType, GsoType, NR_SLOTS_MIN, NetifRsp, TX_SLOT, TxRequest,
    TxResponse, txf,
};
use zerocopy::{FromBytes, IntoBytes};

/// A chain that goes on beyond so many slots never was one.
const ENDLESS: usize = 64;

/// A piece of a packet in a granted page, checked to lie within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The page.
    pub gref: Gref,
    /// First byte in it.
    pub offset: u16,
    /// Bytes.
    pub size: u16,
}

/// A packet to be cut into segments by the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Over IPv6 instead of IPv4.
    pub v6: bool,
    /// Payload of each segment, not 0.
    pub size: u16,
}

/// A change of the list of multicast groups that the guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Join.
    Add([u8; 6]),
    /// Leave.
    Del([u8; 6]),
}

/// What a slot has made of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More slots belong to it.
    More,
    /// A packet, to be sent.
    Packet,
    /// No packet, but changes of the multicast list.
    Groups,
    /// It is answered with an error; the next slot begins a new chain.
    Bad(&'static str),
    /// It will never end: nothing on this ring makes sense any more.
    Fatal(&'static str),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    #[default]
    First,
    Extra,
    Fragment,
}

/// One chain, as far as it has been seen. After any [`Step`] but `More` it has to be answered and cleared.
#[derive(Debug, Default)]
pub struct Chain {
    expect: Expect,
    /// `txf` of the first request.
    pub flags: u16,
    /// Bytes of the packet.
    pub size: u16,
    /// Where they are; empty pieces are left out.
    pub fragments: Vec<Fragment>,
    /// Segmentation, if asked for.
    pub gso: Option<Gso>,
    /// Changes of the multicast list.
    pub groups: Vec<Group>,
    /// The id to be answered for each slot; none = an extra descriptor.
    slots: Vec<Option<u16>>,
    fault: Option<&'static str>,
}

impl Chain {
    /// Takes the next slot of the ring.
    pub fn push(&mut self, slot: &[u8; TX_SLOT]) -> Step {
        match self.expect {
            Expect::Extra => self.extra(slot),
            Expect::First | Expect::Fragment => self.request(slot),
        }
        match self.expect {
            Expect::First => self.finish(),
            _ if self.slots.len() >= ENDLESS => Step::Fatal("a packet of the guest has no end"),
            _ => Step::More,
        }
    }

    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        self.fragments.clear();
        self.groups.clear();
        self.slots.clear();
        (self.expect, self.gso, self.fault) = (Expect::First, None, None);
    }

    /// The answers to its slots, in order: each of `TxResponse` padded to a slot.
    pub fn answers(&self, status: NetifRsp) -> impl Iterator<Item = [u8; TX_SLOT]> {
        self.slots.iter().map(move |slot| {
            let (id, status) = slot.map_or((0, NetifRsp::NULL), |id| (id, status));
            let mut bytes = [0; TX_SLOT];
            bytes[..size_of::<TxResponse>()].copy_from_slice(TxResponse { id, status }.as_bytes());
            bytes
        })
    }

    fn fault(&mut self, what: &'static str) {
        self.fault.get_or_insert(what);
    }

    fn request(&mut self, slot: &[u8; TX_SLOT]) {
        let Ok(request) = TxRequest::read_from_bytes(slot) else { return };
        let first = self.slots.is_empty();
        self.slots.push(Some(request.id));
        if first {
            (self.flags, self.size) = (request.flags, request.size);
        }
        if self.fragments.len() < NR_SLOTS_MIN {
            self.fragments.push(Fragment { gref: request.gref, offset: request.offset, size: request.size });
        } else {
            self.fault("a packet has more than 18 pieces");
        }
        self.expect = match request.flags {
            flags if first && flags & txf::EXTRA_INFO != 0 => Expect::Extra,
            flags if flags & txf::MORE_DATA != 0 => Expect::Fragment,
            _ => Expect::First,
        };
    }

    fn extra(&mut self, slot: &[u8; TX_SLOT]) {
        let Ok((extra, _)) = ExtraInfo::read_from_prefix(slot) else { return };
        self.slots.push(None);
        match extra.r#type {
            ExtraType::GSO => self.gso(ExtraGso::read_from_bytes(&extra.u).ok()),
            ExtraType::MCAST_ADD => self.groups.push(Group::Add(extra.u)),
            ExtraType::MCAST_DEL => self.groups.push(Group::Del(extra.u)),
            // The guest's own hash of the packet: nothing here makes use of it.
            ExtraType::HASH => {}
            _ => self.fault("an extra descriptor has an unknown type"),
        }
        self.expect = match extra.flags & EXTRA_FLAG_MORE {
            0 if self.flags & txf::MORE_DATA != 0 => Expect::Fragment,
            0 => Expect::First,
            _ => Expect::Extra,
        };
    }

    fn gso(&mut self, extra: Option<ExtraGso>) {
        match extra {
            Some(gso) if gso.size == 0 => self.fault("GSO with segments of 0 bytes"),
            Some(gso) if gso.r#type == GsoType::TCPV4 => self.gso = Some(Gso { v6: false, size: gso.size }),
            Some(gso) if gso.r#type == GsoType::TCPV6 => self.gso = Some(Gso { v6: true, size: gso.size }),
            _ => self.fault("GSO of an unknown type"),
        }
    }

    /// The chain is whole: judge it, and give the first piece its own size.
    fn finish(&mut self) -> Step {
        if let Some(fault) = self.fault {
            return Step::Bad(fault);
        }
        if !self.groups.is_empty() {
            return Step::Groups;
        }
        if usize::from(self.size) < ETH_HLEN {
            return Step::Bad("a packet is shorter than an Ethernet header");
        }
        let Some((first, others)) = self.fragments.split_first_mut() else { return Step::Bad("no data") };
        let others = others.iter().map(|fragment| u32::from(fragment.size)).sum();
        match u32::from(self.size).checked_sub(others).and_then(|size| u16::try_from(size).ok()) {
            Some(size) => first.size = size,
            None => return Step::Bad("the pieces of a packet are longer than the packet"),
        }
        if self.fragments.iter().any(|f| usize::from(f.offset) + usize::from(f.size) > PAGE) {
            return Step::Bad("a piece of a packet crosses the end of its page");
        }
        self.fragments.retain(|fragment| fragment.size != 0);
        Step::Packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(id: u16, offset: u16, size: u16, flags: u16) -> [u8; TX_SLOT] {
        let bytes = TxRequest { gref: Gref(u32::from(id) + 100), offset, flags, id, size };
        bytes.as_bytes().try_into().unwrap()
    }

    fn extra(r#type: ExtraType, flags: u8, u: [u8; 6]) -> [u8; TX_SLOT] {
        let mut slot = [0xee; TX_SLOT];
        slot[..8].copy_from_slice(ExtraInfo { r#type, flags, u }.as_bytes());
        slot
    }

    fn run(slots: &[[u8; TX_SLOT]]) -> (Step, Chain) {
        let mut chain = Chain::default();
        let mut step = Step::More;
        for (i, slot) in slots.iter().enumerate() {
            assert_eq!(step, Step::More, "ended before slot {i}");
            step = chain.push(slot);
        }
        (step, chain)
    }

    fn status(answers: impl Iterator<Item = [u8; TX_SLOT]>) -> Vec<(u16, i16)> {
        answers.map(|a| TxResponse::read_from_prefix(&a).unwrap().0).map(|r| (r.id, r.status.0)).collect()
    }

    #[test]
    fn a_gso_packet_of_three_pieces() {
        let gso = ExtraGso { size: 1448, r#type: GsoType::TCPV6, pad: 0, features: 0 };
        let u = gso.as_bytes().try_into().unwrap();
        let (step, chain) = run(&[
            request(1, 10, 9000, txf::MORE_DATA | txf::EXTRA_INFO | txf::CSUM_BLANK),
            extra(ExtraType::HASH, EXTRA_FLAG_MORE, [0; 6]),
            extra(ExtraType::GSO, 0, u),
            request(2, 0, 4096, txf::MORE_DATA),
            request(3, 96, 4000, 0),
        ]);
        assert_eq!(step, Step::Packet);
        assert_eq!((chain.size, chain.gso), (9000, Some(Gso { v6: true, size: 1448 })));
        let pieces: Vec<_> = chain.fragments.iter().map(|f| (f.gref.0, f.offset, f.size)).collect();
        assert_eq!(pieces, [(101, 10, 904), (102, 0, 4096), (103, 96, 4000)]);
        assert_eq!(status(chain.answers(NetifRsp::OKAY)), [(1, 0), (0, 1), (0, 1), (2, 0), (3, 0)]);
    }

    #[test]
    fn bad_chains_end_where_a_good_one_would() {
        let more = txf::MORE_DATA;
        let too_long = |n: u16| -> Vec<_> {
            (0..n).map(|i| request(i, 0, 100, if i + 1 < n { more } else { 0 })).collect()
        };
        let bad: [(&str, Vec<[u8; TX_SLOT]>); 8] = [
            ("18 pieces", too_long(19)),
            ("shorter than an Ethernet header", vec![request(1, 0, 13, 0)]),
            ("crosses", vec![request(1, 4000, 97, 0)]),
            ("crosses", vec![request(1, 0, 5000, more), request(2, 4096, 1000, 0)]),
            ("longer than the packet", vec![request(1, 0, 100, more), request(2, 0, 101, 0)]),
            (
                "0 bytes",
                vec![request(1, 0, 60, txf::EXTRA_INFO), extra(ExtraType::GSO, 0, [0, 0, 1, 0, 0, 0])],
            ),
            (
                "GSO of an unknown type",
                vec![request(1, 0, 60, txf::EXTRA_INFO), extra(ExtraType::GSO, 0, [9; 6])],
            ),
            ("unknown type", vec![request(1, 0, 60, txf::EXTRA_INFO), extra(ExtraType(77), 0, [9; 6])]),
        ];
        for (says, slots) in bad {
            let (step, chain) = run(&slots);
            assert!(matches!(step, Step::Bad(why) if why.contains(says)), "{says}: {step:?}");
            assert_eq!(chain.answers(NetifRsp::ERROR).count(), slots.len());
        }
        let endless: Vec<_> = (0..64).map(|i| request(i, 0, 0, more)).collect();
        assert!(matches!(run(&endless).0, Step::Fatal(_)));
    }

    #[test]
    fn multicast_requests_carry_no_data() {
        let (add, del) = ([1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]);
        let (step, chain) = run(&[
            request(7, 0, 0, txf::EXTRA_INFO),
            extra(ExtraType::MCAST_ADD, EXTRA_FLAG_MORE, add),
            extra(ExtraType::MCAST_DEL, 0, del),
        ]);
        assert_eq!((step, chain.groups), (Step::Groups, vec![Group::Add(add), Group::Del(del)]));
    }

    proptest! {
        /// Whatever is on the ring: each slot belongs to one chain, and what is called a packet lies in its pages.
        #[test]
        fn any_slots(slots in proptest::collection::vec(any::<[u8; TX_SLOT]>(), 1..300)) {
            let mut chain = Chain::default();
            let mut answered = 0;
            for slot in &slots {
                let step = chain.push(slot);
                if step == Step::Packet {
                    let sum: usize = chain.fragments.iter().map(|f| usize::from(f.size)).sum();
                    prop_assert_eq!(sum, usize::from(chain.size));
                    prop_assert!(chain.fragments.len() <= NR_SLOTS_MIN);
                    prop_assert!(chain.fragments.iter().all(|f| f.offset + f.size <= 4096));
                }
                if step != Step::More {
                    answered += chain.answers(NetifRsp::OKAY).count();
                    chain.clear();
                }
            }
            prop_assert_eq!(answered + chain.slots.len(), slots.len());
        }
    }
}
