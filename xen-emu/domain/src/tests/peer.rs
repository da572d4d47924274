//! Channels and grants between domains, both ends of them: domain 7 is the bench, 9 the other one.

use xen_abi::errno::Errno;
use xen_abi::event_channel::{EvtchnOp, EvtchnStat, Reset};
use xen_abi::grant_table::{
    Copy, CopyPtr, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GntStatus, GnttabOp, GrantEntryV1, MapGrantRef,
    UnmapGrantRef, gntmap, gtf,
};
use xen_abi::{Domid, Gref};

use super::{EVTCHN, GNTTAB};
use crate::effect::{Backend, Offload};
use crate::gnttab::Use;
use crate::hypercall::{Call, Outcome, Width};
use crate::mem::{Gfn, GuestMem, SpecialPage};
use crate::peer::{Ask, Foreign, Told};
use crate::testing::{Bench, Effect, result};

const OTHER: Domid = Domid(9);
const CHANNEL: Backend = Backend::Device(5);

impl Bench {
    fn told(&mut self, told: Told) {
        self.fx.answers.push_back(told);
    }

    fn seven_grants(&mut self, gref: u64, flags: u16, frame: u32) {
        let entry = GrantEntryV1 { flags, domid: OTHER, frame };
        self.put(SpecialPage::GrantFrame(0).home().0 + gref * 8, &entry);
    }

    fn flags(&self, gref: u64) -> u16 {
        self.get::<GrantEntryV1>(SpecialPage::GrantFrame(0).home().0 + gref * 8).flags
    }

    fn one<T>(&mut self, op: GnttabOp, arg: &T) -> T
    where
        T: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable,
    {
        self.put(Self::ARG, arg);
        assert_eq!(result(self.call(GNTTAB, [op.0.into(), Self::ARG, 1])), Ok(0));
        self.get(Self::ARG)
    }
}

#[test]
fn a_port_is_bound_when_the_other_domain_agrees() {
    let mut b = Bench::new(Width::Bits64);
    b.zero(0..1);
    b.told(Told::Bound(CHANNEL));
    let port = b.interdomain(OTHER, 3).unwrap();
    let ask = Ask::Bind { local: port, remote: 3 };
    let offload = Offload::Backend(CHANNEL, 0);
    let upcall = Effect::Upcall(0);
    assert_eq!(b.effects(), [Effect::Ask(0, OTHER, ask), Effect::Offload(port, offload), upcall]);
    assert_eq!(b.status(port), Ok((EvtchnStat::INTERDOMAIN, 9, 3, 0)));
    assert!(b.domain.describe("evtchn").contains("interdomain with port 3 of domain 9"));
    assert_eq!((b.send(port), b.effects()), (Ok(0), vec![Effect::Kick(CHANNEL)]));
    b.with(|domain, cx| domain.raise_backend(CHANNEL, cx));
    assert_eq!(b.seen(port, 0), (true, true, true));
    assert_eq!(b.bind_vcpu(port, 2), Ok(0));
    assert_eq!(b.effects(), [Effect::Offload(port, Offload::Backend(CHANNEL, 2))]);
    assert_eq!((b.close(port), b.effects()), (Ok(0), vec![Effect::LeavePeer(CHANNEL)]));
    assert!(!b.with(|domain, cx| domain.peer_left(CHANNEL, cx)));
    assert_eq!(b.status(port), Ok((EvtchnStat::CLOSED, 0, 0, 0)), "a late word changes nothing");
}

#[test]
fn a_port_that_is_not_bound_is_free_again() {
    let mut b = Bench::new(Width::Bits64);
    for (told, wanted) in [
        (Told::NotBound(Errno::EINVAL), Errno::EINVAL),
        (Told::Nobody, Errno::ESRCH),
        (Told::Done, Errno::EINVAL),
    ] {
        b.told(told);
        assert_eq!(b.interdomain(OTHER, 3), Err(wanted));
        assert_eq!(b.status(1), Ok((EvtchnStat::CLOSED, 0, 0, 0)));
    }
    assert_eq!(b.interdomain(Domid(0x7ff1), 3), Err(Errno::ESRCH));
    assert_eq!(b.effects().len(), 3, "a domid that no domain has is nobody's to answer");
    let full: Vec<u32> = (0..2000).map_while(|_| b.bind_ipi(0).ok()).collect();
    assert_eq!((full.len(), b.interdomain(OTHER, 3)), (1022, Err(Errno::ENOSPC)));
}

#[test]
fn nothing_touches_a_port_while_the_other_domain_thinks_but_a_reset() {
    let mut b = Bench::new(Width::Bits64);
    let bind = xen_abi::event_channel::BindInterdomain {
        remote_dom: OTHER,
        pad: 0,
        remote_port: xen_abi::xen::Port(3),
        local_port: xen_abi::xen::Port(0),
    };
    b.put(Bench::ARG, &bind);
    let args = [EvtchnOp::BIND_INTERDOMAIN.0.into(), Bench::ARG, 0, 0, 0, 0];
    let call = Call { vcpu: 1, nr: EVTCHN, args, width: Width::Bits64, cpl: 0 };
    let Outcome::Ask(rest) = b.raw(call) else { panic!("not asked") };
    assert!(!b.domain.answered(1) && b.domain.answered(0));
    assert_eq!(
        (b.close(1), b.send(1), b.bind_vcpu(1, 0)),
        (Err(Errno::EINVAL), Err(Errno::EINVAL), Err(Errno::EINVAL))
    );
    assert_eq!(b.bind_ipi(0), Ok(2), "the port is taken");
    b.op(EVTCHN, EvtchnOp::RESET.0, &Reset { dom: Domid::SELF }).0.unwrap();
    b.effects();
    b.tell(Told::Bound(CHANNEL));
    assert!(b.domain.answered(1));
    assert_eq!(result(b.raw(rest)), Err(Errno::EINVAL));
    assert_eq!(b.effects(), [Effect::LeavePeer(CHANNEL)]);
    b.tell(Told::Bound(CHANNEL));
    assert_eq!(b.effects(), [Effect::LeavePeer(CHANNEL)], "an answer that nobody waits for");
}

#[test]
fn a_port_that_a_reset_has_freed_is_held_for_the_next_binding_alone() {
    let mut b = Bench::new(Width::Bits64);
    let (remote_port, local_port) = (xen_abi::xen::Port(3), xen_abi::xen::Port(0));
    let bind = xen_abi::event_channel::BindInterdomain { remote_dom: OTHER, pad: 0, remote_port, local_port };
    b.put(Bench::ARG, &bind);
    let args = [EvtchnOp::BIND_INTERDOMAIN.0.into(), Bench::ARG, 0, 0, 0, 0];
    let call = |vcpu| Call { vcpu, nr: EVTCHN, args, width: Width::Bits64, cpl: 0 };
    let Outcome::Ask(first) = b.raw(call(1)) else { panic!("not asked") };
    b.tell(Told::Bound(CHANNEL));
    b.op(EVTCHN, EvtchnOp::RESET.0, &Reset { dom: Domid::SELF }).0.unwrap();
    b.put(Bench::ARG, &bind);
    let Outcome::Ask(second) = b.raw(call(2)) else { panic!("not asked") };
    b.effects();
    assert_eq!((result(b.raw(first)), b.effects()), (Err(Errno::EINVAL), vec![Effect::LeavePeer(CHANNEL)]));
    assert_eq!(b.bind_ipi(0), Ok(2), "the port is still held");
    let other = Backend::Device(6);
    b.tell(Told::Bound(other));
    assert_eq!(result(b.raw(second)), Ok(0));
    assert_eq!(b.status(1), Ok((EvtchnStat::INTERDOMAIN, 9, 3, 0)));
}

#[test]
fn a_far_end_that_closes_before_the_guest_hears_of_the_binding_fails_it() {
    let mut b = Bench::new(Width::Bits64);
    let (remote_port, local_port) = (xen_abi::xen::Port(3), xen_abi::xen::Port(0));
    let bind = xen_abi::event_channel::BindInterdomain { remote_dom: OTHER, pad: 0, remote_port, local_port };
    b.put(Bench::ARG, &bind);
    let args = [EvtchnOp::BIND_INTERDOMAIN.0.into(), Bench::ARG, 0, 0, 0, 0];
    let call = Call { vcpu: 1, nr: EVTCHN, args, width: Width::Bits64, cpl: 0 };
    let Outcome::Ask(rest) = b.raw(call) else { panic!("not asked") };
    b.tell(Told::Bound(CHANNEL));
    assert!(b.with(|domain, cx| domain.peer_left(CHANNEL, cx)));
    b.effects();
    assert_eq!((result(b.raw(rest)), b.effects()), (Err(Errno::EINVAL), vec![]));
    assert_eq!(b.status(1), Ok((EvtchnStat::CLOSED, 0, 0, 0)));
}

#[test]
fn another_domain_binds_to_the_port_that_waits_for_it_alone() {
    let mut b = Bench::new(Width::Bits64);
    b.zero(0..1);
    let (ours, others) =
        (b.alloc_unbound(Domid::SELF, OTHER).unwrap(), b.alloc_unbound(Domid::SELF, Domid(8)).unwrap());
    let mut bind = |port, remote| b.with(|domain, cx| domain.bind_peer(port, (remote, 70), CHANNEL, cx));
    assert_eq!(bind(others, OTHER), Err(Errno::EINVAL));
    for nonsense in [0, 3, 4096, u32::MAX] {
        assert_eq!(bind(nonsense, OTHER), Err(Errno::EINVAL));
    }
    assert_eq!((bind(ours, OTHER), bind(ours, OTHER)), (Ok(()), Err(Errno::EINVAL)));
    assert_eq!([ours, others].map(|port| b.domain.waits_for(port, Domid(8)).is_ok()), [false, true]);
    assert_eq!(b.status(ours), Ok((EvtchnStat::INTERDOMAIN, 9, 70, 0)));
    b.effects();
    b.with(|domain, cx| domain.peer_left(CHANNEL, cx));
    assert_eq!(b.status(ours), Ok((EvtchnStat::UNBOUND, 9, 0, 0)), "as when the other end is closed");
    assert_eq!((b.send(ours), b.effects()), (Ok(0), vec![]), "nobody there");
    b.with(|domain, cx| domain.bind_peer(ours, (OTHER, 71), CHANNEL, cx)).unwrap();
    b.op(EVTCHN, EvtchnOp::RESET.0, &Reset { dom: Domid::SELF }).0.unwrap();
    assert!(b.effects().contains(&Effect::LeavePeer(CHANNEL)));
}

fn map(gref: u32, flags: u32) -> MapGrantRef {
    MapGrantRef {
        host_addr: 0x100_0000,
        flags,
        r#ref: Gref(gref),
        dom: OTHER,
        status: GntStatus(77),
        handle: 99,
        dev_bus_addr: 0,
    }
}

#[test]
fn a_page_of_another_domain_comes_and_goes() {
    let mut b = Bench::new(Width::Bits64);
    let (at, page, host) = (Gfn(0x1000), Foreign(3), gntmap::HOST_MAP);
    b.told(Told::Mapped(page));
    let mapped = b.one(GnttabOp::MAP_GRANT_REF, &map(40, host | gntmap::READONLY));
    assert_eq!((mapped.status, mapped.handle, mapped.dev_bus_addr), (GntStatus::OKAY, 0, 0x100_0000));
    let ask = Ask::Map { gref: Gref(40), write: false };
    assert_eq!(b.effects(), [Effect::Ask(0, OTHER, ask), Effect::MapForeign(at, Some((page, false)))]);
    assert_eq!(b.one(GnttabOp::MAP_GRANT_REF, &map(41, host)).status, GntStatus::GENERAL_ERROR, "taken");
    let unmap = |handle| UnmapGrantRef {
        host_addr: 0x100_0000,
        dev_bus_addr: 0x100_0000,
        handle,
        status: GntStatus(77),
        pad: 0,
    };
    assert_eq!(b.one(GnttabOp::UNMAP_GRANT_REF, &unmap(1)).status, GntStatus::BAD_HANDLE);
    assert_eq!(b.effects(), []);
    // The other domain has died: its page is gone all the same.
    b.told(Told::Nobody);
    assert_eq!(b.one(GnttabOp::UNMAP_GRANT_REF, &unmap(0)).status, GntStatus::OKAY);
    assert_eq!(b.effects(), [Effect::MapForeign(at, None), Effect::Ask(0, OTHER, Ask::Unmap(page))]);
    assert_eq!(b.one(GnttabOp::UNMAP_GRANT_REF, &unmap(0)).status, GntStatus::BAD_HANDLE);
    for (told, wanted) in [
        (Told::NotGranted(GntStatus::BAD_GNTREF), GntStatus::BAD_GNTREF),
        (Told::NotGranted(GntStatus::OKAY), GntStatus::GENERAL_ERROR),
        (Told::Bytes(vec![1]), GntStatus::GENERAL_ERROR),
        (Told::Nobody, GntStatus::BAD_DOMAIN),
    ] {
        b.told(told);
        assert_eq!(b.one(GnttabOp::MAP_GRANT_REF, &map(40, host)).status, wanted);
    }
    b.effects();
    b.fx.out_of_memory = true;
    b.told(Told::Mapped(page));
    assert_eq!(b.one(GnttabOp::MAP_GRANT_REF, &map(40, host)).status, GntStatus::GENERAL_ERROR);
    assert_eq!(b.effects().last(), Some(&Effect::ReleaseForeign(page)));
}

#[test]
fn a_page_of_another_domain_takes_the_place_of_ballooned_ram() {
    let mut b = Bench::new(Width::Bits64);
    let (at, page) = (Gfn(40), Foreign(3));
    let here = |dom| MapGrantRef { host_addr: at.gpa().0, dom, ..map(40, gntmap::HOST_MAP) };
    let reservation = |op, b: &mut Bench| {
        let one = xen_abi::memory::MemoryReservation {
            extent_start: Bench::ARG + 512,
            nr_extents: 1,
            extent_order: 0,
            mem_flags: 0,
            domid: Domid::SELF,
            pad: [0; 3],
        };
        b.put(Bench::ARG, &one);
        b.put(Bench::ARG + 512, &at.0);
        result(b.call(12, [op, Bench::ARG]))
    };
    let (decrease, populate) = (1, 6);
    assert_eq!(b.one(GnttabOp::MAP_GRANT_REF, &here(OTHER)).status, GntStatus::GENERAL_ERROR, "RAM");
    assert_eq!(b.effects(), [], "nobody is asked for that");
    assert_eq!(reservation(decrease, &mut b), Ok(1));
    // A disk still writes to what was there.
    b.seven_grants(50, gtf::PERMIT_ACCESS, 40);
    b.put(SpecialPage::GrantFrame(0).home().0 + 50 * 8 + 2, &Domid::DOM0);
    let disk = Use { by: Domid::DOM0, write: true, whole: false };
    b.with(|domain, cx| domain.grants.active.pin(cx.mem, Gref(50), disk)).unwrap();
    b.told(Told::Mapped(page));
    assert_eq!(b.one(GnttabOp::MAP_GRANT_REF, &here(OTHER)).status, GntStatus::EAGAIN);
    b.with(|domain, cx| domain.grants.active.unpin(cx.mem, Gref(50), true));
    assert_eq!(b.effects().last(), Some(&Effect::ReleaseForeign(page)));
    b.told(Told::Mapped(page));
    let mapped = b.one(GnttabOp::MAP_GRANT_REF, &here(OTHER));
    assert_eq!((mapped.status, mapped.dev_bus_addr), (GntStatus::OKAY, at.gpa().0));
    assert_eq!(b.effects().last(), Some(&Effect::MapForeign(at, Some((page, true)))));
    assert_eq!(
        [decrease, populate].map(|op| reservation(op, &mut b)),
        [Ok(0), Ok(0)],
        "it is no RAM of ours"
    );
    let place = b.with(|domain, cx| domain.place_special(SpecialPage::SharedInfo, at, cx));
    assert_eq!((place, b.domain.has_ram(at), b.effects()), (Err(Errno::EINVAL), false, vec![]));
    b.told(Told::Done);
    let host_addr = at.gpa().0;
    let unmap = UnmapGrantRef { host_addr, dev_bus_addr: 0, handle: 0, status: GntStatus(77), pad: 0 };
    assert_eq!(b.one(GnttabOp::UNMAP_GRANT_REF, &unmap).status, GntStatus::OKAY);
    assert_eq!(b.effects(), [Effect::MapForeign(at, None), Effect::Ask(0, OTHER, Ask::Unmap(page))]);
    // One of its own goes the same way.
    b.told(Told::Mapped(page));
    assert_eq!(b.one(GnttabOp::MAP_GRANT_REF, &here(Domid(7))).status, GntStatus::OKAY);
    let ask = Ask::Map { gref: Gref(40), write: true };
    assert_eq!(b.effects(), [Effect::Ask(0, Domid(7), ask), Effect::MapForeign(at, Some((page, true)))]);
    b.told(Told::Done);
    assert_eq!(b.one(GnttabOp::UNMAP_GRANT_REF, &unmap).status, GntStatus::OKAY);
    assert_eq!(reservation(populate, &mut b), Ok(1));
}

#[test]
fn nothing_that_the_machine_keeps_up_to_date_is_in_another_domains_page() {
    let mut b = Bench::new(Width::Bits64);
    b.told(Told::Mapped(Foreign(3)));
    assert_eq!(b.one(GnttabOp::MAP_GRANT_REF, &map(40, gntmap::HOST_MAP)).status, GntStatus::OKAY);
    let homes = [SpecialPage::SharedInfo, SpecialPage::GrantFrame(9)].map(|page| page.home().gfn());
    assert!(b.domain.has_ram(Gfn(20)));
    assert!([homes[0], homes[1], Gfn(0x1000), Gfn(u64::MAX >> 12)].iter().all(|gfn| !b.domain.has_ram(*gfn)));
    b.effects();
    let info = xen_abi::vcpu::RegisterVcpuInfo { mfn: 0x1000, offset: 0, rsvd: 0 };
    b.put(Bench::ARG, &info);
    assert_eq!(result(b.call(24, [10, 1, Bench::ARG])), Err(Errno::EINVAL));
    for op in [14, 15] {
        b.put(Bench::ARG, &xen_abi::vcpu::RegisterArea { addr: 0x100_0000 });
        assert_eq!(result(b.call(24, [op, 1, Bench::ARG])), Err(Errno::EINVAL));
    }
    assert_eq!(b.effects(), []);
}

#[test]
fn arguments_that_change_while_the_other_domain_thinks_change_nothing() {
    let mut b = Bench::new(Width::Bits64);
    for index in 0..2 {
        b.put(Bench::ARG + index * 32, &map(40, gntmap::HOST_MAP));
    }
    let args = [GnttabOp::MAP_GRANT_REF.0.into(), Bench::ARG, 2, 0, 0, 0];
    let call = Call { vcpu: 0, nr: GNTTAB, args, width: Width::Bits64, cpl: 0 };
    let Outcome::Ask(rest) = b.raw(call) else { panic!("not asked") };
    assert_eq!(rest.args, args, "from the first element on");
    b.put(Bench::ARG, &MapGrantRef { host_addr: 0x200_0000, dom: Domid(7), ..map(50, gntmap::HOST_MAP) });
    b.told(Told::Mapped(Foreign(1)));
    b.effects();
    assert_eq!(result(b.answered(rest)), Ok(0), "the second finds the frame taken");
    assert_eq!(b.effects(), [Effect::MapForeign(Gfn(0x1000), Some((Foreign(1), true)))]);
    let statuses = [0, 1].map(|index| b.get::<MapGrantRef>(Bench::ARG + index * 32).status);
    assert_eq!(statuses, [GntStatus::OKAY, GntStatus::GENERAL_ERROR]);
}

#[test]
fn copies_go_through_the_domains_that_grant() {
    let mut b = Bench::new(Width::Bits64);
    let end = |u, domid, offset| CopyPtr { u, domid, offset, pad: 0 };
    let copy = |source, dest, flags| Copy { source, dest, len: 4, flags, status: GntStatus(77), pad: 0 };
    let (s, d, me) = (GNTCOPY_SOURCE_GREF, GNTCOPY_DEST_GREF, Domid::SELF);
    b.told(Told::Bytes(b"read".to_vec()));
    let read = copy(end(40, OTHER, 8), end(30, me, 100), s);
    assert_eq!(b.one(GnttabOp::COPY, &read).status, GntStatus::OKAY);
    assert_eq!(b.get::<[u8; 4]>((30 << 12) + 100), *b"read");
    assert_eq!(b.effects(), [Effect::Ask(0, OTHER, Ask::Read { gref: Gref(40), offset: 8, len: 4 })]);
    b.told(Told::Done);
    assert_eq!(b.one(GnttabOp::COPY, &copy(end(30, me, 100), end(41, OTHER, 9), d)).status, GntStatus::OKAY);
    let write = Ask::Write { gref: Gref(41), offset: 9, bytes: b"read".to_vec() };
    assert_eq!(b.effects(), [Effect::Ask(0, OTHER, write)]);
    // From one domain's grant to another's.
    b.told(Told::Bytes(b"thru".to_vec()));
    b.told(Told::Done);
    let through = copy(end(40, OTHER, 8), end(2, Domid(8), 0), s | d);
    assert_eq!(b.one(GnttabOp::COPY, &through).status, GntStatus::OKAY);
    let write = Ask::Write { gref: Gref(2), offset: 0, bytes: b"thru".to_vec() };
    assert_eq!(b.effects().last(), Some(&Effect::Ask(0, Domid(8), write)));
    b.told(Told::Bytes(b"too many".to_vec()));
    assert_eq!(b.one(GnttabOp::COPY, &read).status, GntStatus::GENERAL_ERROR, "it may say anything");
    b.effects();
    let beyond = copy(end(40, OTHER, 4093), end(30, me, 0), s);
    assert_eq!((b.one(GnttabOp::COPY, &beyond).status, b.effects()), (GntStatus::BAD_COPY_ARG, vec![]));
}

#[test]
fn a_grant_is_used_by_the_domain_that_has_it_and_as_it_was_granted() {
    let mut b = Bench::new(Width::Bits64);
    b.seven_grants(40, gtf::PERMIT_ACCESS, 20);
    b.seven_grants(41, gtf::PERMIT_ACCESS | gtf::READONLY, 21);
    b.seven_grants(42, gtf::PERMIT_ACCESS, 64);
    let grant = |b: &mut Bench, by, gref, write| {
        let shared = b.with(|domain, cx| domain.grant_to(by, Gref(gref), write, cx.mem));
        shared.map(|shared| (shared.frame, shared.writable))
    };
    assert_eq!(grant(&mut b, Domid(8), 40, false), Err(GntStatus::GENERAL_ERROR));
    assert_eq!(grant(&mut b, OTHER, 42, false), Err(GntStatus::BAD_PAGE));
    assert_eq!(grant(&mut b, OTHER, 512, false), Err(GntStatus::BAD_GNTREF));
    assert_eq!(grant(&mut b, OTHER, 41, true), Err(GntStatus::GENERAL_ERROR));
    assert_eq!(grant(&mut b, OTHER, 41, false), Ok((Gfn(21), false)));
    assert_eq!(grant(&mut b, OTHER, 40, false), Ok((Gfn(20), true)), "granted for writing");
    assert_eq!(
        (b.flags(40), b.flags(41)),
        (gtf::PERMIT_ACCESS | gtf::READING, 1 | gtf::READONLY | gtf::READING)
    );
    let place =
        |b: &mut Bench| b.with(|domain, cx| domain.place_special(SpecialPage::GrantFrame(0), Gfn(20), cx));
    assert_eq!(place(&mut b), Err(Errno::EBUSY), "the other domain would have our table");
    let reservation = xen_abi::memory::MemoryReservation {
        extent_start: Bench::ARG + 512,
        nr_extents: 1,
        extent_order: 0,
        mem_flags: 0,
        domid: Domid::SELF,
        pad: [0; 3],
    };
    b.put(Bench::ARG, &reservation);
    b.put(Bench::ARG + 512, &20u64);
    let remove = xen_abi::memory::RemoveFromPhysmap { domid: Domid::SELF, pad: [0; 3], gpfn: 20 };
    b.put(Bench::ARG + 256, &remove);
    b.effects();
    for op in [1, 6] {
        assert_eq!(result(b.call(12, [op, Bench::ARG])), Ok(0), "who gets the frame next would share it");
    }
    assert_eq!(result(b.call(12, [15, Bench::ARG + 256])), Err(Errno::EBUSY));
    assert_eq!(b.effects(), []);
    for (gref, frame) in [(40, 20), (41, 21)] {
        b.with(|domain, cx| domain.ungrant(Gref(gref), false, Gfn(frame), cx.mem));
    }
    assert_eq!(b.domain.grants.away.len(), 0);
    let Bench { domain, ram, .. } = &b;
    ram.write(Gfn(20).gpa().offset(8), b"bytes").unwrap();
    let mut bytes = [0; 5];
    assert_eq!(domain.read_grant(OTHER, Gref(40), 8, &mut bytes, ram), Ok(()));
    assert_eq!(bytes, *b"bytes");
    assert_eq!(domain.read_grant(Domid(8), Gref(40), 8, &mut bytes, ram), Err(GntStatus::GENERAL_ERROR));
    assert_eq!(domain.read_grant(OTHER, Gref(40), 4092, &mut bytes, ram), Err(GntStatus::GENERAL_ERROR));
    assert_eq!(domain.read_grant(OTHER, Gref(40), u16::MAX, &mut bytes, ram), Err(GntStatus::GENERAL_ERROR));
    assert_eq!(domain.write_grant(OTHER, Gref(41), 0, b"x", ram), Err(GntStatus::GENERAL_ERROR));
    assert_eq!(domain.write_grant(OTHER, Gref(40), 4091, b"wrote", ram), Ok(()));
    assert_eq!(b.get::<[u8; 5]>((20 << 12) + 4091), *b"wrote");
    assert_eq!((b.flags(40), b.domain.grants.active.in_use()), (gtf::PERMIT_ACCESS, 0));
    assert_eq!(place(&mut b), Ok(()));
}
