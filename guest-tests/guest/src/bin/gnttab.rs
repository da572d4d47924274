//! The grant table: size, version, frames in and outside RAM, and the two entries that are there from the start.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::events::{add_to_physmap, remove_from_physmap};
use guest::hypercall::{grant_table_op, hvm_get_param};
use guest::page::Page;
use guest::{Verdict, boot, check, check_eq, fail, println};
use xen_abi::grant_table::{
    GetVersion, GntStatus, GnttabOp, GrantEntryV1, QuerySize, RESERVED_CONSOLE, RESERVED_XENSTORE,
    SetVersion, V1_PER_FRAME, gtf,
};
use xen_abi::hvm::params::HvmParam;
use xen_abi::memory::MapSpace;
use xen_abi::xen::{Domid, Gref, PAGE_SHIFT};
use zerocopy::FromZeros;

guest::test!(run);

static INSIDE: Page = Page::zero();

fn entry(page: &Page, gref: u32) -> GrantEntryV1 {
    page.read(gref as usize * size_of::<GrantEntryV1>())
}

fn query_size() -> Result<QuerySize, guest::Stop> {
    let mut size =
        QuerySize { dom: Domid::SELF, status: GntStatus::GENERAL_ERROR, ..QuerySize::new_zeroed() };
    grant_table_op(GnttabOp::QUERY_SIZE.0, &mut size)?;
    Ok(size)
}

fn run() -> Verdict {
    let size = query_size()?;
    println!("grant table: {} of {} frames", size.nr_frames, size.max_nr_frames);
    check_eq!(size.status, GntStatus::OKAY, "query_size");
    check!(size.nr_frames >= 1 && size.nr_frames <= size.max_nr_frames, "frames in use");
    check!((4..=1024).contains(&size.max_nr_frames), "{} frames at most", size.max_nr_frames);

    let mut version = SetVersion { version: 1 };
    grant_table_op(GnttabOp::SET_VERSION.0, &mut version)?;
    check_eq!(version.version, 1, "set_version 1");
    let mut version = GetVersion { dom: Domid::SELF, pad: 0, version: 0 };
    grant_table_op(GnttabOp::GET_VERSION.0, &mut version)?;
    check_eq!(version.version, 1, "get_version");
    check!(grant_table_op(GnttabOp::SET_VERSION.0, &mut SetVersion { version: 3 }).is_err(), "version 3");

    let Some(hole) = boot::hole_gfn(0) else { fail!("no hole below 4 GiB") };
    println!("frame 0 at gfn {hole:#x}, outside RAM");
    add_to_physmap(MapSpace::GRANT_TABLE, 0, hole)?;
    let table = Page::at(hole << PAGE_SHIFT);
    reserved(table, RESERVED_CONSOLE, HvmParam::CONSOLE_PFN)?;
    reserved(table, RESERVED_XENSTORE, HvmParam::STORE_PFN)?;
    for gref in 2..V1_PER_FRAME {
        check_eq!(entry(table, gref), GrantEntryV1::new_zeroed(), "entry {gref} at the start");
    }
    moves(table, hole)?;
    all_frames(size.max_nr_frames)
}

fn reserved(table: &Page, gref: Gref, param: HvmParam) -> Verdict {
    let pfn = hvm_get_param(param)?;
    let found = entry(table, gref.0);
    println!("entry {gref}: {found:x?}, {param} {pfn:#x}");
    if pfn == 0 {
        check_eq!(found.flags & gtf::TYPE_MASK, gtf::INVALID, "type of entry {gref} without {param}");
        return Ok(());
    }
    check_eq!(found.flags & (gtf::TYPE_MASK | gtf::READONLY), gtf::PERMIT_ACCESS, "flags of entry {gref}");
    check_eq!(u64::from(found.frame), pfn, "frame of entry {gref}");
    check!(found.domid.is_ordinary(), "entry {gref} is granted to {}", found.domid);
    Ok(())
}

/// A frame is mapped where it was asked for last, with what was written to it.
fn moves(table: &Page, hole: u64) -> Verdict {
    let ours = GrantEntryV1 { flags: gtf::PERMIT_ACCESS, domid: Domid(0), frame: 0x1234 };
    table.write(100 * size_of::<GrantEntryV1>(), &ours);
    check_eq!(entry(table, 100), ours, "entry 100 after writing it");
    INSIDE.fill(0xaa);
    add_to_physmap(MapSpace::GRANT_TABLE, 0, INSIDE.gfn())?;
    check_eq!(entry(&INSIDE, 100), ours, "entry 100 where the frame was moved, inside RAM");
    INSIDE.write(100 * size_of::<GrantEntryV1>(), &GrantEntryV1::new_zeroed());
    add_to_physmap(MapSpace::GRANT_TABLE, 0, hole)?;
    check_eq!(entry(table, 100), GrantEntryV1::new_zeroed(), "entry 100 where the frame was moved back");
    remove_from_physmap(hole)?;
    check!(remove_from_physmap(hole).is_err(), "a frame can be removed twice");
    println!("the frame moves with its content");
    Ok(())
}

/// As Linux does: all frames, the highest first.
fn all_frames(max: u32) -> Verdict {
    let Some(hole) = boot::hole_gfn(16) else { fail!("no hole below 4 GiB") };
    let frames = max.min(32);
    for idx in (0..u64::from(frames)).rev() {
        add_to_physmap(MapSpace::GRANT_TABLE, idx, hole + idx)?;
    }
    let last = Page::at((hole + u64::from(frames) - 1) << PAGE_SHIFT);
    check_eq!(entry(last, 511), GrantEntryV1::new_zeroed(), "the last entry");
    last.write(0, &1_u64);
    let size = query_size()?;
    check!(size.nr_frames >= frames, "{} frames in use after mapping {frames}", size.nr_frames);
    let beyond = add_to_physmap(MapSpace::GRANT_TABLE, max.into(), hole + 64);
    check!(beyond.is_err(), "frame {max} of {max} can be mapped");
    Ok(())
}
