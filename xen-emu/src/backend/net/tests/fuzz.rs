//! A frontend and a network that do anything: the device goes on or is closed, and only what was granted for writing is
//! touched.

use super::*;
use crate::testing::fuzz::{Input, lives};
use std::collections::BTreeSet;

/// Grants, and of those the first ones for writing.
const GRANTED: usize = 64;
const WRITABLE: usize = 32;

#[test]
fn fuzz_of_a_card() {
    lives("fuzz_of_a_card", life);
}

fn life(input: &mut Input) -> u64 {
    let queues = 1 + input.below(3) as usize;
    let mut rig = Rig::new(queues, !input.once_in(4));
    rig.split = input.once_in(2);
    for node in OFFLOADS.iter().chain(&["request-multicast-control"]) {
        let on = u8::from(!input.once_in(3));
        rig.set(node, on);
    }
    let pages: Vec<(Gref, Gfn)> = (0..GRANTED).map(|n| rig.page(n >= WRITABLE)).collect();
    let mut allowed: BTreeSet<u64> = pages[..WRITABLE].iter().map(|(_, gfn)| gfn.0).collect();
    let connections = 1 + input.below(3);
    let mut requests = 0;
    for _ in 0..connections {
        let mut ctrl = input.once_in(2).then(|| rig.with_ctrl());
        // Without the features that it needs it is refused, and leaves nothing.
        if rig.connect().is_ok() {
            allowed.extend(rig.changed());
            requests += connection(&mut rig, &pages, ctrl.as_mut(), input);
        }
        rig.disconnect();
        rig.nodes.remove("ctrl-ring-ref");
    }
    let foreign = rig.changed().into_iter().find(|gfn| !allowed.contains(gfn));
    assert_eq!(foreign, None, "a page that was not granted for writing");
    // A process has one guest, whose memory goes with it.
    rig.memory.discard_all();
    requests
}

fn connection(
    rig: &mut Rig,
    pages: &[(Gref, Gfn)],
    mut ctrl: Option<&mut FrontRing>,
    input: &mut Input,
) -> u64 {
    let memory = rig.memory.clone();
    let (mut requests, mut slot) = (0, [0; TX_SLOT]);
    for _ in 0..input.below(400) {
        let queue = input.below(u32::try_from(rig.queues.len()).unwrap()) as usize;
        let (gref, gfn) = input.pick(pages);
        let gref = if input.once_in(16) { Gref(input.below(u32::MAX)) } else { gref };
        let rings = &mut rig.queues[queue];
        match input.below(24) {
            0..7 if rings.tx.free() > 0 => {
                let bytes = transmit(input, gref);
                rings.tx.put(&*memory, &bytes).unwrap();
                requests += 1;
            }
            7..12 if rings.rx.free() > 0 => {
                let request = RxRequest { id: word(input), pad: 0, gref };
                rings.rx.put(&*memory, request.as_bytes()).unwrap();
                requests += 1;
            }
            12 | 13 => rig.publish_tx(queue),
            14 | 15 => rig.publish_rx(queue),
            16 => while rings.tx.take(&*memory, &mut slot).unwrap() {},
            17 => while rings.rx.take(&*memory, &mut slot).unwrap() {},
            18 | 19 => send(&rig.peers[queue], input),
            20 => while (&rig.peers[queue]).read(&mut [0; 70_000]).is_ok() {},
            21 => drop(revoke(&*memory, gref)),
            22 => match input.below(4) {
                0 => rig.vif.heard("request-multicast-control", input.pick(&["0", "1", "", "x"])),
                1 => grant(&*memory, pages[0].0, pages[0].1, false).unwrap(),
                2 => memory.write(gfn.gpa(), &vec![FILL; 4096]).unwrap(),
                _ => {
                    if let Some(ring) = ctrl.as_mut().filter(|ring| ring.free() > 0) {
                        ring.put(&*memory, &control(input, pages)).unwrap();
                        let told = ring.publish(&*memory).unwrap();
                        while ring.take(&*memory, &mut [0; CTRL_SLOT]).unwrap() {}
                        if told {
                            rig.kick(99);
                        }
                    }
                }
            },
            _ if input.once_in(30) => {
                let lie = if input.once_in(2) { input.below(600) } else { input.below(u32::MAX) };
                let ring = if input.once_in(2) { &mut rings.tx } else { &mut rings.rx };
                ring.lie(&*memory, lie).unwrap();
                rig.kick(rig.port(queue, false));
                rig.kick(rig.port(queue, true));
                break;
            }
            _ => {}
        }
    }
    requests
}

fn word(input: &mut Input) -> u16 {
    u16::try_from(input.below(1 << 16)).unwrap()
}

/// A slot of the transmit ring: a packet or a piece of one, an extra descriptor, or any bytes.
fn transmit(input: &mut Input, gref: Gref) -> Vec<u8> {
    let flags = [0, 0, txf::MORE_DATA, txf::EXTRA_INFO, txf::CSUM_BLANK, txf::DATA_VALIDATED];
    match input.below(8) {
        0 => input.bytes(TX_SLOT),
        1 | 2 => {
            let kinds = [ExtraType::GSO, ExtraType::MCAST_ADD, ExtraType::MCAST_DEL, ExtraType::HASH];
            let u = input.bytes(6).try_into().unwrap();
            let extra = ExtraInfo { r#type: input.pick(&kinds), flags: u8::from(input.once_in(4)), u };
            [extra.as_bytes(), &[0; TX_SLOT - size_of::<ExtraInfo>()]].concat()
        }
        wild => {
            let (offset, size) =
                if wild == 3 { (word(input), word(input)) } else { (word(input) % 64, word(input) % 4033) };
            let flags = input.pick(&flags) | input.pick(&flags);
            TxRequest { gref, offset, flags, id: word(input), size }.as_bytes().to_vec()
        }
    }
}

/// What the other end of the TAP sends.
fn send(mut peer: &File, input: &mut Input) {
    let header = input.bytes(size_of::<VnetHeader>());
    let header = if input.once_in(2) { header } else { vec![0; header.len()] };
    let size = input.pick(&[0, 13, 60, 1500, 9000, 65_000]);
    // Full: as lost as on any line.
    let _ = peer.write(&[header, input.bytes(size)].concat());
}

/// A message on the control ring.
fn control(input: &mut Input, pages: &[(Gref, Gfn)]) -> [u8; CTRL_SLOT] {
    let mut slot: [u8; CTRL_SLOT] = input.bytes(CTRL_SLOT).try_into().unwrap();
    slot[2..4].copy_from_slice(&(word(input) % 12).to_le_bytes());
    if !input.once_in(4) {
        let data = [input.pick(pages).0.0, input.below(200), input.below(200)];
        slot[4..].copy_from_slice(data.as_bytes());
    }
    slot
}
