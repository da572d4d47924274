use proptest::prelude::*;
use xen_abi::io::console::{IN_CONS, IN_PROD, IN_RING, OUT_CONS, OUT_PROD, OUT_RING};
use xen_abi::io::ring::BadIndex;

use crate::mem::{GuestMem, SpecialPage};
use crate::ring::{ConsoleIn, ConsoleOut, RingError, RingPage, SpecialRing};
use crate::testing::FakeRam;

fn page(ram: &FakeRam) -> SpecialRing<'_> {
    SpecialRing::new(ram, SpecialPage::Console)
}

#[test]
fn bytes_come_out_in_order_across_the_wrap() {
    let ram = FakeRam::default();
    let page = page(&ram);
    page.store(OUT_CONS, 2040).unwrap();
    page.store(OUT_PROD, 2040 + 20).unwrap();
    page.write(OUT_RING + 2040, b"over the").unwrap();
    page.write(OUT_RING, b" edge of it.").unwrap();
    let mut out = ConsoleOut::attach(&page).unwrap();
    let mut buf = [0; 15];
    assert_eq!(out.take(&page, &mut buf), Ok(15));
    assert_eq!(&buf, b"over the edge o");
    assert_eq!(page.load(OUT_CONS), Ok(2055));
    assert_eq!((out.take(&page, &mut buf), &buf[..5]), (Ok(5), &b"f it."[..]));
    assert_eq!(out.take(&page, &mut buf), Ok(0));
    page.store(OUT_PROD, 2060 + 2049).unwrap();
    let bad = BadIndex { prod: 4109, cons: 2060, size: 2048 };
    assert_eq!(out.take(&page, &mut buf), Err(RingError::Index(bad)));
    page.store(OUT_CONS, 9).unwrap();
    page.store(OUT_PROD, 2061).unwrap();
    assert_eq!(out.take(&page, &mut buf), Ok(1), "our own index is not taken from the page");
}

#[test]
fn typing_stops_when_the_ring_is_full() {
    let ram = FakeRam::default();
    let page = page(&ram);
    let start = u32::MAX - 9;
    page.store(IN_CONS, start).unwrap();
    page.store(IN_PROD, start).unwrap();
    let mut input = ConsoleIn::attach(&page).unwrap();
    assert_eq!(input.put(&page, &[7; 1000]), Ok(1000));
    assert_eq!((input.put(&page, &[8; 1000]), input.put(&page, &[8; 10])), (Ok(24), Ok(0)));
    assert_eq!(page.load(IN_PROD), Ok(start.wrapping_add(1024)));
    let mut byte = [0];
    page.read(IN_RING + (start.wrapping_add(1001) % 1024) as usize, &mut byte).unwrap();
    assert_eq!(byte, [8]);
}

proptest! {
    /// Whatever indices a front-end writes, only the ring's bytes and our index change.
    #[test]
    fn hostile_indices_touch_nothing_else(indices in prop::array::uniform4(any::<u32>()), len in 0usize..3000) {
        let ram = FakeRam::default();
        let page = page(&ram);
        for (offset, index) in [IN_CONS, IN_PROD, OUT_CONS, OUT_PROD].into_iter().zip(indices) {
            page.store(offset, index).unwrap();
        }
        let mut input = ConsoleIn::attach(&page).unwrap();
        let mut output = ConsoleOut::attach(&page).unwrap();
        let mut buf = vec![0; len];
        let put = input.put(&page, &vec![1; len]);
        let took = output.take(&page, &mut buf);
        prop_assert!(put.is_err() || put.unwrap() <= 1024.min(len));
        prop_assert!(took.is_err() || took.unwrap() <= 2048.min(len));
        let mut rest = [0; 4096 - OUT_RING];
        ram.read(SpecialPage::Console.home().offset(OUT_RING as u64), &mut rest).unwrap();
        prop_assert!(rest[..2048].iter().all(|byte| *byte == 0));
        prop_assert_eq!((page.load(IN_CONS), page.load(OUT_PROD)), (Ok(indices[0]), Ok(indices[3])));
    }
}
