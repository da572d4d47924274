use proptest::prelude::*;
use xen_abi::io::ring::{BadIndex, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};

use crate::mem::{Fault, Gpa, GuestMem};
use crate::ring::{BackRing, RingError};
use crate::testing::{FakeRam, FrontRing};

/// Two pages that are no neighbours.
const PAGES: [Gpa; 2] = [Gpa(0x5000), Gpa(0x2000)];
/// A slot size that crosses pages.
const SLOT: usize = 112;

fn ring(ram: &FakeRam) -> (FrontRing, BackRing) {
    (FrontRing::init(ram, &PAGES, SLOT).unwrap(), BackRing::attach(ram, &PAGES, SLOT).unwrap())
}

fn at(ram: &FakeRam, offset: usize) -> u32 {
    ram.load_u32(PAGES[0].offset(offset as u64)).unwrap()
}

#[test]
fn requests_and_responses_pass_in_order_for_many_rounds() {
    let ram = FakeRam::new(0..8, 0);
    let (mut front, mut back) = ring(&ram);
    assert_eq!((front.size(), back.size()), (64, 64));
    let (mut sent, mut seen, mut answered) = (0u8, 0u8, 0u8);
    for round in 0..200u32 {
        for _ in 0..=round % 64 {
            assert_eq!(front.put(&ram, &[sent; SLOT]), Ok(true));
            sent = sent.wrapping_add(1);
        }
        front.publish(&ram).unwrap();
        assert_eq!(back.pending(&ram), Ok(round % 64 + 1));
        let mut request = [0; SLOT];
        while back.pop(&ram, &mut request).unwrap() {
            assert_eq!(request, [seen; SLOT]);
            seen = seen.wrapping_add(1);
            back.push(&ram, &[request[0]; 16]).unwrap();
        }
        let mut response = [0; 16];
        assert_eq!(front.take(&ram, &mut response), Ok(false), "not told yet");
        back.publish(&ram).unwrap();
        while front.take(&ram, &mut response).unwrap() {
            assert_eq!(response, [answered; 16]);
            answered = answered.wrapping_add(1);
        }
        assert_eq!((sent, seen, back.in_flight()), (seen, answered, 0));
    }
    assert_eq!(ram.changed(0), [2, 5].into());
}

#[test]
fn notifications_are_asked_for_and_given() {
    let ram = FakeRam::new(0..8, 0);
    let (mut front, mut back) = ring(&ram);
    let mut slot = [0; SLOT];
    front.put(&ram, &slot).unwrap();
    assert_eq!(front.publish(&ram), Ok(true), "a fresh ring asks for the first");
    assert!(back.pop(&ram, &mut slot).unwrap());
    front.put(&ram, &slot).unwrap();
    assert_eq!(front.publish(&ram), Ok(false), "not asked for");
    assert_eq!(back.final_check_for_requests(&ram), Ok(true), "there is one");
    assert!(back.pop(&ram, &mut slot).unwrap());
    assert_eq!((back.final_check_for_requests(&ram), at(&ram, REQ_EVENT)), (Ok(false), 3));
    assert_eq!((back.final_check_for(&ram, 2), at(&ram, REQ_EVENT)), (Ok(false), 4));
    front.put(&ram, &slot).unwrap();
    assert_eq!((front.publish(&ram), back.final_check_for(&ram, 2)), (Ok(false), Ok(false)));
    front.put(&ram, &slot).unwrap();
    assert_eq!((front.publish(&ram), back.final_check_for(&ram, 2)), (Ok(true), Ok(true)));
    assert_eq!(back.publish(&ram), Ok(false), "nothing to tell");
    back.push(&ram, &slot).unwrap();
    assert_eq!(back.publish(&ram), Ok(true));
    back.push(&ram, &slot).unwrap();
    assert_eq!(back.publish(&ram), Ok(false), "rsp_event still stands at 1");
    assert!(front.take(&ram, &mut slot).unwrap() && front.take(&ram, &mut slot).unwrap());
    assert_eq!((front.final_check_for_responses(&ram), at(&ram, RSP_EVENT)), (Ok(false), 3));
}

#[test]
fn impossible_indices_and_missing_pages_end_the_ring() {
    let ram = FakeRam::new(0..8, 0);
    let (mut front, mut back) = ring(&ram);
    let mut slot = [0; SLOT];
    let bad = |prod, cons| Err(RingError::Index(BadIndex { prod, cons, size: 64 }));
    front.lie(&ram, 65).unwrap();
    assert_eq!(back.pop(&ram, &mut slot), bad(65, 0).map(|()| false));
    front.lie(&ram, 64).unwrap();
    for _ in 0..64 {
        assert_eq!(back.pop(&ram, &mut slot), Ok(true));
    }
    front.lie(&ram, 65).unwrap();
    assert_eq!(back.pop(&ram, &mut slot), bad(65, 0).map(|()| false), "none of them is answered");
    front.lie(&ram, 63).unwrap();
    assert_eq!(back.pending(&ram), bad(63, 64).map(|()| 0), "it goes back");
    assert_eq!(back.push(&ram, &slot), Ok(()));
    assert_eq!(BackRing::attach(&ram, &PAGES, 0).err(), Some(Fault.into()));
    assert_eq!(BackRing::attach(&ram, &[], SLOT).err(), Some(Fault.into()));
    assert_eq!(BackRing::attach(&ram, &[PAGES[0], Gpa(0x9000)], SLOT).err(), Some(Fault.into()));
    ram.store_u32(PAGES[0].offset(RSP_PROD as u64), u32::MAX).unwrap();
    ram.store_u32(PAGES[0].offset(REQ_PROD as u64), 3).unwrap();
    let mut back = BackRing::attach(&ram, &PAGES, SLOT).unwrap();
    assert_eq!(back.pending(&ram), Ok(4), "it goes on where it was");
    assert!(back.push(&ram, &slot).is_err(), "an answer to nothing");
    ram.store_u32(PAGES[0].offset(REQ_PROD as u64), 64).unwrap();
    assert_eq!(BackRing::attach(&ram, &PAGES, SLOT).err(), bad(64, u32::MAX).err());
}

proptest! {
    /// Whatever a front-end writes into the ring, the back-end never takes more than a ring of requests ahead of its
    /// responses, never answers more than it took, and writes nothing but slots and its own indices.
    #[test]
    fn a_hostile_front_end_gets_nowhere(
        steps in prop::collection::vec((0u8..6, prop_oneof![0u32..80, any::<u32>()], 0usize..64), 1..200),
    ) {
        let ram = FakeRam::new(0..8, 0);
        let (_, mut back) = ring(&ram);
        let mut slot = [0; SLOT];
        for (what, value, offset) in steps {
            match what {
                0 => ram.store_u32(PAGES[0].offset(offset as u64 / 4 * 4), value).unwrap(),
                1 => ram.store_u32(PAGES[0], back.in_flight().wrapping_add(value)).unwrap(),
                2 => { let _ = back.push(&ram, &slot); }
                3 => { let _ = back.publish(&ram); }
                4 => { let _ = back.final_check_for(&ram, value); }
                _ => { while let Ok(true) = back.pop(&ram, &mut slot) {} }
            }
            prop_assert!(back.in_flight() <= back.size());
        }
        prop_assert!(ram.changed(0).is_subset(&[2, 5].into()));
    }
}
