//! Packets arrive as they were sent, whatever pieces they come in.

use super::*;
use crate::backend::net::proto::checksum::Sum;
use crate::backend::net::proto::headers::tests::packet;
use proptest::prelude::*;
use xen_abi::io::netif::GsoType;

/// Bytes of which no two pages are the same.
fn bytes(size: usize, seed: u8) -> Vec<u8> {
    let byte = |i: usize| i.to_le_bytes()[0].wrapping_mul(31).wrapping_add(seed) ^ i.to_le_bytes()[1];
    (0..size).map(byte).collect()
}

/// A packet from the guest: size, seed of its bytes, cuts between its pieces.
fn tx_packet() -> impl Strategy<Value = (Vec<u8>, Vec<(usize, usize)>)> {
    let size = prop_oneof![4 => 14usize..2000, 2 => 2000usize..20_000, 1 => 60_000usize..65_536];
    (size, any::<u8>(), proptest::collection::vec(1usize..4097, 17), any::<u16>()).prop_map(
        |(size, seed, cuts, at)| {
            let mut pieces: Vec<usize> = Vec::new();
            let mut left = size;
            for (i, cut) in cuts.iter().enumerate() {
                // What is left has to fit into the pieces that are left.
                let least = left.saturating_sub((17 - i) * 4096);
                let piece = (*cut).max(least).min(left);
                pieces.push(piece);
                left -= piece;
                if left == 0 {
                    break;
                }
            }
            if left > 0 {
                pieces.push(left);
            }
            let data = bytes(size, seed);
            let place = |len: usize| (len, usize::from(at) % (4097 - len));
            (data, pieces.into_iter().map(place).collect())
        },
    )
}

/// A packet for the guest: plain or to be segmented.
fn rx_packet() -> impl Strategy<Value = (VnetHeader, Vec<u8>)> {
    let size = prop_oneof![4 => 20usize..2000, 2 => 2000usize..10_000, 2 => 10_000usize..65_000];
    (size, any::<u8>(), 0..3, any::<bool>()).prop_map(|(size, seed, gso, v6)| {
        let data = packet(v6, 0, 6, &bytes(size, seed));
        let at = if v6 { 54 } else { 34 };
        let blank = VnetHeader { flags: 1, csum_start: at, csum_offset: 16, ..VnetHeader::default() };
        let header = match (gso, v6) {
            (0, _) => VnetHeader::default(),
            (1, _) => blank,
            (_, false) => VnetHeader { gso_type: 1, gso_size: 1448, hdr_len: 54, ..blank },
            (_, true) => VnetHeader { gso_type: 4, gso_size: 1428, hdr_len: 74, ..blank },
        };
        (header, data)
    })
}

fn expected(header: &VnetHeader, data: &[u8]) -> Got {
    let r#type = if header.gso_type == 1 { GsoType::TCPV4 } else { GsoType::TCPV6 };
    let gso = ExtraGso { size: header.gso_size, r#type, pad: 0, features: 0 };
    let flags = if header.flags & 1 != 0 { rxf::CSUM_BLANK | rxf::DATA_VALIDATED } else { 0 };
    Got { data: data.to_vec(), flags, gso: (header.gso_type != 0).then_some(gso), hash: None }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn from_the_guest(packets in proptest::collection::vec(tx_packet(), 1..30), split: bool) {
        let mut rig = Rig::new(1, true);
        rig.split = split;
        rig.connect().unwrap();
        for (data, pieces) in &packets {
            rig.send(0, data, pieces, 0, None);
            prop_assert_eq!(&rig.peer_receive(0).1, data);
            prop_assert!(rig.answers(0).iter().all(|status| *status == NetifRsp::OKAY));
        }
        rig.disconnect();
    }

    #[test]
    fn to_the_guest(packets in proptest::collection::vec(rx_packet(), 1..40), ahead in 0usize..40, split: bool) {
        let mut rig = Rig::new(1, true);
        rig.split = split;
        rig.connect().unwrap();
        rig.post(0, ahead);
        for (header, data) in &packets {
            rig.peer_send(0, *header, data);
            // Buffers come in two parts, so that some packets have to wait for the second.
            for _ in 0..2 {
                rig.post(0, 10usize.saturating_sub(rig.queues[0].posted.len() / 2));
            }
            let missing = 19usize.saturating_sub(rig.queues[0].posted.len());
            rig.post(0, missing);
            prop_assert_eq!(rig.receive(0).unwrap(), expected(header, data));
        }
        rig.disconnect();
    }
}

/// Long packets in a row go to the guest's pages without a copy, once the first has been seen.
#[test]
fn long_packets_are_not_copied() {
    let mut rig = Rig::new(1, true);
    rig.connect().unwrap();
    let data = packet(false, 0, 6, &[7; 60_000]);
    let header = VnetHeader {
        flags: 1,
        csum_start: 34,
        csum_offset: 16,
        gso_type: 1,
        gso_size: 1448,
        ..Default::default()
    };
    let copied = |rig: &Rig| rig.vif.counters.rx_copied.load(Ordering::Relaxed);
    for i in 0..10 {
        rig.post(0, 40 - rig.queues[0].posted.len());
        rig.peer_send(0, header, &data);
        assert_eq!(rig.receive(0).unwrap(), expected(&header, &data));
        assert_eq!(copied(&rig), data.len() as u64 - 4096, "packet {i}");
    }
    rig.disconnect();
}

/// A queue that has seen some packets asks for no memory for another, short or long, either way.
#[test]
fn packets_need_no_memory() {
    let mut rig = Rig::new(1, true);
    rig.connect().unwrap();
    let rounds = |rig: &mut Rig, n: usize| {
        for i in 0..n {
            rig.post(0, 40 - rig.queues[0].posted.len());
            let size = [60, 9000][i % 2];
            let pieces: &[_] = [&[(60, 0)][..], &[(904, 10), (4096, 0), (4000, 96)]][i % 2];
            rig.send(0, &bytes(size, 1), pieces, 0, None);
            assert_eq!(rig.peer_receive(0).1, bytes(size, 1));
            assert!(rig.answers(0).iter().all(|status| *status == NetifRsp::OKAY));
            rig.peer_send(0, VnetHeader::default(), &bytes(size, 2));
            assert_eq!(rig.receive(0).unwrap().data, bytes(size, 2));
        }
        rig.allocations.load(Ordering::SeqCst)
    };
    let before = rounds(&mut rig, 20);
    let more = rounds(&mut rig, 200) - before;
    // The table of pins may have grown.
    assert!(more < 8, "400 packets made {more} allocations");
    rig.disconnect();
}

/// A packet of the guest alone costs one call beside the wait: nobody asks a link that has said nothing.
#[test]
fn a_packet_from_the_guest_is_one_call() {
    let mut rig = Rig::new(1, true);
    rig.connect().unwrap();
    rig.post(0, 5);
    let counters = rig.vif.counters.clone();
    // It counts before it waits, and is woken once by the buffers, however they come.
    let waits = |n| {
        while counters.wakeups.load(Ordering::Relaxed) < n {
            std::thread::yield_now();
        }
        counters.syscalls.load(Ordering::Relaxed)
    };
    let before = waits(2);
    for i in 0..20 {
        rig.send(0, &[7; 60], &[(60, 0)], 0, None);
        assert_eq!((rig.peer_receive(0).1.len(), waits(3 + i)), (60, before + 1 + i));
        assert_eq!(rig.answers(0), [NetifRsp::OKAY]);
    }
    // One that comes is found all the same, and then it is asked for another.
    rig.peer_send(0, VnetHeader::default(), &[8; 60]);
    assert_eq!(rig.receive(0).unwrap().data, [8; 60]);
    assert_eq!(waits(23), before + 22);
    rig.disconnect();
}

/// What is asked for in Xen's words arrives in Linux's.
#[test]
fn offloads_from_the_guest() {
    let mut rig = Rig::new(1, true);
    rig.connect().unwrap();
    assert!(rig.accepts.lock().unwrap().gso_v6);
    let data = packet(true, 0, 6, &[1; 20_000]);
    let gso = ExtraGso { size: 1400, r#type: GsoType::TCPV6, pad: 0, features: 0 };
    let pieces = [(4000, 0), (4096, 0), (4096, 0), (4096, 0), (data.len() - 16_288, 7)];
    rig.send(0, &data, &pieces, txf::CSUM_BLANK | txf::DATA_VALIDATED, Some(gso));
    let (header, got) = rig.peer_receive(0);
    assert_eq!(got, data);
    assert_eq!((header.gso_type, header.gso_size, header.blank()), (4, 1400, Some((54, 70))));
    assert_eq!(rig.answers(0).len(), 5);
    // A request that the packet does not fit is an error, and the next packet passes.
    rig.send(0, &[0; 60], &[(60, 0)], txf::CSUM_BLANK, None);
    assert_eq!(rig.answers(0), [NetifRsp::ERROR]);
    rig.send(0, &data[..100], &[(100, 0)], 0, None);
    assert_eq!(rig.peer_receive(0).1, data[..100]);
    rig.disconnect();
}

pub fn sum_is_right(packet: &[u8], at: usize) -> bool {
    let v6 = at == 54;
    let mut sum = Sum::default();
    sum.add(if v6 { &packet[22..54] } else { &packet[26..34] });
    sum.add(&[0, 6]);
    sum.add(&u32::try_from(packet.len() - at).unwrap().to_be_bytes());
    sum.add(&packet[at..]);
    sum.folded() == 0xffff
}

/// A packet with the sum of its pseudo header where its checksum goes.
pub fn blank(v6: bool, payload: &[u8]) -> (Vec<u8>, usize) {
    let (mut data, at) = (packet(v6, 0, 6, payload), if v6 { 54 } else { 34 });
    let mut sum = Sum::default();
    sum.add(if v6 { &data[22..54] } else { &data[26..34] });
    sum.add(&[0, 6]);
    sum.add(&u32::try_from(data.len() - at).unwrap().to_be_bytes());
    data[at + 16..at + 18].copy_from_slice(&sum.folded().to_be_bytes());
    if !v6 {
        let mut sum = Sum::default();
        sum.add(&data[14..34]);
        data[24..26].copy_from_slice(&sum.field());
    }
    (data, at)
}

/// Where the other end, or the frontend, takes no blank checksum, it is filled in.
#[test]
fn checksums_are_completed_for_those_who_cannot() {
    let mut rig = Rig::new(1, false);
    rig.set("feature-ipv6-csum-offload", 0);
    rig.connect().unwrap();
    for v6 in [false, true] {
        let (data, at) = blank(v6, &[0xf1; 3001]);
        rig.send(0, &data, &[(1000, 0), (data.len() - 1000, 3)], txf::CSUM_BLANK, None);
        let (_, got) = rig.peer_receive(0);
        assert!(sum_is_right(&got, at), "from the guest, v6 = {v6}");
        rig.answers(0);
    }
    let (data, at) = blank(true, &[0x3f; 9001]);
    let header = VnetHeader { flags: 1, csum_start: 54, csum_offset: 16, ..VnetHeader::default() };
    rig.post(0, 20);
    for _ in 0..2 {
        rig.peer_send(0, header, &data);
        let got = rig.receive(0).unwrap();
        assert!(sum_is_right(&got.data, at) && got.flags == 0, "to the guest");
    }
    rig.disconnect();
}

/// A frontend that can do nothing gets what fits into a page, and nothing else.
#[test]
fn a_frontend_without_offloads() {
    let mut rig = Rig::new(1, true);
    OFFLOADS.iter().for_each(|feature| rig.set(feature, 0));
    rig.set("feature-no-csum-offload", 1);
    rig.connect().unwrap();
    assert_eq!(*rig.accepts.lock().unwrap(), Accepts::default());
    rig.post(0, 5);
    rig.peer_send(0, VnetHeader::default(), &[1; 4097]);
    rig.peer_send(
        0,
        VnetHeader { flags: 1, csum_start: 34, csum_offset: 16, ..VnetHeader::default() },
        &[2; 60],
    );
    rig.peer_send(0, VnetHeader::default(), &[3; 4096]);
    assert_eq!(rig.receive(0).unwrap().data, [3; 4096]);
    rig.disconnect();
}

/// Coming and going leaves nothing behind.
#[test]
fn connects_again_and_again() {
    let mut rig = Rig::new(2, true);
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = None;
    for _ in 0..20 {
        rig.connect().unwrap();
        rig.post(1, 10);
        rig.peer_send(1, VnetHeader::default(), &[1; 60]);
        assert_eq!(rig.receive(1).unwrap().data, [1; 60]);
        assert_eq!(rig.vif.rings().len(), 4);
        rig.disconnect();
        rig.ports.ends.lock().unwrap().clear();
        // Other tests of the process come and go: what grows by much is ours.
        assert!(fds() < *before.get_or_insert(fds()) + 200);
    }
}
