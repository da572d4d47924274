//! Multicast control, the control ring, and hashes.

use super::*;
use xen_abi::io::netif::{CtrlRequest, CtrlResponse, CtrlStatus, CtrlType};

fn to(address: [u8; 6]) -> Vec<u8> {
    [address.as_slice(), &[2; 54]].concat()
}

/// A request that changes the multicast list.
fn group(rig: &mut Rig, r#type: ExtraType, address: [u8; 6]) {
    let request = TxRequest { gref: Gref(0), offset: 0, flags: txf::EXTRA_INFO, id: 5, size: 0 };
    let (gref, _) = rig.page(true);
    assert!(rig.put_tx(0, &request.as_bytes().try_into().unwrap(), (5, Some(gref))));
    let mut slot = [0; TX_SLOT];
    slot[..8].copy_from_slice(ExtraInfo { r#type, flags: 0, u: address }.as_bytes());
    assert!(rig.put_tx(0, &slot, (0, None)));
    rig.publish_tx(0);
    assert_eq!(rig.answers(0), [NetifRsp::OKAY]);
}

#[test]
fn only_wanted_multicast_packets_pass() {
    let (wanted, other, unicast) = ([1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 9], [0, 1, 2, 3, 4, 5]);
    let mut rig = Rig::new(1, true);
    rig.set("request-multicast-control", 1);
    rig.connect().unwrap();
    rig.post(0, 20);
    group(&mut rig, ExtraType::MCAST_ADD, wanted);
    for address in [other, wanted, other, [0xff; 6], unicast] {
        rig.peer_send(0, VnetHeader::default(), &to(address));
    }
    for address in [wanted, [0xff; 6], unicast] {
        assert_eq!(rig.receive(0).unwrap().data, to(address));
    }
    group(&mut rig, ExtraType::MCAST_DEL, wanted);
    rig.peer_send(0, VnetHeader::default(), &to(wanted));
    rig.peer_send(0, VnetHeader::default(), &to(unicast));
    assert_eq!(rig.receive(0).unwrap().data, to(unicast));
    // The frontend may change its mind at any time.
    rig.vif.heard("request-multicast-control", "0");
    rig.peer_send(0, VnetHeader::default(), &to(other));
    assert_eq!(rig.receive(0).unwrap().data, to(other));
    rig.disconnect();
}

fn ask(rig: &mut Rig, ring: &mut FrontRing, r#type: CtrlType, data: [u32; 3]) -> CtrlStatus {
    let memory = rig.memory.clone();
    ring.put(&*memory, CtrlRequest { id: 1, r#type, data }.as_bytes()).unwrap();
    if ring.publish(&*memory).unwrap() {
        rig.kick(99);
    }
    let mut answer = [0; size_of::<CtrlResponse>()];
    while !ring.take(&*memory, &mut answer).unwrap() {
        let waiting = !ring.final_check_for_responses(&*memory).unwrap();
        assert!(!waiting || rig.notified(99), "no answer");
    }
    CtrlResponse::read_from_bytes(&answer).unwrap().status
}

/// The guest decides by the control ring which queue gets a packet, whichever queue of the TAP it came from.
#[test]
fn hashed_packets_go_to_the_queue_that_the_guest_has_chosen() {
    use crate::backend::net::proto::headers::tests::packet;
    let mut rig = Rig::new(2, true);
    let mut ring = rig.with_ctrl();
    rig.connect().unwrap();
    let (gref, gfn) = rig.page(true);
    rig.memory.write(gfn.gpa(), &[0x5a; 40]).unwrap();
    let (table, table_gfn) = rig.page(true);
    rig.memory.write(table_gfn.gpa(), &[1, 0, 0, 0]).unwrap();
    for (kind, data) in [
        (CtrlType::SET_HASH_ALGORITHM, [1, 0, 0]),
        (CtrlType::SET_HASH_FLAGS, [15, 0, 0]),
        (CtrlType::SET_HASH_KEY, [gref.0, 40, 0]),
        (CtrlType::SET_HASH_MAPPING_SIZE, [1, 0, 0]),
        (CtrlType::SET_HASH_MAPPING, [table.0, 1, 0]),
    ] {
        assert_eq!(ask(&mut rig, &mut ring, kind, data), CtrlStatus::SUCCESS, "{kind:?}");
    }
    assert_eq!(ask(&mut rig, &mut ring, CtrlType::ADD_GREF_MAPPING, [0; 3]), CtrlStatus::NOT_SUPPORTED);
    for queue in [0, 1] {
        rig.post(queue, 40);
    }
    let data = packet(false, 0, 6, &[9; 9000]);
    for from in [0, 1, 0] {
        rig.peer_send(from, VnetHeader::default(), &data);
        let got = rig.receive(1).unwrap();
        assert_eq!(got.data, data);
        assert_eq!(got.hash.map(|hash| (hash[0], hash[1])), Some((1, 1)), "TCP over IPv4, Toeplitz");
    }
    rig.disconnect();
}

/// The rate holds back, and loses nothing.
#[test]
fn a_limited_guest_sends_all_in_the_end() {
    let mut rig = Rig::new(1, true);
    rig.vif.config.rate = Some(xen_emu_api::device::Rate { bytes: 3000, interval_us: 1000 });
    rig.connect().unwrap();
    for i in 0..30 {
        rig.send(0, &[i; 1000], &[(1000, 0)], 0, None);
    }
    for i in 0..30 {
        assert_eq!(rig.peer_receive(0).1, [i; 1000]);
    }
    assert_eq!(rig.answers(0).len(), 30);
    rig.disconnect();
}

/// A packet that the other end does not take yet is not charged again and again.
#[test]
fn a_packet_is_paid_for_once() {
    const SIZE: usize = 4000;
    let mut rig = Rig::new(1, true);
    let hour = 3_600_000_000;
    rig.vif.config.rate = Some(xen_emu_api::device::Rate { bytes: 200 * SIZE as u64, interval_us: hour });
    rig.connect().unwrap();
    for i in 0..200 {
        rig.send(0, &[i; SIZE], &[(SIZE, 0)], 0, None);
    }
    // The other end is full, and each of these tries again.
    for _ in 0..200 {
        rig.kick(rig.port(0, false));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for i in 0..200 {
        assert_eq!(rig.peer_receive(0).1, [i; SIZE]);
    }
    assert_eq!(rig.answers(0), [NetifRsp::OKAY; 200]);
    rig.disconnect();
}
