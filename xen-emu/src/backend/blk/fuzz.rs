//! A frontend that does anything: every request is answered once or its device is closed, and only what it granted for
//! writing is touched.

use super::fake::{DATA, FRAMES, Guest, Ring, Wish, config, segments};
use super::tests::{LEN, image};
use super::*;
use crate::testing::fuzz::{Input, lives};
use xen_abi::Gref;
use xen_abi::io::blkif::BlkifOp;
use xen_domain::mem::Gfn;
use xen_domain::testing::{grant, revoke};
use xen_emu_api::device::{DiskCache, DiskFormat};

/// What RAM is filled with.
const FILL: u8 = 0xa5;
/// Frames that are granted, and of those the first ones for writing.
const GRANTED: u32 = 64;
const WRITABLE: u32 = 32;

#[test]
fn fuzz_of_a_disk() {
    lives("fuzz_of_a_disk", life);
}

fn life(input: &mut Input) -> u64 {
    let format = input.pick(&[DiskFormat::Raw, DiskFormat::Qcow2]);
    let file = image(format);
    let blk = Blk::open(&config(file.path(), format, DiskCache::Unsafe), 4).unwrap();
    let engine = input.pick(&[EngineKind::Threads, EngineKind::Uring]);
    let mut guest = Guest::new(blk.with_engine(engine), FILL);
    let frames = u32::try_from(FRAMES).unwrap();
    (DATA..frames).for_each(|n| assert!(!revoke(&*guest.ram, Gref(n)).unwrap()));
    (DATA..DATA + GRANTED).for_each(|gref| {
        grant(&*guest.ram, Gref(gref), Gfn(gref.into()), gref >= DATA + WRITABLE).unwrap();
    });
    let connections = 1 + input.below(3);
    let requests = (0..connections).map(|_| connection(&mut guest, input)).sum();
    let touched = (DATA + WRITABLE..frames).find(|n| guest.page(*n) != [FILL; 4096]);
    assert_eq!(touched, None, "a page that was not granted for writing");
    if format == DiskFormat::Raw {
        assert_eq!(file.as_file().metadata().unwrap().len(), LEN as u64);
    }
    // A process has one guest, whose memory goes with it.
    guest.ram.discard_all();
    requests
}

/// From connecting to disconnecting, in order or by force.
fn connection(guest: &mut Guest, input: &mut Input) -> u64 {
    guest.failures.lock().unwrap().clear();
    let wish = Wish {
        abi: input.pick(&[Abi::X64, Abi::X32]),
        queues: 1 + input.below(4),
        order: input.below(3),
        persistent: input.once_in(2),
    };
    guest.connect(wish).unwrap();
    let mut open = vec![0u64; guest.rings.len()];
    let (mut requests, mut honest) = (0, true);
    for _ in 0..input.below(300) {
        let n = input.below(wish.queues) as usize;
        let (ring, gref) = (&mut guest.rings[n], Gref(DATA + input.below(GRANTED)));
        match input.below(20) {
            0..12 if ring.ring.free() > 0 => {
                request(ring, input, requests);
                requests += 1;
                open[n] += 1;
            }
            12 | 13 => ring.publish(),
            14 => {
                while ring.take().is_some() {
                    open[n] -= 1;
                }
            }
            15 => drop(revoke(&*guest.ram, gref).unwrap()),
            16 => {
                let readonly = input.once_in(2);
                let frame = DATA + input.below(if readonly { GRANTED } else { WRITABLE });
                grant(&*guest.ram, gref, Gfn(frame.into()), readonly).unwrap();
            }
            17 => guest.fill(DATA + input.below(WRITABLE), &input.bytes(512)),
            18 if input.once_in(20) => {
                guest.blk.resize(None).unwrap();
            }
            19 if input.once_in(20) => {
                let near = input.below(100);
                ring.lie(if input.once_in(2) { near } else { input.below(u32::MAX) });
                honest = false;
                break;
            }
            _ => {}
        }
    }
    if honest && input.once_in(2) {
        for (ring, open) in guest.rings.iter_mut().zip(open) {
            ring.publish();
            ring.responses(usize::try_from(open).unwrap());
        }
    }
    if honest {
        assert_eq!(*guest.failures.lock().unwrap(), [""; 0]);
    }
    if input.once_in(2) {
        guest.blk.finish();
    }
    guest.blk.disconnect();
    assert_eq!(guest.pins.in_use(), 0, "pins are left");
    requests
}

fn request(ring: &mut Ring, input: &mut Input, id: u64) {
    let near = u64::from(input.below(u32::try_from(LEN / 512).unwrap() + 8));
    let sector = if input.once_in(8) { input.any() } else { near };
    let mut some = |most| {
        let one = |input: &mut Input| {
            let at = |input: &mut Input| u8::try_from(input.below(9)).unwrap();
            (DATA - 1 + input.below(GRANTED + 2), at(input), at(input))
        };
        segments(&(0..input.below(most)).map(|_| one(input)).collect::<Vec<_>>())
    };
    let (few, many) = (some(12), some(80));
    let operation = input.pick(&[
        BlkifOp::READ,
        BlkifOp::READ,
        BlkifOp::WRITE,
        BlkifOp::WRITE,
        BlkifOp::WRITE_BARRIER,
        BlkifOp::FLUSH_DISKCACHE,
    ]);
    match input.below(8) {
        0..4 => ring.direct(operation, id, sector, &few),
        4 | 5 => ring.indirect(operation, id, sector, &many, DATA + input.below(WRITABLE)),
        6 => ring.discard(id, sector, u64::from(input.below(5000))),
        _ => {
            let bytes = input.bytes(112);
            ring.put(&bytes[..ring.abi.slot()]);
        }
    }
}
