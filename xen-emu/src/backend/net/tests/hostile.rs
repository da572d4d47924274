//! Whatever the guest writes: its requests are answered or its device is closed, and nothing else happens.

use super::super::proto::HEAD;
use super::super::proto::headers::tests::packet;
use super::super::proto::offload::transmit;
use super::*;
use proptest::prelude::*;
use std::sync::atomic::AtomicBool;

/// A slot that is not all nonsense: half of the grants exist.
fn slot() -> impl Strategy<Value = [u8; TX_SLOT]> {
    let flags = prop_oneof![Just(0u16), Just(txf::MORE_DATA), Just(txf::EXTRA_INFO), any::<u16>()];
    let gref = prop_oneof![0u32..40, any::<u32>()];
    (gref, any::<u16>(), flags, any::<u16>(), any::<u16>(), any::<bool>()).prop_map(
        |(gref, offset, flags, id, size, tame)| {
            let (offset, size) = if tame { (offset % 64, size % 4096) } else { (offset, size) };
            TxRequest { gref: Gref(gref), offset, flags, id, size }.as_bytes().try_into().unwrap()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_transmit_requests(slots in proptest::collection::vec(slot(), 1..200)) {
        let mut rig = Rig::new(1, true);
        for _ in 0..20 {
            rig.page(true);
        }
        rig.connect().unwrap();
        let changed = rig.changed();
        // Whatever has begun ends with the third of these.
        let end = [0; TX_SLOT];
        for slot in slots.iter().chain([&end, &end, &end]) {
            prop_assert!(rig.queues[0].tx.put(&*rig.memory, slot).unwrap());
        }
        rig.publish_tx(0);
        let mut answer = [0; TX_SLOT];
        let mut answers = 0;
        while answers < slots.len() + 3 && rig.failures().is_empty() {
            if rig.queues[0].tx.take(&*rig.memory, &mut answer).unwrap() {
                answers += 1;
            } else {
                // All that there is to be sent has to be taken away for the rest to go on.
                let mut bytes = vec![0; 70_000];
                while (&rig.peers[0]).read(&mut bytes).is_ok() {}
                std::thread::yield_now();
            }
        }
        prop_assert!(!rig.queues[0].tx.take(&*rig.memory, &mut answer).unwrap(), "more answers than requests");
        prop_assert_eq!(rig.changed(), changed, "only pages of rings are written to");
        rig.disconnect();
    }

    #[test]
    fn any_receive_requests(grefs in proptest::collection::vec(prop_oneof![3 => 8u32..28, 1 => any::<u32>()], 60)) {
        let mut rig = Rig::new(1, true);
        let good: BTreeMap<u32, Gfn> = (0..20).map(|_| rig.page(false)).map(|(gref, gfn)| (gref.0, gfn)).collect();
        rig.connect().unwrap();
        let before = rig.changed();
        for (id, gref) in (0..).zip(&grefs) {
            let request = RxRequest { id, pad: 0, gref: Gref(*gref) };
            prop_assert!(rig.queues[0].rx.put(&*rig.memory, request.as_bytes()).unwrap());
        }
        rig.queues[0].rx.publish(&*rig.memory).unwrap();
        rig.kick(rig.port(0, true));
        for size in [60, 9000, 200, 30_000, 5000] {
            rig.peer_send(0, VnetHeader::default(), &vec![1; size]);
        }
        // Each is answered in its slot: an error for those that are no grants, and for those that are wasted on them.
        let (mut slot, mut seen) = ([0; RX_SLOT], 0);
        let bad = grefs.iter().rposition(|gref| !good.contains_key(gref));
        while seen <= bad.unwrap_or(0) && seen < 24 {
            if !rig.queues[0].rx.take(&*rig.memory, &mut slot).unwrap() {
                if rig.queues[0].rx.final_check_for_responses(&*rig.memory).unwrap() {
                    continue;
                }
                // All packets are delivered: the rest is not used.
                if rig.vif.counters.rx_packets.load(Ordering::Relaxed) == 5 {
                    break;
                }
                std::thread::yield_now();
                continue;
            }
            let response = RxResponse::read_from_bytes(&slot).unwrap();
            prop_assert_eq!(usize::from(response.id), seen);
            let is_good = grefs.get(seen).is_some_and(|gref| good.contains_key(gref));
            prop_assert!(is_good || response.status == NetifRsp::ERROR);
            seen += 1;
        }
        rig.vif.disconnect();
        let granted: Vec<u64> = good.values().map(|gfn| gfn.0).collect();
        let foreign = rig.changed().into_iter().find(|gfn| !granted.contains(gfn) && !before.contains(gfn));
        prop_assert_eq!(foreign, None, "a page that was not granted");
        rig.disconnect();
    }
}

fn wait_for_failure(rig: &Rig) -> String {
    loop {
        if let Some(failure) = rig.failures().pop() {
            return failure;
        }
        std::thread::yield_now();
    }
}

#[test]
fn impossible_indices_and_endless_packets_close_the_device() {
    for what in 0..3 {
        let mut rig = Rig::new(1, true);
        rig.connect().unwrap();
        let memory = rig.memory.clone();
        let (says, port) = match what {
            0 => {
                rig.queues[0].tx.lie(&*memory, 100_000).unwrap();
                ("transmit ring", 0)
            }
            1 => {
                rig.queues[0].rx.lie(&*memory, 257).unwrap();
                ("receive ring", 1)
            }
            _ => {
                let request = TxRequest { gref: Gref(0), offset: 0, flags: txf::MORE_DATA, id: 1, size: 60 };
                for _ in 0..80 {
                    rig.queues[0].tx.put(&*memory, request.as_bytes()).unwrap();
                }
                rig.queues[0].tx.publish(&*memory).unwrap();
                ("no end", 0)
            }
        };
        rig.kick(port);
        let failure = wait_for_failure(&rig);
        assert!(failure.contains(says), "{failure}");
        rig.disconnect();
        rig.connect().unwrap();
        rig.send(0, &[5; 60], &[(60, 0)], 0, None);
        assert_eq!(rig.peer_receive(0).1, [5; 60], "a new frontend is as good as any");
        rig.answers(0);
        rig.disconnect();
    }
}

/// What the host is told of a packet is true of the bytes that it gets, however the guest changes them meanwhile.
#[test]
fn a_packet_that_changes_while_it_is_looked_at() {
    let mut rig = Rig::new(1, true);
    let (gref, gfn) = rig.page(true);
    let kinds =
        [(false, 0), (true, 0), (false, 1), (true, 2)].map(|(v6, vlans)| packet(v6, vlans, 6, &[3; 400]));
    let size = kinds.iter().map(Vec::len).min().unwrap();
    rig.connect().unwrap();
    let (memory, stop) = (rig.memory.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let scribbler = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            kinds.iter().for_each(|kind| memory.write(gfn.gpa(), kind).unwrap());
        }
    });
    let (mut told, mut answer) = (0, [0; TX_SLOT]);
    for id in 0..500 {
        let length = u16::try_from(size).unwrap();
        let request = TxRequest { gref, offset: 0, flags: txf::CSUM_BLANK, id, size: length };
        assert!(rig.queues[0].tx.put(&*rig.memory, request.as_bytes()).unwrap());
        rig.publish_tx(0);
        while !rig.queues[0].tx.take(&*rig.memory, &mut answer).unwrap() {
            std::thread::yield_now();
        }
        // A mixture of two kinds may be none that has a checksum.
        if TxResponse::read_from_prefix(&answer).unwrap().0.status == NetifRsp::OKAY {
            let (header, mut got) = rig.peer_receive(0);
            let expected = transmit(txf::CSUM_BLANK, None, &mut got[..size.min(HEAD)], size);
            assert_eq!(expected, Ok(header), "packet {id}");
            told += 1;
        }
    }
    stop.store(true, Ordering::Relaxed);
    scribbler.join().unwrap();
    assert!(told > 0, "no packet was any good");
    rig.disconnect();
}

#[test]
fn nonsense_in_the_store_is_refused_and_leaves_nothing() {
    let bad: [(&str, &str); 6] = [
        ("request-rx-copy", "0"),
        ("multi-queue-num-queues", "5"),
        ("multi-queue-num-queues", "x"),
        ("ctrl-ring-ref", "77777"),
        ("feature-sg", "1"),
        ("multi-queue-num-queues", "0"),
    ];
    for (node, value) in bad {
        let mut rig = Rig::new(1, true);
        rig.set(node, value);
        let connected = rig.connect();
        assert_eq!(connected.is_ok(), node == "feature-sg", "{node} = {value}: {connected:?}");
        rig.disconnect();
    }
    let mut rig = Rig::new(2, true);
    rig.connect().unwrap();
    rig.disconnect();
    rig.nodes.remove("queue-1/rx-ring-ref");
    let front = Frontend { nodes: rig.nodes.clone() };
    assert!(front.need::<u32>("queue-1/rx-ring-ref").is_err());
}

/// Whoever has deleted the interface, or killed passt: the guest is told, and may begin again.
#[test]
fn a_card_whose_end_in_the_host_is_gone_is_closed() {
    let mut rig = Rig::new(2, true);
    rig.connect().unwrap();
    rig.post(1, 4);
    rig.publish_rx(1);
    drop(rig.peers.remove(1));
    while rig.failures().is_empty() {
        std::thread::yield_now();
    }
    assert!(rig.failures()[0].starts_with("the host's end is gone: "), "{:?}", rig.failures());
    rig.disconnect();
}
