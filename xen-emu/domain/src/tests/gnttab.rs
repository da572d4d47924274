//! grant_table_op from the guest's side, in both widths and versions.

use proptest::prelude::*;
use xen_abi::errno::Errno;
use xen_abi::grant_table::{
    CACHE_CLEAN, CACHE_INVAL, CacheFlush, Copy, CopyPtr, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF,
    GetStatusFrames, GetVersion, GntStatus, GnttabOp, GrantEntryV1, GrantEntryV2, MapGrantRef, SetVersion,
    SwapGrantRef, Transfer, UnmapAndReplace, UnmapGrantRef, gntmap, gtf,
};
use xen_abi::memory::{AddToPhysmap, MapSpace, MemoryOp, XENMAPIDX_GRANT_TABLE_STATUS};
use xen_abi::{Domid, Gref};

use super::{BOTH, GNTTAB, MEMORY};
use crate::effect::Backend;
use crate::gnttab::{GrantError, Use};
use crate::hypercall::{Call, Outcome, Width};
use crate::mem::{Gfn, Gpa, GuestMem, SpecialPage};
use crate::peer::Ask;
use crate::testing::{Bench, Effect, result};

const OWN: Domid = Domid(7);
const ACCESS: u16 = gtf::PERMIT_ACCESS;

impl Bench {
    fn gnttab<T>(&mut self, op: GnttabOp, arg: &T) -> T
    where
        T: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable,
    {
        self.put(Self::ARG, arg);
        assert_eq!(result(self.call(GNTTAB, [op.0.into(), Self::ARG, 1])), Ok(0));
        self.get(Self::ARG)
    }

    fn v1(&self, gref: u64) -> GrantEntryV1 {
        self.get(SpecialPage::GrantFrame(0).home().0 + gref * 8)
    }

    fn grant_v1(&mut self, gref: u64, flags: u16, domid: Domid, frame: u32) {
        self.put(SpecialPage::GrantFrame(0).home().0 + gref * 8, &GrantEntryV1 { flags, domid, frame });
    }

    fn grant_v2(&mut self, gref: u64, entry: GrantEntryV2) {
        self.put(SpecialPage::GrantFrame(0).home().0 + gref * 16, &entry);
    }

    fn status_v2(&self, gref: u64) -> u16 {
        self.get(SpecialPage::GrantStatus(0).home().0 + gref * 2)
    }

    fn version(&mut self, version: u32) -> (Result<i64, Errno>, u32) {
        let (result, told) = self.op(GNTTAB, GnttabOp::SET_VERSION.0, &SetVersion { version });
        (result, told.version)
    }

    fn pin(&self, gref: u32, write: bool) -> Result<crate::gnttab::Pinned, GrantError> {
        let usage = Use { by: Domid::DOM0, write, whole: false };
        self.domain.grants.active.pin(&self.ram, Gref(gref), usage)
    }

    fn unpin(&self, gref: u32, write: bool) {
        self.domain.grants.active.unpin(&self.ram, Gref(gref), write);
    }

    fn copied(&mut self, copy: Copy) -> GntStatus {
        match self.width {
            Width::Bits64 => self.gnttab(GnttabOp::COPY, &copy).status,
            Width::Bits32 => self.gnttab(GnttabOp::COPY, &copy.to_compat_for_tests()).status,
        }
    }
}

/// The 32-bit layout of a copy.
trait Narrow {
    fn to_compat_for_tests(&self) -> xen_abi::grant_table::CopyCompat;
}

impl Narrow for Copy {
    fn to_compat_for_tests(&self) -> xen_abi::grant_table::CopyCompat {
        xen_abi::grant_table::CopyCompat {
            source: self.source.to_compat(),
            dest: self.dest.to_compat(),
            len: self.len,
            flags: self.flags,
            status: self.status,
            pad: 0,
        }
    }
}

fn end(u: u64, domid: Domid, offset: u16) -> CopyPtr {
    CopyPtr { u, domid, offset, pad: 0 }
}

fn copy(source: CopyPtr, dest: CopyPtr, len: u16, flags: u16) -> Copy {
    Copy { source, dest, len, flags, status: GntStatus(77), pad: 0 }
}

#[test]
fn a_guest_that_may_have_version_1_alone_is_told_that_there_is_no_other() {
    let mut b = Bench::new(Width::Bits64);
    b.domain.config.max_grant_version = 1;
    assert_eq!(b.version(2), (Err(Errno::ENOSYS), 1));
    assert_eq!(b.version(1), (Ok(0), 1));
}

#[test]
fn copies_go_by_grant_and_by_frame() {
    const S: u16 = GNTCOPY_SOURCE_GREF;
    const D: u16 = GNTCOPY_DEST_GREF;
    for width in BOTH {
        let mut b = Bench::new(width);
        b.grant_v1(10, ACCESS, OWN, 20);
        b.grant_v1(11, ACCESS | gtf::READONLY, OWN, 21);
        b.grant_v1(12, ACCESS, Domid::DOM0, 22);
        b.grant_v1(13, ACCESS, OWN, 99);
        b.put(20 << 12, b"from twenty.....");
        let me = Domid::SELF;
        assert_eq!(b.copied(copy(end(10, me, 5), end(30, me, 100), 6, S)), GntStatus::OKAY);
        assert_eq!(b.get::<[u8; 8]>((30 << 12) + 99), *b"\xa5twenty\xa5");
        assert_eq!(b.copied(copy(end(30, me, 100), end(10, OWN, 4094), 2, D)), GntStatus::OKAY);
        assert_eq!(b.get::<[u8; 2]>((20 << 12) + 4094), *b"tw");
        assert_eq!(b.copied(copy(end(30, me, 100), end(30, me, 101), 6, 0)), GntStatus::OKAY);
        assert_eq!(b.get::<[u8; 7]>((30 << 12) + 100), *b"ttwenty", "one page, as if by memmove");
        assert_eq!((b.v1(10).flags, b.domain.grants.active.in_use()), (ACCESS, 0));
        for (source, dest, len, flags, wanted) in [
            (end(10, me, 4095), end(30, me, 0), 2, S, GntStatus::BAD_COPY_ARG),
            (end(10, me, 0), end(30, me, 4000), 97, S, GntStatus::BAD_COPY_ARG),
            (end(10, me, 0), end(11, me, 0), 2, S | D, GntStatus::GENERAL_ERROR),
            (end(12, me, 0), end(30, me, 0), 2, S, GntStatus::GENERAL_ERROR),
            (end(9, me, 0), end(30, me, 0), 2, S, GntStatus::GENERAL_ERROR),
            (end(13, me, 0), end(30, me, 0), 2, S, GntStatus::BAD_PAGE),
            (end(512, me, 0), end(30, me, 0), 2, S, GntStatus::BAD_GNTREF),
            (end(10, me, 0), end(64, me, 0), 2, S, GntStatus::BAD_PAGE),
            (end(10, me, 0), end(0xffff_ffff, me, 0), 2, S, GntStatus::BAD_PAGE),
            (end(20, OWN, 0), end(30, me, 0), 2, 0, GntStatus::PERMISSION_DENIED),
            (end(10, Domid::DOM0, 0), end(30, me, 0), 2, S, GntStatus::GENERAL_ERROR),
            (end(10, Domid(8), 0), end(30, me, 0), 2, S, GntStatus::BAD_DOMAIN),
        ] {
            assert_eq!(b.copied(copy(source, dest, len, flags)), wanted, "{source:?} {dest:?}");
        }
        assert_eq!((b.v1(10).flags, b.domain.grants.active.in_use()), (ACCESS, 0));
    }
    let mut b = Bench::new(Width::Bits64);
    let home = SpecialPage::GrantFrame(0).home().gfn().0;
    let sly = copy(end(home, Domid::SELF, 0), end(30, Domid::SELF, 0), 2, 0);
    assert_eq!(b.copied(sly), GntStatus::BAD_PAGE, "our own addresses are no frames");
}

#[test]
fn arrays_are_continued_and_end_at_the_first_fault() {
    let mut b = Bench::new(Width::Bits64);
    let one = copy(end(20, Domid::SELF, 0), end(21, Domid::SELF, 0), 1, 0);
    for index in 0..40 {
        b.put(Bench::ARG + index * 40, &one);
    }
    let args = [GnttabOp::COPY.0.into(), Bench::ARG, 40, 0, 0, 0];
    let call = Call { vcpu: 0, nr: GNTTAB, args, width: Width::Bits64, cpl: 0 };
    let Outcome::Again(rest) = b.raw(call) else { panic!("not preempted") };
    assert_eq!(rest.args[1..3], [Bench::ARG + 32 * 40, 8]);
    assert_eq!(result(b.raw(rest)), Ok(0));
    let statuses = (0..41).map(|index| b.get::<Copy>(Bench::ARG + index * 40).status);
    assert_eq!(statuses.filter(|status| *status == GntStatus::OKAY).count(), 40);
    let copy_op = u64::from(GnttabOp::COPY.0);
    assert_eq!(result(b.call(GNTTAB, [copy_op, 0x2_0000, 0])), Ok(0));
    assert_eq!(result(b.call(GNTTAB, [copy_op, 0x2_0000, 1])), Err(Errno::EFAULT));
    assert_eq!(result(b.call(GNTTAB, [copy_op, Bench::ARG, 1 << 31])), Err(Errno::EINVAL));
}

#[test]
fn the_guest_maps_its_own_grants() {
    let mut b = Bench::new(Width::Bits64);
    b.grant_v1(10, ACCESS, OWN, 20);
    b.grant_v1(11, ACCESS | gtf::READONLY, OWN, 21);
    let host = gntmap::HOST_MAP;
    let ask = |host_addr, flags, gref, dom| MapGrantRef {
        host_addr,
        flags,
        r#ref: Gref(gref),
        dom,
        status: GntStatus(77),
        handle: 99,
        dev_bus_addr: 0,
    };
    let map = |b: &mut Bench, op| b.gnttab(GnttabOp::MAP_GRANT_REF, &op);
    for (op, wanted) in [
        (ask(0x100_0000, 0, 10, OWN), GntStatus::BAD_GNTREF),
        (ask(0x100_0000, host | gntmap::DEVICE_MAP, 10, OWN), GntStatus::GENERAL_ERROR),
        (ask(0x100_0000, host | gntmap::CONTAINS_PTE, 10, OWN), GntStatus::GENERAL_ERROR),
        (ask(0x100_0000, host | 1 << 16, 10, OWN), GntStatus::GENERAL_ERROR),
        (ask(0x100_0000, host, 10, Domid::SELF), GntStatus::BAD_DOMAIN),
        (ask(0x100_0000, host, 10, Domid(9)), GntStatus::BAD_DOMAIN),
        (ask(0x100_0000, host, 10, Domid::DOM0), GntStatus::GENERAL_ERROR),
        (ask(0x100_0000, host, 512, OWN), GntStatus::BAD_GNTREF),
        (ask(0x100_0000, host, 11, OWN), GntStatus::GENERAL_ERROR),
        (ask(0x1_0000, host, 10, OWN), GntStatus::GENERAL_ERROR),
        (ask(u64::MAX, host, 10, OWN), GntStatus::GENERAL_ERROR),
    ] {
        assert_eq!(map(&mut b, op).status, wanted, "{op:?}");
    }
    let asked = Effect::Ask(0, Domid(9), Ask::Map { gref: Gref(10), write: true });
    assert_eq!((b.v1(10).flags, b.effects()), (ACCESS, vec![asked]));
    let first = map(&mut b, ask(0x100_0000, host, 10, OWN));
    assert_eq!((first.status, first.handle, first.dev_bus_addr), (GntStatus::OKAY, 0, 0x1_4000));
    let second = map(&mut b, ask(0x100_1000, host | gntmap::READONLY, 11, OWN));
    assert_eq!((second.status, second.handle), (GntStatus::OKAY, 1));
    let (at, next) = (Gfn(0x1000), Gfn(0x1001));
    let shown = [Effect::MapGrant(at, Some((Gfn(20), true))), Effect::MapGrant(next, Some((Gfn(21), false)))];
    assert_eq!(b.effects(), shown);
    assert_eq!(map(&mut b, ask(0x100_0000, host, 10, OWN)).status, GntStatus::GENERAL_ERROR, "taken");
    assert_eq!(b.v1(10).flags, ACCESS | gtf::READING | gtf::WRITING);
    assert_eq!(b.v1(11).flags, ACCESS | gtf::READONLY | gtf::READING);
    assert_eq!(b.pin(10, false), Err(GrantError::BadDomain(10)), "in use by the guest itself");
    let add = AddToPhysmap { domid: OWN, size: 0, space: MapSpace::GRANT_TABLE, idx: 0, gpfn: at.0 };
    assert_eq!(b.op(MEMORY, MemoryOp::ADD_TO_PHYSMAP.0, &add).0, Err(Errno::EINVAL));
    assert!(b.domain.describe("gnttab").contains("2 mapped by the guest"));

    let unmap = |b: &mut Bench, host_addr, dev_bus_addr, handle| {
        let op = UnmapGrantRef { host_addr, dev_bus_addr, handle, status: GntStatus(77), pad: 0 };
        b.gnttab(GnttabOp::UNMAP_GRANT_REF, &op).status
    };
    let replace = |b: &mut Bench, host_addr, new_addr, handle| {
        let op = UnmapAndReplace { host_addr, new_addr, handle, status: GntStatus(77), pad: 0 };
        b.gnttab(GnttabOp::UNMAP_AND_REPLACE, &op).status
    };
    assert_eq!(unmap(&mut b, 0x100_0000, 0, 2), GntStatus::BAD_HANDLE);
    assert_eq!(unmap(&mut b, 0x100_0000, 0x1_5000, 0), GntStatus::GENERAL_ERROR);
    assert_eq!(unmap(&mut b, 0x100_1000, 0, 0), GntStatus::GENERAL_ERROR);
    assert_eq!(unmap(&mut b, 0, 0, 0), GntStatus::OKAY, "nothing asked");
    assert_eq!(replace(&mut b, 0x100_0000, 0x100_5000, 0), GntStatus::GENERAL_ERROR);
    assert_eq!(replace(&mut b, 0x100_0000, 0, 5), GntStatus::BAD_HANDLE);
    assert_eq!(b.effects(), []);
    assert_eq!(replace(&mut b, 0x100_0000, 0, 0), GntStatus::OKAY);
    assert_eq!(unmap(&mut b, 0x100_0000, 0, 0), GntStatus::BAD_HANDLE);
    assert_eq!(unmap(&mut b, 0x100_1000, 0x1_5000, 1), GntStatus::OKAY);
    assert_eq!(b.effects(), [Effect::MapGrant(at, None), Effect::MapGrant(next, None)]);
    assert_eq!((b.v1(10).flags, b.v1(11).flags), (ACCESS, ACCESS | gtf::READONLY));
    b.fx.out_of_memory = true;
    assert_eq!(map(&mut b, ask(0x100_0000, host, 10, OWN)).status, GntStatus::GENERAL_ERROR);
    assert_eq!((b.v1(10).flags, b.domain.grants.active.in_use()), (ACCESS, 0));
}

#[test]
fn the_version_changes_and_the_reserved_entries_stay() {
    for width in BOTH {
        let mut b = Bench::new(width);
        b.with(|domain, cx| domain.connect_backend(Backend::Store, cx)).unwrap();
        b.pin(1, true).unwrap_err();
        b.grant_v1(1, ACCESS, Domid::DOM0, 5);
        b.pin(1, true).unwrap();
        b.grant_v1(9, ACCESS, Domid::DOM0, 20);
        b.pin(9, false).unwrap();
        assert_eq!(b.version(2), (Err(Errno::EBUSY), 1));
        b.unpin(9, false);
        assert_eq!(b.version(2), (Ok(0), 2));
        assert_eq!(b.status_v2(1), gtf::READING | gtf::WRITING);
        let first: GrantEntryV2 = b.get(SpecialPage::GrantFrame(0).home().0 + 16);
        assert_eq!((first.flags, first.domid, first.frame), (ACCESS, Domid::DOM0, 5));
        assert_eq!(b.pin(9, false), Err(GrantError::BadRef(9)), "gone");
        b.unpin(1, true);
        assert_eq!(b.status_v2(1), 0);
        b.pin(1, false).unwrap();
        let dom = Domid::SELF;
        let told = b.gnttab(GnttabOp::GET_VERSION, &GetVersion { dom, pad: 0, version: 0 });
        assert_eq!(told.version, 2);

        let idx = XENMAPIDX_GRANT_TABLE_STATUS;
        let add = |b: &mut Bench, idx| {
            let add = AddToPhysmap { domid: dom, size: 0, space: MapSpace::GRANT_TABLE, idx, gpfn: 0x200 };
            match b.width {
                Width::Bits64 => b.op(MEMORY, MemoryOp::ADD_TO_PHYSMAP.0, &add).0,
                Width::Bits32 => b.op(MEMORY, MemoryOp::ADD_TO_PHYSMAP.0, &add.to_compat()).0,
            }
        };
        assert_eq!((add(&mut b, idx), add(&mut b, idx | 1)), (Ok(0), Err(Errno::EINVAL)));
        let ask = |b: &mut Bench, nr_frames| {
            let ask = GetStatusFrames { nr_frames, dom, status: GntStatus(77), frame_list: 0x9000 };
            match b.width {
                Width::Bits64 => b.gnttab(GnttabOp::GET_STATUS_FRAMES, &ask).status,
                Width::Bits32 => b.gnttab(GnttabOp::GET_STATUS_FRAMES, &ask.to_compat()).status,
            }
        };
        assert_eq!((ask(&mut b, 1), b.get::<u64>(0x9000)), (GntStatus::OKAY, 0x200));
        assert_eq!(ask(&mut b, 2), GntStatus::GENERAL_ERROR);
        b.effects();
        let high = GrantEntryV2 { flags: ACCESS, domid: Domid::DOM0, page_off: 0, length: 0, frame: 1 << 32 };
        b.grant_v2(3, high);
        assert_eq!(b.version(1), (Err(Errno::ERANGE), 2));
        b.grant_v2(3, GrantEntryV2 { flags: gtf::ACCEPT_TRANSFER, ..high });
        assert_eq!(b.version(1), (Ok(0), 1));
        assert_eq!(b.effects(), [Effect::MapSpecial(SpecialPage::GrantStatus(0), None)]);
        assert_eq!(b.v1(1), GrantEntryV1 { flags: ACCESS | gtf::READING, domid: Domid::DOM0, frame: 5 });
        assert_eq!(b.v1(3), GrantEntryV1 { flags: 0, domid: Domid(0), frame: 0 });
        b.unpin(1, false);
        assert_eq!(b.v1(1).flags, ACCESS);
        assert_eq!((ask(&mut b, 1), add(&mut b, idx)), (GntStatus::GENERAL_ERROR, Err(Errno::EINVAL)));
    }
}

#[test]
fn version_2_grants_parts_of_pages() {
    let mut b = Bench::new(Width::Bits64);
    b.version(2).0.unwrap();
    let part = GrantEntryV2 {
        flags: ACCESS | gtf::SUB_PAGE,
        domid: Domid::DOM0,
        page_off: 100,
        length: 50,
        frame: 20,
    };
    b.grant_v2(8, part);
    b.grant_v2(9, GrantEntryV2 { page_off: 4000, length: 500, ..part });
    b.grant_v2(10, GrantEntryV2 { page_off: 4096, ..part });
    b.grant_v2(11, GrantEntryV2 { flags: gtf::TRANSITIVE, ..part });
    b.grant_v2(12, GrantEntryV2 { flags: ACCESS | gtf::READONLY, ..part });
    b.grant_v2(13, GrantEntryV2 { flags: ACCESS, frame: SpecialPage::Store.home().gfn().0, ..part });
    b.grant_v2(14, GrantEntryV2 { domid: OWN, ..part });
    let pinned = |b: &Bench, gref, write| b.pin(gref, write).map(|pinned| (pinned.gpa.0, pinned.len));
    assert_eq!(pinned(&b, 8, true), Ok((0x1_4064, 50)));
    assert_eq!(pinned(&b, 9, false), Ok((0x1_4fa0, 96)), "cut at the page's end");
    assert_eq!(pinned(&b, 10, false), Err(GrantError::BadFrame(10)));
    assert_eq!(pinned(&b, 11, false), Err(GrantError::Transitive(11)));
    assert_eq!(pinned(&b, 12, true), Err(GrantError::ReadOnly(12)));
    assert_eq!(pinned(&b, 12, false), Ok((0x1_4000, 4096)));
    assert_eq!(pinned(&b, 12, true), Err(GrantError::ReadOnly(12)));
    assert_eq!(pinned(&b, 13, false), Err(GrantError::BadFrame(13)), "no frame of the guest");
    assert_eq!(pinned(&b, 256, false), Err(GrantError::NoEntry(256)));
    let bits = gtf::READING | gtf::WRITING;
    let told = [8, 9, 10, 11, 12, 13].map(|gref| b.status_v2(gref));
    assert_eq!(told, [bits, gtf::READING, 0, 0, gtf::READING, 0]);
    let flags: GrantEntryV2 = b.get(SpecialPage::GrantFrame(0).home().0 + 8 * 16);
    assert_eq!(flags, part, "the entry itself is not written");
    let map = MapGrantRef {
        host_addr: 0x100_0000,
        flags: gntmap::HOST_MAP,
        r#ref: Gref(14),
        dom: OWN,
        status: GntStatus(77),
        handle: 0,
        dev_bus_addr: 0,
    };
    assert_eq!(b.gnttab(GnttabOp::MAP_GRANT_REF, &map).status, GntStatus::GENERAL_ERROR);
    let within = copy(end(14, OWN, 110), end(30, Domid::SELF, 0), 40, GNTCOPY_SOURCE_GREF);
    assert_eq!(b.copied(within), GntStatus::OKAY);
    assert_eq!(b.copied(Copy { len: 41, ..within }), GntStatus::GENERAL_ERROR);
    assert_eq!(b.copied(Copy { source: end(14, OWN, 99), ..within }), GntStatus::GENERAL_ERROR);
}

#[test]
fn entries_are_swapped_unless_in_use() {
    for version in [1, 2] {
        let mut b = Bench::new(Width::Bits64);
        b.version(version).0.unwrap();
        let size = if version == 1 { 8 } else { 16 };
        let at = |gref: u64| SpecialPage::GrantFrame(0).home().0 + gref * size;
        for (gref, flags, frame) in [(20u64, ACCESS, 1u64), (21, ACCESS | gtf::READONLY, 2)] {
            if version == 1 {
                b.grant_v1(gref, flags, Domid::DOM0, u32::try_from(frame).unwrap());
            } else {
                b.grant_v2(gref, GrantEntryV2 { flags, domid: Domid::DOM0, page_off: 0, length: 0, frame });
            }
        }
        let (old_a, old_b): ([u8; 8], [u8; 8]) = (b.get(at(20)), b.get(at(21)));
        let swap = |b: &mut Bench, a, c| {
            let op = SwapGrantRef { ref_a: Gref(a), ref_b: Gref(c), status: GntStatus(77), pad: 0 };
            b.gnttab(GnttabOp::SWAP_GRANT_REF, &op).status
        };
        assert_eq!(swap(&mut b, 20, 21), GntStatus::OKAY);
        assert_eq!((b.get(at(20)), b.get(at(21))), (old_b, old_a));
        let entries = if version == 1 { 512 } else { 256 };
        assert_eq!(swap(&mut b, entries, 20), GntStatus::BAD_GNTREF);
        assert_eq!(swap(&mut b, 20, u32::MAX), GntStatus::BAD_GNTREF);
        b.pin(20, false).unwrap();
        assert_eq!(swap(&mut b, 20, 20), GntStatus::OKAY);
        assert_eq!((swap(&mut b, 20, 21), swap(&mut b, 21, 20)), (GntStatus::EAGAIN, GntStatus::EAGAIN));
        b.unpin(20, false);
        assert_eq!(swap(&mut b, 21, 20), GntStatus::OKAY);
        assert_eq!((b.get(at(20)), b.get(at(21))), (old_a, old_b));
    }
}

#[test]
fn what_comes_to_nothing_says_so() {
    let mut b = Bench::new(Width::Bits64);
    let flush = |b: &mut Bench, a, offset, length, op| {
        b.put(Bench::ARG, &CacheFlush { a, offset, length, op });
        result(b.call(GNTTAB, [GnttabOp::CACHE_FLUSH.0.into(), Bench::ARG, 1]))
    };
    assert_eq!(flush(&mut b, 0x3000, 0, 4096, CACHE_CLEAN | CACHE_INVAL), Ok(0));
    assert_eq!(flush(&mut b, 0x3000, 0, 4096, CACHE_INVAL), Err(Errno::EOPNOTSUPP));
    assert_eq!(flush(&mut b, 0x3000, 1, 4096, CACHE_CLEAN), Err(Errno::EINVAL));
    assert_eq!(flush(&mut b, 0x3000, 0, 64, 1 << 31 | CACHE_CLEAN), Err(Errno::EINVAL));
    assert_eq!(flush(&mut b, 0x4_0000, 0, 64, CACHE_CLEAN), Err(Errno::EINVAL));
    assert_eq!(flush(&mut b, 0x4_0000, 0, 0, CACHE_CLEAN), Ok(0));
    let give =
        |mfn| Transfer { mfn, domid: Domid(0), pad0: 0, r#ref: Gref(8), status: GntStatus(77), pad1: [0; 3] };
    assert_eq!(b.gnttab(GnttabOp::TRANSFER, &give(3)).status, GntStatus::GENERAL_ERROR);
    assert_eq!(b.gnttab(GnttabOp::TRANSFER, &give(64)).status, GntStatus::BAD_PAGE);
    let mut byte = [0];
    assert_eq!(b.ram.read(Gpa(0x3000), &mut byte).map(|()| byte), Ok([Bench::FILL]));
}

proptest! {
    /// Whatever is copied, it is the bytes of a page of the guest's own to another, and nothing stays pinned.
    #[test]
    fn hostile_copies_stay_inside(
        ends in prop::array::uniform2((0u64..80, 0u16..0x2000, prop::sample::select(vec![7u16, 0, 8, 0x7ff0]))),
        len in 0u16..0x2000,
        flags in 0u16..4,
        version in 1u32..3,
        table in prop::collection::vec(any::<u8>(), 512),
    ) {
        let mut b = Bench::new(Width::Bits64);
        b.version(version).0.unwrap();
        b.ram.write(SpecialPage::GrantFrame(0).home(), &table).unwrap();
        let [source, dest] = ends.map(|(u, offset, domid)| end(u, Domid(domid), offset));
        b.put(20 << 12, &[1u8; 64]);
        let before = b.ram.changed(Bench::FILL);
        let status = b.copied(copy(source, dest, len, flags));
        let after = b.ram.changed(Bench::FILL);
        let more = after.difference(&before).filter(|gfn| **gfn != Bench::ARG >> 12).count();
        prop_assert!(more <= usize::from(status == GntStatus::OKAY && len > 0));
        prop_assert_eq!(b.domain.grants.active.in_use(), 0);
    }
}
