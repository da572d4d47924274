//! Memory: the map by hypercall and by start info, and giving pages back and taking them again.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use guest::events::{add_to_physmap, remove_from_physmap};
use guest::hypercall::{self, address};
use guest::page::Page;
use guest::{Verdict, boot, check, check_eq, fail, println};
use xen_abi::Errno;
use xen_abi::hypercall::Hypercall;
use xen_abi::memory::{E820Entry, MapSpace, MemoryDomain, MemoryMap, MemoryOp, MemoryReservation};
use xen_abi::xen::{Domid, PAGE_SHIFT};
use zerocopy::FromZeros;

guest::test!(run);

static PAGES: [Page; 4] = [const { Page::zero() }; 4];

fn reservation(op: MemoryOp, gfns: &mut [u64; 4]) -> Result<i64, Errno> {
    let mut arg = MemoryReservation {
        extent_start: address(gfns),
        nr_extents: 4,
        extent_order: 0,
        domid: Domid::SELF,
        ..MemoryReservation::new_zeroed()
    };
    hypercall::op(Hypercall::MEMORY_OP, op.0, &mut arg)
}

fn pages(op: MemoryOp) -> Result<i64, Errno> {
    hypercall::op(Hypercall::MEMORY_OP, op.0, &mut MemoryDomain { domid: Domid::SELF })
}

fn run() -> Verdict {
    map()?;
    let (now, max) = (pages(MemoryOp::CURRENT_RESERVATION)?, pages(MemoryOp::MAXIMUM_RESERVATION)?);
    println!("{now} pages of {max}, {} in the map", boot::ram_pages());
    check!(now > 0 && max >= now, "{now} pages of {max}");
    balloon()?;
    remove()
}

fn map() -> Verdict {
    let mut entries = [E820Entry::new_zeroed(); 128];
    let mut arg = MemoryMap { nr_entries: 128, pad: 0, buffer: address(&mut entries) };
    check_eq!(hypercall::op(Hypercall::MEMORY_OP, MemoryOp::MEMORY_MAP.0, &mut arg), Ok(0), "memory_map");
    let count = usize::try_from(arg.nr_entries).unwrap_or(usize::MAX);
    check!((1..=128).contains(&count), "{count} entries");
    check_eq!(count, boot::memmap().count(), "entries against those of the start info");
    for (i, (by_call, by_info)) in entries.iter().zip(boot::memmap()).enumerate() {
        let by_call = (by_call.addr.get(), by_call.size.get(), by_call.r#type.get());
        check_eq!(by_call, (by_info.addr, by_info.size, by_info.r#type.0), "entry {i}");
    }
    let mut end = 0;
    for entry in boot::memmap() {
        check!(entry.addr >= end, "the entry at {:#x} overlaps or is out of order", entry.addr);
        end = entry.addr + entry.size;
    }
    println!("{count} entries, the same by hypercall and by start info");
    Ok(())
}

fn balloon() -> Verdict {
    let before = pages(MemoryOp::CURRENT_RESERVATION)?;
    PAGES.iter().for_each(|p| p.fill(0x5a));
    for round in 0..3 {
        let mut gfns = PAGES.each_ref().map(Page::gfn);
        check_eq!(reservation(MemoryOp::DECREASE_RESERVATION, &mut gfns), Ok(4), "round {round}: decrease");
        check_eq!(
            pages(MemoryOp::CURRENT_RESERVATION),
            Ok(before - 4),
            "round {round}: pages after decrease"
        );
        check_eq!(reservation(MemoryOp::POPULATE_PHYSMAP, &mut gfns), Ok(4), "round {round}: populate");
        check_eq!(gfns, PAGES.each_ref().map(Page::gfn), "round {round}: frames after populate");
        check_eq!(pages(MemoryOp::CURRENT_RESERVATION), Ok(before), "round {round}: pages after populate");
        for page in &PAGES {
            check_eq!(page.u64(2048).load(Ordering::SeqCst), 0, "round {round}: a fresh page");
            page.fill(0xa5);
            check_eq!(page.u64(8).load(Ordering::SeqCst), 0xa5a5_a5a5_a5a5_a5a5, "round {round}: written");
        }
    }
    println!("4 pages given back and taken again, 3 times");
    Ok(())
}

fn remove() -> Verdict {
    let Some(hole) = boot::hole_gfn(0) else { fail!("no hole below 4 GiB") };
    add_to_physmap(MapSpace::SHARED_INFO, 0, hole)?;
    let time = Page::at(hole << PAGE_SHIFT).u32(32 + 24);
    check!(time.load(Ordering::SeqCst) != 0, "no clock in the shared info page outside RAM");
    remove_from_physmap(hole)?;
    check!(remove_from_physmap(hole).is_err(), "a page can be removed twice");
    let [page, ..] = &PAGES;
    add_to_physmap(MapSpace::SHARED_INFO, 0, page.gfn())?;
    check!(page.u32(32 + 24).load(Ordering::SeqCst) != 0, "no clock in the shared info page inside RAM");
    println!("the shared info page comes and goes");
    Ok(())
}
