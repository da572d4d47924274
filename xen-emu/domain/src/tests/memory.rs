use xen_abi::errno::Errno;
use xen_abi::grant_table::{GntStatus, GnttabOp, QuerySize, SetVersion, SetupTable};
use xen_abi::memory::{
    AddToPhysmap, AddToPhysmapBatch, E820Entry, ForeignMemoryMap, MapSpace, MemoryDomain, MemoryMap,
    MemoryOp, MemoryReservation, RemoveFromPhysmap,
};
use xen_abi::shared_info::Layout;
use xen_abi::xen::Domid;
use zerocopy::IntoBytes;

use super::{BOTH, GNTTAB, MEMORY};
use crate::domain::Domain;
use crate::hypercall::{Call, Outcome, Width};
use crate::mem::{Gfn, Gpa, GuestMem, SpecialPage};
use crate::testing::{Bench, Effect, result};

/// A struct of arguments in the layout of the caller.
macro_rules! narrow {
    ($bench:ident, $arg:expr) => {
        match $bench.width {
            Width::Bits64 => $bench.put(Bench::ARG, &$arg),
            Width::Bits32 => $bench.put(Bench::ARG, &$arg.to_compat()),
        }
    };
}

impl Bench {
    fn memory(&mut self, op: MemoryOp) -> Result<i64, Errno> {
        result(self.call(MEMORY, [op.0.into(), Self::ARG]))
    }

    fn place(&mut self, space: MapSpace, idx: u64, gpfn: u64) -> Result<i64, Errno> {
        narrow!(self, AddToPhysmap { domid: Domid::SELF, size: 0, space, idx, gpfn });
        self.memory(MemoryOp::ADD_TO_PHYSMAP)
    }

    fn remove(&mut self, gpfn: u64) -> Result<i64, Errno> {
        narrow!(self, RemoveFromPhysmap { domid: Domid::SELF, pad: [0; 3], gpfn });
        self.memory(MemoryOp::REMOVE_FROM_PHYSMAP)
    }

    fn reservation(&mut self, op: MemoryOp, extent_order: u32, gfns: &[u64]) -> Result<i64, Errno> {
        let width = self.width;
        for (index, gfn) in (0..).zip(gfns) {
            self.with(|_, cx| cx.put_long(width, 0x9000, index, *gfn)).unwrap();
        }
        let nr_extents = gfns.len() as u64;
        narrow!(
            self,
            MemoryReservation {
                extent_start: 0x9000,
                nr_extents,
                extent_order,
                mem_flags: 0,
                domid: Domid::SELF,
                pad: [0; 3],
            }
        );
        self.memory(op)
    }

    fn ask(&mut self, op: MemoryOp) -> Result<i64, Errno> {
        self.put(Self::ARG, &MemoryDomain { domid: Domid::SELF });
        self.memory(op)
    }
}

#[test]
fn shared_info_is_placed_moved_and_removed() {
    for width in BOTH {
        let mut b = Bench::new(width);
        assert_eq!(b.place(MapSpace::SHARED_INFO, 0, 1), Ok(0));
        let page = SpecialPage::SharedInfo;
        let slot = |vcpu: u64| Gpa(0x1000 + 64 * vcpu);
        let infos = (0..4).map(|v| Effect::VcpuInfo(v, Some(slot(v.into()))));
        let wanted: Vec<_> = [Effect::MapSpecial(page, Some(Gfn(1)))].into_iter().chain(infos).collect();
        assert_eq!(b.effects(), wanted);
        assert_eq!(b.ask(MemoryOp::CURRENT_RESERVATION), Ok(63), "the RAM page beneath is lost, as on Xen");
        let layout = Layout::of(width.into());
        let wc = page.home().0 + layout.wc_version as u64;
        assert_eq!(b.get::<[u32; 3]>(wc), [2, 1_700_000_000, 123], "even version, boot time");
        assert_eq!(b.get::<u32>(page.home().0 + layout.wc_sec_hi as u64), 0);
        assert_eq!(b.place(MapSpace::SHARED_INFO, 0, 0xffff0), Ok(0));
        let effects = b.effects();
        assert_eq!(
            effects[..2],
            [Effect::MapSpecial(page, Some(Gfn(0xffff0))), Effect::ReleaseRam(Gfn(1), 1)]
        );
        assert_eq!(b.ask(MemoryOp::MAXIMUM_GPFN), Ok(0xffff0));
        assert_eq!(b.remove(0xffff0), Ok(0));
        assert_eq!(b.effects()[..2], [Effect::MapSpecial(page, None), Effect::VcpuInfo(0, None)]);
        assert_eq!(b.remove(0xffff0), Err(Errno::ENOENT));
        assert_eq!(b.remove(1), Err(Errno::ENOENT), "the hole it left");
    }
}

#[test]
fn map_spaces_have_xens_errors() {
    let mut b = Bench::new(Width::Bits64);
    let cases = [
        (MapSpace::SHARED_INFO, 1, 0x100, Err(Errno::EINVAL)),
        (MapSpace::SHARED_INFO, 0, 1 << 40, Err(Errno::EINVAL)),
        (MapSpace::GRANT_TABLE, 3, 0x103, Ok(0)),
        (MapSpace::GRANT_TABLE, 4, 0x104, Err(Errno::EINVAL)),
        (MapSpace::GRANT_TABLE, 0x8000_0000, 0x104, Err(Errno::EINVAL)),
        (MapSpace::GRANT_TABLE, u64::MAX, 0x104, Err(Errno::EINVAL)),
        (MapSpace::GMFN_FOREIGN, 0, 0x104, Err(Errno::ENOSYS)),
        (MapSpace::DEV_MMIO, 0, 0x104, Err(Errno::EACCES)),
        (MapSpace(77), 0, 0x104, Err(Errno::EINVAL)),
    ];
    for (space, idx, gfn, wanted) in cases {
        assert_eq!(b.place(space, idx, gfn), wanted, "{space} {idx:#x} at {gfn:#x}");
    }
    b.effects();
    // A second page at the same frame sends the first one home.
    b.place(MapSpace::GRANT_TABLE, 0, 0x103).unwrap();
    assert_eq!(
        b.effects(),
        [
            Effect::MapSpecial(SpecialPage::GrantFrame(3), None),
            Effect::MapSpecial(SpecialPage::GrantFrame(0), Some(Gfn(0x103))),
        ]
    );
}

#[test]
fn a_batch_reports_entry_by_entry() {
    for width in BOTH {
        let mut b = Bench::new(width);
        for (index, (idx, gfn)) in (0..).zip([(0, 0x200), (9, 0x201), (2, 0x202)]) {
            b.with(|_, cx| cx.put_long(width, 0x9000, index, idx)).unwrap();
            b.with(|_, cx| cx.put_long(width, 0xa000, index, gfn)).unwrap();
        }
        let space = u16::try_from(MapSpace::GRANT_TABLE.0).unwrap();
        narrow!(
            b,
            AddToPhysmapBatch {
                domid: Domid::SELF,
                space,
                size: 3,
                foreign_domid: Domid(0),
                idxs: 0x9000,
                gpfns: 0xa000,
                errs: 0xb000,
            }
        );
        assert_eq!(b.memory(MemoryOp::ADD_TO_PHYSMAP_BATCH), Ok(0));
        assert_eq!(b.get::<[i32; 3]>(0xb000), [0, -22, 0]);
    }
}

#[test]
fn the_balloon_goes_both_ways_within_its_bounds() {
    for width in BOTH {
        let mut b = Bench::new(width);
        let (decrease, populate) = (MemoryOp::DECREASE_RESERVATION, MemoryOp::POPULATE_PHYSMAP);
        assert_eq!(b.reservation(decrease, 0, &[40, 39, 38, 50, 51]), Ok(5));
        assert_eq!(b.effects(), [Effect::ReleaseRam(Gfn(38), 3), Effect::ReleaseRam(Gfn(50), 2)]);
        assert_eq!((b.ask(MemoryOp::CURRENT_RESERVATION), b.domain.pages()), (Ok(59), 59));
        assert_eq!(b.reservation(decrease, 0, &[41, 40, 42]), Ok(1), "40 is gone already");
        assert_eq!(b.reservation(decrease, 0, &[64]), Ok(0), "no RAM there");
        assert_eq!(b.reservation(decrease, 10, &[0]), Ok(0), "too large an order");
        b.effects();
        assert_eq!(b.reservation(populate, 0, &[38, 41]), Ok(2));
        assert_eq!(b.effects(), [Effect::PopulateRam(Gfn(38), 1), Effect::PopulateRam(Gfn(41), 1)]);
        b.domain.set_max_pages(61);
        assert_eq!(b.ask(MemoryOp::MAXIMUM_RESERVATION), Ok(61));
        assert_eq!(b.reservation(populate, 0, &[39, 40]), Ok(1), "max_pages");
        b.fx.out_of_memory = true;
        b.domain.set_max_pages(64);
        assert_eq!(b.reservation(populate, 0, &[40]), Ok(0), "the host has none");
        assert_eq!(b.domain.pages(), 61);
        assert_eq!(b.reservation(MemoryOp::INCREASE_RESERVATION, 0, &[0]), Ok(0));
        assert_eq!((b.remove(5), b.remove(5)), (Ok(0), Err(Errno::ENOENT)));
    }
}

#[test]
fn long_balloon_calls_are_continued_where_they_stopped() {
    // 40 extents of order 9 are 20480 frames: five goes.
    let mut big = Bench::new(Width::Bits64);
    let mut params = big.domain.config.clone();
    params.memory_map[0].size = 64 << 21;
    (params.pages, params.max_pages) = (64 << 9, 64 << 9);
    big.domain = Domain::new(params);
    let gfns: Vec<u64> = (10..50).map(|n| n << 9).collect();
    for (index, gfn) in (0..).zip(&gfns) {
        big.put(0x9000 + 8 * index, gfn);
    }
    let all = MemoryReservation {
        extent_start: 0x9000,
        nr_extents: 40,
        extent_order: 9,
        mem_flags: 0,
        domid: Domid::SELF,
        pad: [0; 3],
    };
    big.put(Bench::ARG, &all);
    let args = [MemoryOp::DECREASE_RESERVATION.0.into(), Bench::ARG, 0, 0, 0, 0];
    let call = Call { vcpu: 0, nr: MEMORY, args, width: Width::Bits64, cpl: 0 };
    let Outcome::Again(rest) = big.raw(call) else { panic!("not preempted") };
    assert_eq!(rest.args, [1 | 8 << 6, Bench::ARG, 0, 0, 0, 0], "start_extent above MEMOP_EXTENT_SHIFT");
    assert_eq!(result(big.call(MEMORY, [rest.args[0], Bench::ARG])), Ok(40));
    assert_eq!(big.domain.pages(), (64 - 40) << 9);
    assert_eq!(big.effects().len(), 5, "one release for each go");
}

#[test]
fn the_memory_map_is_told_and_may_be_changed() {
    for width in BOTH {
        let mut b = Bench::new(width);
        narrow!(b, MemoryMap { nr_entries: 10, pad: 0, buffer: 0x9ff8 });
        assert_eq!(b.memory(MemoryOp::MEMORY_MAP), Ok(0));
        assert_eq!(b.get::<u32>(Bench::ARG), 2);
        let told: [E820Entry; 2] = [b.get(0x9ff8), b.get(0x9ff8 + 20)];
        assert_eq!((told[0].size.get(), told[1].addr.get()), (64 << 12, 0xfef0_0000), "across a page");
        b.with(|_, cx| cx.copy_out(0x9000, told[1].as_bytes())).unwrap();
        let map = MemoryMap { nr_entries: 1, pad: 0, buffer: 0x9000 };
        match width {
            Width::Bits64 => b.put(Bench::ARG, &ForeignMemoryMap { domid: Domid::SELF, pad: [0; 3], map }),
            Width::Bits32 => {
                b.put(Bench::ARG, &Domid::SELF);
                b.put(Bench::ARG + 4, &map.to_compat());
            }
        }
        assert_eq!(b.memory(MemoryOp::SET_MEMORY_MAP), Ok(0));
        narrow!(b, MemoryMap { nr_entries: 10, pad: 0, buffer: 0x9000 });
        b.memory(MemoryOp::MEMORY_MAP).unwrap();
        assert_eq!(b.get::<u32>(Bench::ARG), 1);
        narrow!(b, MemoryMap { nr_entries: 10, pad: 0, buffer: 0x2_0000 });
        assert_eq!(b.memory(MemoryOp::MEMORY_MAP), Err(Errno::EFAULT));
        b.put(Bench::ARG, &MemoryDomain { domid: Domid(0) });
        assert_eq!(b.memory(MemoryOp::MAXIMUM_GPFN), Err(Errno::EPERM));
        assert_eq!(b.memory(MemoryOp::EXCHANGE), Err(Errno::ENOSYS));
    }
}

#[test]
fn the_grant_table_grows_as_frames_are_placed() {
    let mut b = Bench::new(Width::Bits64);
    let gnttab =
        |b: &mut Bench, op: GnttabOp, count: u64| result(b.call(GNTTAB, [op.0.into(), Bench::ARG, count]));
    let query = QuerySize {
        dom: Domid::SELF,
        pad0: 0,
        nr_frames: 0,
        max_nr_frames: 0,
        status: GntStatus::OKAY,
        pad1: 0,
    };
    b.put(Bench::ARG, &query);
    assert_eq!(gnttab(&mut b, GnttabOp::QUERY_SIZE, 2), Err(Errno::EINVAL));
    assert_eq!(gnttab(&mut b, GnttabOp::QUERY_SIZE, 1), Ok(0));
    let told: QuerySize = b.get(Bench::ARG);
    assert_eq!((told.nr_frames, told.max_nr_frames), (1, 4));
    b.place(MapSpace::GRANT_TABLE, 1, 0x101).unwrap();
    let setup = SetupTable {
        dom: Domid::SELF,
        pad0: 0,
        nr_frames: 3,
        status: GntStatus::EAGAIN,
        pad1: [0; 3],
        frame_list: 0x9000,
    };
    b.put(Bench::ARG, &setup);
    assert_eq!(gnttab(&mut b, GnttabOp::SETUP_TABLE, 1), Ok(0));
    assert_eq!(b.get::<SetupTable>(Bench::ARG).status, GntStatus::OKAY);
    assert_eq!(b.get::<[u64; 3]>(0x9000), [u64::MAX, 0x101, u64::MAX]);
    assert_eq!(b.domain.describe("gnttab"), "gnttab: version 1, 3 of 4 frames\n");
    b.put(Bench::ARG, &SetupTable { nr_frames: 5, ..setup });
    gnttab(&mut b, GnttabOp::SETUP_TABLE, 1).unwrap();
    assert_eq!(b.get::<SetupTable>(Bench::ARG).status, GntStatus::GENERAL_ERROR);
    for (version, wanted) in [(1, Ok(0)), (0, Err(Errno::EINVAL)), (3, Err(Errno::EINVAL))] {
        b.put(Bench::ARG, &SetVersion { version });
        assert_eq!(gnttab(&mut b, GnttabOp::SET_VERSION, 1), wanted);
        assert_eq!(b.get::<SetVersion>(Bench::ARG).version, 1);
    }
    assert_eq!(gnttab(&mut b, GnttabOp::DUMP_TABLE, 1), Err(Errno::ENOSYS));
    let mut byte = [0];
    assert_eq!(b.ram.read(Gpa(0), &mut byte).map(|()| byte), Ok([Bench::FILL]));
}
