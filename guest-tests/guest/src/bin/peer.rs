//! Two domains of one host: events both ways over an interdomain channel, a page that both write to, one that only its
//! owner may, copies, a channel that is closed and bound again, and what is left when the other one dies.
//!
//! Pages are mapped in holes, and where there was RAM that was ballooned out.
//!
//! The command line says which of the two this is: `server peer=N` or `client peer=N`, N the other one's domid, and
//! `first` for the one that dies first. Alone it sees what there is to see without another domain.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use guest::boot::{self, Words};
use guest::events::{Events, add_to_physmap, evtchn_op, send, status};
use guest::hypercall::{self, address, grant_table_op, op};
use guest::page::Page;
use guest::{Verdict, check, check_eq, fail, println, smp};
use xen_abi::Errno;
use xen_abi::event_channel::{AllocUnbound, BindInterdomain, Close, EvtchnOp, EvtchnStat, Reset, Status};
use xen_abi::grant_table::{
    Copy, CopyPtr, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GntStatus, GnttabOp, GrantEntryV1, MapGrantRef,
    UnmapGrantRef, gntmap, gtf,
};
use xen_abi::hypercall::Hypercall;
use xen_abi::memory::{MapSpace, MemoryOp, MemoryReservation};
use xen_abi::sched::{SchedOp, SchedPoll};
use xen_abi::xen::{Domid, Gref, PAGE_SHIFT, Port};
use zerocopy::FromZeros;

guest::test!(run);

/// Granted for writing, for reading, and to somebody else.
const BOTH_WRITE: u32 = 8;
const ONE_READS: u32 = 9;
const ELSE: u32 = 10;
/// Granted to ourselves.
const OWN: u32 = 12;
const NOBODY: Domid = Domid(0x6fff);
/// Events each way.
const ROUNDS: u64 = 300;
/// Channels that are closed in the moment after an event.
const LAST_WORDS: u64 = 100;
/// What the pages begin with.
const HELLO: u64 = 0x1122_3344_5566_7788;
/// Offsets in the page that both write to.
const TURN: usize = 8;
const SEEN: usize = 16;

static PAGE: Page = Page::zero();
static READ_ONLY: Page = Page::zero();
static BUFFER: Page = Page::zero();
static BALLOONED: Page = Page::zero();

fn run() -> Verdict {
    let events = Events::map()?;
    let words = Words::read();
    let first = words.has("first");
    let Some(peer) = words.number("peer=").and_then(|id| u16::try_from(id).ok()).map(Domid) else {
        return alone();
    };
    not_ours(peer)?;
    let table = grant(peer)?;
    if words.has("server") { server(&events, peer, table, first) } else { client(&events, peer, first) }
}

/// The ports of another domain, which lives, are not ours to use.
fn not_ours(peer: Domid) -> Verdict {
    let mut alloc = AllocUnbound { dom: peer, remote_dom: Domid::SELF, port: Port(0) };
    check_eq!(evtchn_op(EvtchnOp::ALLOC_UNBOUND, &mut alloc), Err(Errno::EPERM), "a port for {peer}");
    let mut status = Status { dom: peer, port: Port(1), ..Status::new_zeroed() };
    check_eq!(evtchn_op(EvtchnOp::STATUS, &mut status), Err(Errno::EPERM), "status of a port of {peer}");
    check_eq!(evtchn_op(EvtchnOp::RESET, &mut Reset { dom: peer }), Err(Errno::EPERM), "reset of {peer}");
    check_eq!(
        evtchn_op(EvtchnOp::RESET, &mut Reset { dom: NOBODY }),
        Err(Errno::ESRCH),
        "reset of no domain"
    );
    Ok(())
}

fn alone() -> Verdict {
    let nobody = |port| bind(NOBODY, port);
    check_eq!(nobody(1), Err(Errno::ESRCH), "a channel to no domain");
    check_eq!(map(NOBODY, BOTH_WRITE, 0, true)?.status, GntStatus::BAD_DOMAIN, "a grant of no domain");
    let from = CopyPtr { u: BOTH_WRITE.into(), domid: NOBODY, offset: 0, pad: 0 };
    check_eq!(
        copy(from, own(&BUFFER, 0), GNTCOPY_SOURCE_GREF)?,
        GntStatus::BAD_DOMAIN,
        "a copy of no domain"
    );
    println!("nobody there");
    let table = grant(NOBODY)?;
    let own = own_domid()?;
    let frame = u32::try_from(PAGE.gfn()).unwrap_or(0);
    table.write(at(OWN), &GrantEntryV1 { flags: gtf::PERMIT_ACCESS, domid: own, frame });
    in_ram(own, OWN, &PAGE)?;
    check_eq!(flags(table, OWN), 0, "use of a page that is unmapped");
    Ok(())
}

/// What a channel to ourselves says that its other end is.
fn own_domid() -> Result<Domid, guest::Stop> {
    let mut alloc = AllocUnbound { dom: Domid::SELF, remote_dom: Domid::SELF, port: Port(0) };
    evtchn_op(EvtchnOp::ALLOC_UNBOUND, &mut alloc)?;
    let port = bind(Domid::SELF, alloc.port.0)?;
    let own = u16::try_from(status(port)?.u).map(Domid);
    own.map_or_else(|_| fail!("no domid"), Ok)
}

/// Gives a frame of RAM up, or takes it back.
fn balloon(op: MemoryOp, page: &Page) -> Result<i64, Errno> {
    let mut gfn = page.gfn();
    let mut arg = MemoryReservation {
        extent_start: address(&mut gfn),
        nr_extents: 1,
        domid: Domid::SELF,
        ..MemoryReservation::new_zeroed()
    };
    hypercall::op(Hypercall::MEMORY_OP, op.0, &mut arg)
}

/// Maps a grant, of which `page` is another mapping, where RAM was.
fn in_ram(dom: Domid, gref: u32, page: &Page) -> Verdict {
    let here = |write| map_at(dom, gref, BALLOONED.addr(), write);
    BALLOONED.fill(0x77);
    check_eq!(here(true)?.status, GntStatus::GENERAL_ERROR, "mapping where RAM is");
    check_eq!(balloon(MemoryOp::DECREASE_RESERVATION, &BALLOONED), Ok(1), "ballooning out");
    for round in 0..20 {
        let mapped = here(true)?;
        check_eq!(mapped.status, GntStatus::OKAY, "round {round}: mapping where RAM was");
        BALLOONED.u64(64).store(round, Ordering::SeqCst);
        check_eq!(page.u64(64).load(Ordering::SeqCst), round, "round {round}: what was written");
        page.u64(72).store(!round, Ordering::SeqCst);
        check_eq!(BALLOONED.u64(72).load(Ordering::SeqCst), !round, "round {round}: what can be read");
        check_eq!(balloon(MemoryOp::POPULATE_PHYSMAP, &BALLOONED), Ok(0), "round {round}: taking it back");
        check_eq!(unmap(&mapped)?, GntStatus::OKAY, "round {round}: unmapping");
        let reader = here(false)?;
        check_eq!(reader.status, GntStatus::OKAY, "round {round}: mapping it for reading");
        check_eq!(BALLOONED.u64(72).load(Ordering::SeqCst), !round, "round {round}: what is read");
        check_eq!(unmap(&reader)?, GntStatus::OKAY, "round {round}: unmapping what was read");
    }
    check_eq!(balloon(MemoryOp::POPULATE_PHYSMAP, &BALLOONED), Ok(1), "taking the frame back");
    check_eq!(BALLOONED.u64(72).load(Ordering::SeqCst), 0, "what is in it");
    BALLOONED.fill(0x5a);
    check_eq!(page.u64(72).load(Ordering::SeqCst), !19, "what is in the page");
    println!("mapped where RAM was");
    Ok(())
}

/// The grant table, with three grants in it.
fn grant(peer: Domid) -> Result<&'static Page, guest::Stop> {
    let Some(hole) = boot::hole_gfn(0) else { fail!("no hole below 4 GiB") };
    add_to_physmap(MapSpace::GRANT_TABLE, 0, hole)?;
    let table = Page::at(hole << PAGE_SHIFT);
    for (gref, domid, page, flags) in [
        (BOTH_WRITE, peer, &PAGE, gtf::PERMIT_ACCESS),
        (ONE_READS, peer, &READ_ONLY, gtf::PERMIT_ACCESS | gtf::READONLY),
        (ELSE, NOBODY, &PAGE, gtf::PERMIT_ACCESS),
    ] {
        page.write(0, &HELLO);
        let frame = u32::try_from(page.gfn()).unwrap_or(0);
        table.write(at(gref), &GrantEntryV1 { flags, domid, frame });
    }
    Ok(table)
}

const fn at(gref: u32) -> usize {
    gref as usize * size_of::<GrantEntryV1>()
}

fn flags(table: &Page, gref: u32) -> u16 {
    table.read::<GrantEntryV1>(at(gref)).flags & (gtf::READING | gtf::WRITING)
}

fn bind(remote_dom: Domid, remote_port: u32) -> Result<Port, Errno> {
    let mut arg = BindInterdomain { remote_dom, pad: 0, remote_port: Port(remote_port), local_port: Port(0) };
    evtchn_op(EvtchnOp::BIND_INTERDOMAIN, &mut arg).map(|_| arg.local_port)
}

/// Sleeps until the port is pending, and takes the event.
fn wait(events: &Events, port: Port) -> Verdict {
    let mut ports = port.0;
    while !events.clear_pending(port) {
        let mut poll = SchedPoll { ports: address(&mut ports), nr_ports: 1, pad: 0, timeout: 0 };
        op(Hypercall::SCHED_OP, SchedOp::POLL.0, &mut poll)?;
    }
    Ok(())
}

fn ends(of: &Status) -> (EvtchnStat, u32, u32) {
    (of.status, of.u, of.u_port.0)
}

/// Waits for a port to be left by the other domain.
fn left(port: Port, peer: Domid) -> Verdict {
    let unbound = || status(port).is_ok_and(|status| status.status == EvtchnStat::UNBOUND);
    check!(smp::spin_until(unbound), "port {port} stays bound");
    check_eq!(status(port)?.u, u32::from(peer.0), "whom port {port} waits for");
    Ok(())
}

fn server(events: &Events, peer: Domid, table: &Page, first: bool) -> Verdict {
    let mut alloc = AllocUnbound { dom: Domid::SELF, remote_dom: peer, port: Port(0) };
    evtchn_op(EvtchnOp::ALLOC_UNBOUND, &mut alloc)?;
    let port = alloc.port;
    println!("port {port} waits for domain {peer}");
    wait(events, port)?;
    let bound = status(port)?;
    println!("bound to port {} of domain {}", bound.u_port, bound.u);
    check_eq!((bound.status, bound.u), (EvtchnStat::INTERDOMAIN, u32::from(peer.0)), "status of port {port}");
    check_eq!(flags(table, BOTH_WRITE), gtf::READING | gtf::WRITING, "use of the page that both write to");
    check_eq!(flags(table, ONE_READS), gtf::READING, "use of the page that one reads");
    READ_ONLY.write(TURN, &HELLO);
    for round in 0..ROUNDS {
        let turn = PAGE.u64(TURN).fetch_add(1, Ordering::SeqCst);
        check_eq!(turn, 2 * round + 1, "round {round}");
        send(port)?;
        wait(events, port)?;
    }
    println!("{ROUNDS} events each way");
    copies(peer)?;
    send(port)?;
    for round in 1..=LAST_WORDS {
        wait(events, port)?;
        check_eq!(flags(table, ONE_READS), 0, "use of a page that is unmapped");
        left(port, peer)?;
        PAGE.u64(SEEN).store(round, Ordering::SeqCst);
    }
    println!("{LAST_WORDS} events before the end of their channel");
    wait(events, port)?;
    check_eq!(status(port)?.status, EvtchnStat::INTERDOMAIN, "port {port}, bound again");
    if first {
        println!("dies first");
        return Ok(());
    }
    left(port, peer)?;
    check!(smp::spin_until(|| flags(table, BOTH_WRITE) == 0), "a dead domain uses the page");
    check_eq!(PAGE.u64(TURN).load(Ordering::SeqCst), 2 * ROUNDS + 1, "what was in the page");
    PAGE.fill(0x5a);
    println!("all is ours again");
    Ok(())
}

fn own(page: &Page, offset: u16) -> CopyPtr {
    CopyPtr { u: page.gfn(), domid: Domid::SELF, offset, pad: 0 }
}

fn copy(source: CopyPtr, dest: CopyPtr, flags: u16) -> Result<GntStatus, Errno> {
    let mut op = Copy { source, dest, len: 8, flags, status: GntStatus(77), pad: 0 };
    grant_table_op(GnttabOp::COPY.0, &mut op)?;
    Ok(op.status)
}

/// Of what the client has granted.
fn copies(peer: Domid) -> Verdict {
    let (s, d, ok) = (GNTCOPY_SOURCE_GREF, GNTCOPY_DEST_GREF, GntStatus::OKAY);
    let theirs = |gref: u32, offset| CopyPtr { u: gref.into(), domid: peer, offset, pad: 0 };
    check_eq!(copy(theirs(ONE_READS, 0), own(&BUFFER, 40), s)?, ok, "copying from the client");
    check_eq!(BUFFER.read::<u64>(40), HELLO, "what was copied");
    check_eq!(copy(own(&BUFFER, 40), theirs(BOTH_WRITE, 80), d)?, ok, "copying to the client");
    let refused = GntStatus::GENERAL_ERROR;
    check_eq!(copy(own(&BUFFER, 40), theirs(ONE_READS, 80), d)?, refused, "copying to what is read-only");
    check_eq!(copy(theirs(ELSE, 0), own(&BUFFER, 0), s)?, refused, "copying what is another's");
    println!("copies both ways");
    Ok(())
}

fn map(dom: Domid, gref: u32, n: u64, write: bool) -> Result<MapGrantRef, Errno> {
    let hole = boot::hole_gfn(64 + n).unwrap_or(0);
    map_at(dom, gref, hole << PAGE_SHIFT, write)
}

fn map_at(dom: Domid, gref: u32, host_addr: u64, write: bool) -> Result<MapGrantRef, Errno> {
    let read_only = if write { 0 } else { gntmap::READONLY };
    let mut op = MapGrantRef {
        host_addr,
        flags: gntmap::HOST_MAP | read_only,
        r#ref: Gref(gref),
        dom,
        status: GntStatus(77),
        handle: 0,
        dev_bus_addr: 0,
    };
    grant_table_op(GnttabOp::MAP_GRANT_REF.0, &mut op)?;
    Ok(op)
}

fn unmap(mapped: &MapGrantRef) -> Result<GntStatus, Errno> {
    let MapGrantRef { host_addr, handle, .. } = *mapped;
    let mut op = UnmapGrantRef { host_addr, dev_bus_addr: 0, handle, status: GntStatus(77), pad: 0 };
    grant_table_op(GnttabOp::UNMAP_GRANT_REF.0, &mut op)?;
    Ok(op.status)
}

/// The server's port that waits for us, which is one of its first.
fn find(peer: Domid) -> Result<(Port, u32), guest::Stop> {
    for _ in 0..2000 {
        if let Some(found) = (1..16).find_map(|far| bind(peer, far).ok().map(|port| (port, far))) {
            return Ok(found);
        }
        hypercall::op_null(Hypercall::SCHED_OP, SchedOp::YIELD.0)?;
    }
    fail!("no port of domain {peer} waits for us")
}

fn client(events: &Events, peer: Domid, first: bool) -> Verdict {
    let (port, far) = find(peer)?;
    println!("port {port} is bound to port {far} of domain {peer}");
    wait(events, port)?;
    check_eq!(ends(&status(port)?), (EvtchnStat::INTERDOMAIN, peer.0.into(), far), "status of port {port}");
    check_eq!(bind(peer, far), Err(Errno::EINVAL), "binding to what is bound");
    let (mapped, read_only) = pages(peer)?;
    let page = Page::at(mapped.host_addr);
    page.u64(TURN).store(1, Ordering::SeqCst);
    send(port)?;
    for round in 0..ROUNDS {
        wait(events, port)?;
        let turn = page.u64(TURN).fetch_add(1, Ordering::SeqCst);
        check_eq!(turn, 2 * round + 2, "round {round}");
        send(port)?;
    }
    println!("{ROUNDS} events each way");
    check_eq!(Page::at(read_only.host_addr).read::<u64>(TURN), HELLO, "what the server has written");
    wait(events, port)?;
    check_eq!(PAGE.read::<u64>(80), HELLO, "what the server has copied");
    check_eq!(unmap(&read_only)?, GntStatus::OKAY, "unmapping");
    let mut port = port;
    for round in 1..=LAST_WORDS {
        send(port)?;
        evtchn_op(EvtchnOp::CLOSE, &mut Close { port })?;
        check!(
            smp::spin_until(|| page.u64(SEEN).load(Ordering::SeqCst) == round),
            "round {round}: the server does not see the last event, or that it closes"
        );
        port = bind(peer, far)?;
    }
    println!("closed and bound again");
    send(port)?;
    if first {
        println!("dies first");
        return Ok(());
    }
    left(port, peer)?;
    check_eq!(page.u64(TURN).load(Ordering::SeqCst), 2 * ROUNDS + 1, "the page of a dead domain");
    check_eq!(unmap(&mapped)?, GntStatus::OKAY, "unmapping the page of a dead domain");
    check_eq!(bind(peer, far), Err(Errno::ESRCH), "a dead domain");
    println!("the server is gone");
    Ok(())
}

/// Maps what may be mapped, and tries what may not.
fn pages(peer: Domid) -> Result<(MapGrantRef, MapGrantRef), guest::Stop> {
    for (gref, write, wanted) in [
        (ELSE, false, GntStatus::GENERAL_ERROR),
        (ONE_READS, true, GntStatus::GENERAL_ERROR),
        (11, true, GntStatus::GENERAL_ERROR),
        (0x7fff_ffff, true, GntStatus::BAD_GNTREF),
    ] {
        check_eq!(map(peer, gref, 9, write)?.status, wanted, "mapping grant {gref}");
    }
    let (page, read_only) = (map(peer, BOTH_WRITE, 0, true)?, map(peer, ONE_READS, 1, false)?);
    check_eq!((page.status, read_only.status), (GntStatus::OKAY, GntStatus::OKAY), "mapping");
    for mapped in [&page, &read_only] {
        check_eq!(Page::at(mapped.host_addr).read::<u64>(0), HELLO, "what is in a page of the server");
    }
    // Dropped, or it would end up in the server's page.
    Page::at(read_only.host_addr).write(TURN, &0_u64);
    check_eq!(map(peer, BOTH_WRITE, 0, true)?.status, GntStatus::GENERAL_ERROR, "mapping where something is");
    in_ram(peer, BOTH_WRITE, Page::at(page.host_addr))?;
    Ok((page, read_only))
}
