//! The FIFO ABI: its operations, its words, and guests that do not keep to it.

use xen_abi::errno::Errno;
use xen_abi::event_channel::fifo::{BUSY, LINKED, MASKED, PENDING};
use xen_abi::event_channel::{EvtchnOp, ExpandArray, InitControl, Reset, SetPriority};
use xen_abi::xen::{Domid, Port, Virq};

use super::EVTCHN;
use crate::effect::{Backend, Offload};
use crate::evtchn::Switch;
use crate::hypercall::{Call, Outcome, Width};
use crate::mem::{Gfn, Gpa, GuestMem, SpecialPage};
use crate::testing::{Bench, Effect, GuestEvents};

/// The event array begins here, the control blocks are in the page before.
const ARRAY: u64 = 32;
const BLOCKS: u64 = 31;

impl Bench {
    /// A domain that may have FIFO, its event array's frames zero.
    pub(super) fn with_fifo() -> Bench {
        let mut bench = Bench::new(Width::Bits64);
        bench.domain.config.fifo = true;
        bench.domain.config.max_ports = 1 << 17;
        bench.domain.ports.limit = 1 << 17;
        bench.zero(BLOCKS..Bench::FRAMES);
        bench
    }

    pub(super) fn zero(&self, frames: std::ops::Range<u64>) {
        frames.for_each(|gfn| self.ram.write(Gfn(gfn).gpa(), &[0; 4096]).unwrap());
    }

    pub(super) fn init_control(&mut self, vcpu: u32, control_gfn: u64, offset: u32) -> Result<u8, Errno> {
        let init = InitControl { control_gfn, offset, vcpu, link_bits: 0, pad: [0; 7] };
        let (rc, init) = self.op(EVTCHN, EvtchnOp::INIT_CONTROL.0, &init);
        rc.map(|_| init.link_bits)
    }

    pub(super) fn expand_array(&mut self, array_gfn: u64) -> Result<i64, Errno> {
        self.op(EVTCHN, EvtchnOp::EXPAND_ARRAY.0, &ExpandArray { array_gfn }).0
    }

    pub(super) fn set_priority(&mut self, port: u32, priority: u32) -> Result<i64, Errno> {
        self.op(EVTCHN, EvtchnOp::SET_PRIORITY.0, &SetPriority { port: Port(port), priority }).0
    }

    /// Control blocks for all vCPUs and one page of events.
    pub(super) fn start_fifo(&mut self) -> GuestEvents {
        let blocks: Vec<u32> = (0..4).map(|vcpu| vcpu * 128).collect();
        for (vcpu, offset) in (0..).zip(&blocks) {
            assert_eq!(self.init_control(vcpu, BLOCKS, *offset), Ok(17));
        }
        assert_eq!(self.expand_array(ARRAY), Ok(0));
        let at = |offset| Gfn(BLOCKS).gpa().offset(u64::from(offset));
        GuestEvents::fifo(Gfn(ARRAY).gpa(), blocks.into_iter().map(at).collect())
    }

    fn event_word(&self, port: u32) -> u32 {
        self.ram.load_u32(Gfn(ARRAY).gpa().offset(u64::from(port) * 4)).unwrap()
    }

    fn set_event_word(&self, port: u32, word: u32) {
        self.ram.store_u32(Gfn(ARRAY).gpa().offset(u64::from(port) * 4), word).unwrap();
    }

    /// The upcall handler of a vCPU.
    pub(super) fn take(&self, events: &mut GuestEvents, vcpu: u32) -> Vec<u32> {
        events.take(&self.ram, vcpu as usize, self.domain.vcpu_info(vcpu).unwrap())
    }
}

#[test]
fn the_switch_has_xens_errors() {
    let mut b = Bench::with_fifo();
    assert_eq!(b.expand_array(ARRAY), Err(Errno::EOPNOTSUPP));
    assert_eq!(b.set_priority(1, 3), Err(Errno::ENOSYS));
    assert_eq!(b.init_control(4, BLOCKS, 0), Err(Errno::ENOENT));
    assert_eq!(b.init_control(0, BLOCKS, 4), Err(Errno::EINVAL), "not aligned");
    assert_eq!(b.init_control(0, BLOCKS, 4096 - 64), Err(Errno::EINVAL), "crosses the page");
    for hole in [Bench::FRAMES, 0xfeff0, 1 << 40, u64::MAX, SpecialPage::SharedInfo.home().gfn().0] {
        assert_eq!(b.init_control(0, hole, 0), Err(Errno::EINVAL), "{hole:#x}");
    }
    assert_eq!(b.effects(), [], "a call that fails changes nothing");
    assert_eq!(b.init_control(1, BLOCKS, 4096 - 72), Ok(17), "any vCPU may be the first");
    assert_eq!(b.effects(), [Effect::Fifo(true), Effect::RetractAll]);
    assert_eq!(b.init_control(1, BLOCKS, 0), Err(Errno::EINVAL), "once only");
    assert_eq!(b.init_control(0, BLOCKS, 0), Ok(17));
    assert_eq!(b.expand_array(0xfeff0), Err(Errno::EINVAL));
    assert_eq!([0, 1].map(|port| b.set_priority(port, 15)), [Err(Errno::EACCES); 2], "of no channel");
    assert_eq!(b.bind_ipi(0), Ok(1));
    assert_eq!((b.set_priority(1, 15), b.set_priority(1, 16)), (Ok(0), Err(Errno::EINVAL)));
    assert_eq!(b.set_priority(1 << 17, 0), Err(Errno::EINVAL));
    let full = (0..200).map_while(|_| b.expand_array(ARRAY).ok()).count();
    assert_eq!((full, b.expand_array(ARRAY)), (128, Err(Errno::ENOSPC)));
    assert_eq!(b.effects(), []);
    assert_eq!(Bench::new(Width::Bits64).init_control(0, BLOCKS, 0), Err(Errno::ENOSYS), "2-level only");
}

#[test]
fn events_come_by_priority_and_in_order() {
    let mut b = Bench::with_fifo();
    let mut guest = b.start_fifo();
    let ports: Vec<u32> = (0..6).map(|_| b.bind_ipi(2).unwrap()).collect();
    b.set_priority(3, 0).unwrap();
    b.set_priority(5, 15).unwrap();
    b.effects();
    for port in [5, 1, 4, 3, 2, 1] {
        b.send(port).unwrap();
    }
    assert_eq!(b.effects(), [Effect::Upcall(2)]);
    assert_eq!(b.event_word(1), PENDING | LINKED | 4);
    assert_eq!(b.take(&mut guest, 2), [3, 1, 4, 2, 5]);
    assert_eq!(b.take(&mut guest, 2), []);
    assert_eq!((b.event_word(1), ports.len()), (0, 6));
    b.send(6).unwrap();
    assert_eq!((b.effects(), b.take(&mut guest, 2)), (vec![Effect::Upcall(2)], vec![6]));
}

#[test]
fn masked_events_wait_and_moved_ones_change_their_queue() {
    let mut b = Bench::with_fifo();
    let mut guest = b.start_fifo();
    let far = b.alloc_unbound(Domid::SELF, Domid::SELF).unwrap();
    let port = b.interdomain(Domid::SELF, far).unwrap();
    assert_eq!(b.take(&mut guest, 0), [port], "pending at once");
    guest.mask(&b.ram, port);
    b.send(far).unwrap();
    assert_eq!(b.event_word(port), PENDING | MASKED, "not linked");
    b.effects();
    b.unmask(port).unwrap();
    assert_eq!((b.effects(), b.event_word(port)), (vec![Effect::Upcall(0)], PENDING | LINKED));
    // On its way to vCPU 0 the port moves: that event stays, the next one goes to vCPU 3.
    b.bind_vcpu(port, 3).unwrap();
    b.send(far).unwrap();
    assert_eq!((b.effects(), b.take(&mut guest, 0)), (vec![], vec![port]));
    b.send(far).unwrap();
    assert_eq!((b.effects(), b.take(&mut guest, 3)), (vec![Effect::Upcall(3)], vec![port]));
    // The tail of vCPU 0's queue was this port: what comes there now must not hang on vCPU 3's.
    b.send(far).unwrap();
    let other = b.bind_ipi(0).unwrap();
    b.send(other).unwrap();
    assert_eq!((b.take(&mut guest, 0), b.take(&mut guest, 3)), (vec![other], vec![port]));
}

#[test]
fn only_who_has_begun_the_switch_takes_over_what_is_pending() {
    let mut b = Bench::with_fifo();
    let timer = b.bind_virq(Virq::TIMER.0, 0).unwrap();
    assert_eq!(b.with(|d, cx| d.switch_to_fifo(0, cx)), Switch::Pending);
    // Another vCPU is quicker, and then the machine hands the timer back with its event.
    assert_eq!(b.with(|d, cx| d.switch_to_fifo(1, cx)), Switch::Done);
    b.ram.fetch_or_u64(SpecialPage::SharedInfo.home().offset(b.layout().pending as u64), 1 << timer).unwrap();
    assert_eq!(b.init_control(0, BLOCKS, 0), Ok(17));
    assert_eq!(b.expand_array(ARRAY), Ok(0));
    let mut guest = GuestEvents::fifo(Gfn(ARRAY).gpa(), vec![Gfn(BLOCKS).gpa()]);
    assert_eq!(b.take(&mut guest, 0), [timer]);
}

#[test]
fn what_was_pending_goes_along_to_fifo_and_back_it_is_gone() {
    let mut b = Bench::with_fifo();
    b.fx.accelerated = true;
    let backend = Backend::Console;
    b.with(|d, cx| d.connect_backend(backend, cx)).unwrap();
    let timer = b.bind_virq(Virq::TIMER.0, 1).unwrap();
    let ipi = b.bind_ipi(2).unwrap();
    b.ram
        .fetch_or_u64(SpecialPage::SharedInfo.home().offset(b.layout().pending as u64), 1 << ipi | 2)
        .unwrap();
    b.effects();
    assert_eq!(b.init_control(0, BLOCKS, 0), Ok(17));
    let switched = [Effect::Fifo(true), Effect::RetractAll, Effect::TimerPort(1, Some(timer))];
    assert_eq!(b.effects(), switched);
    for vcpu in 1..4 {
        b.init_control(vcpu, BLOCKS, vcpu * 128).unwrap();
    }
    // While a page is missing events wait for it.
    b.with(|d, cx| d.raise_virq(Virq::TIMER.0, 1, cx));
    assert_eq!(b.effects(), []);
    assert_eq!(b.expand_array(ARRAY), Ok(0));
    assert_eq!(b.effects(), [Effect::Upcall(0), Effect::Upcall(1), Effect::Upcall(2)]);
    let blocks = (0..4).map(|vcpu| Gfn(BLOCKS).gpa().offset(vcpu * 128)).collect();
    let mut guest = GuestEvents::fifo(Gfn(ARRAY).gpa(), blocks);
    let taken = [0, 1, 2].map(|vcpu| b.take(&mut guest, vcpu));
    assert_eq!(taken, [vec![1], vec![timer], vec![ipi]]);
    b.send(ipi).unwrap();
    b.with(|d, cx| d.raise_backend(backend, cx));
    b.send(1).unwrap();
    assert_eq!(
        b.effects(),
        [Effect::Upcall(2), Effect::Upcall(0), Effect::Kick(backend)],
        "nothing offloaded"
    );

    assert_eq!(b.op(EVTCHN, EvtchnOp::RESET.0, &Reset { dom: Domid::SELF }).0, Ok(0));
    assert_eq!(b.effects(), [Effect::RetractAll, Effect::TimerPort(1, None), Effect::Fifo(false)]);
    assert_eq!(b.bind_ipi(1), Ok(1));
    assert_eq!(b.effects(), [Effect::Offload(1, Offload::Ipi(1))]);
    assert!(!b.seen(1, 1).0, "the old pending bit is gone");
    assert_eq!(b.init_control(0, BLOCKS, 0), Ok(17), "and once more");
}

#[test]
fn an_event_for_a_vcpu_without_a_control_block_waits_behind_its_mask() {
    let mut b = Bench::with_fifo();
    b.init_control(0, BLOCKS, 0).unwrap();
    b.expand_array(ARRAY).unwrap();
    let port = b.bind_ipi(1).unwrap();
    b.set_event_word(port, MASKED);
    b.effects();
    b.send(port).unwrap();
    assert_eq!((b.effects(), b.event_word(port)), (vec![], PENDING | MASKED));
    b.init_control(1, BLOCKS, 128).unwrap();
    b.unmask(port).unwrap();
    assert_eq!((b.effects(), b.event_word(port)), (vec![Effect::Upcall(1)], PENDING | LINKED));
}

#[test]
fn a_closed_port_comes_back_when_it_has_left_its_queue() {
    let mut b = Bench::with_fifo();
    let mut guest = b.start_fifo();
    let port = b.bind_ipi(0).unwrap();
    b.send(port).unwrap();
    b.close(port).unwrap();
    assert_eq!(b.event_word(port), LINKED);
    assert_eq!(b.bind_ipi(0), Ok(port + 1), "busy");
    assert_eq!(b.take(&mut guest, 0), [], "no event of it");
    assert_eq!(b.bind_ipi(0), Ok(port));
}

#[test]
fn a_search_passes_over_busy_ports() {
    let mut b = Bench::with_fifo();
    b.start_fifo();
    b.expand_array(ARRAY + 1).unwrap();
    for port in 1..1200 {
        assert_eq!(b.bind_ipi(0), Ok(port));
        b.close(port).unwrap();
        b.set_event_word(port, LINKED);
        assert_eq!(b.bind_ipi(0), Ok(port + 1), "{port} busy ports");
        b.close(port + 1).unwrap();
    }
    b.set_event_word(7, 0);
    assert_eq!(b.bind_ipi(0), Ok(7));
}

#[test]
fn hostile_links_lead_nowhere() {
    let mut b = Bench::with_fifo();
    let mut guest = b.start_fifo();
    let ports: Vec<u32> = (0..100).map(|_| b.bind_ipi(1).unwrap()).collect();
    for garbage in [u32::MAX, LINKED | BUSY, LINKED | 0x1ffff, LINKED | 1, BUSY, 0] {
        for &port in &ports {
            b.set_event_word(port, garbage);
        }
        for &port in &ports {
            b.send(port).unwrap();
            b.unmask(port).unwrap();
        }
    }
    assert_eq!(b.take(&mut guest, 1), ports, "and back to order, once it behaves");
    // The array's frame goes away: errors or nothing.
    b.with(|domain, _| domain.physmap.take(Gfn(ARRAY)));
    let gone = Bench { ram: crate::testing::FakeRam::new((0..ARRAY).chain(ARRAY + 1..64), 0), ..b };
    let mut b = gone;
    b.effects();
    assert_eq!((b.send(1), b.unmask(1), b.close(1)), (Ok(0), Err(Errno::EFAULT), Ok(0)));
    assert_eq!(b.effects(), []);
    assert_eq!(b.ram.load_u32(Gpa(ARRAY << 12)), Err(crate::mem::Fault));
}

#[test]
fn nonsense_gets_an_errno_or_nothing() {
    let mut b = Bench::with_fifo();
    // Where the guest's own grant table is there is no RAM any more, and no place for control blocks.
    let table = SpecialPage::GrantFrame(0);
    b.with(|domain, cx| domain.place_special(table, Gfn(40), cx)).unwrap();
    assert_eq!((b.init_control(0, 40, 0), b.init_control(0, BLOCKS, 0)), (Err(Errno::EINVAL), Ok(17)));
    assert_eq!((b.expand_array(40), b.expand_array(ARRAY)), (Err(Errno::EINVAL), Ok(0)));
    assert_eq!([0, 0, 4, u32::MAX].map(|vcpu| b.init_control(vcpu, BLOCKS, 512).is_ok()), [false; 4]);
    let port = b.bind_ipi(0).unwrap();
    // A ring of links, of which one port is its own successor.
    b.set_event_word(port, LINKED | PENDING | (port + 1));
    b.set_event_word(port + 1, LINKED | PENDING | port);
    b.set_event_word(port + 2, LINKED | (port + 2));
    for _ in 0..3 {
        assert_eq!([b.send(port), b.unmask(port)], [Ok(0); 2]);
    }
    let others = [0, port + 1, 1023, 1024, (1 << 17) - 1, 1 << 17, u32::MAX];
    assert_eq!(others.map(|port| b.send(port)), [Err(Errno::EINVAL); 7]);
    assert_eq!(others.map(|port| b.close(port)), [Err(Errno::EINVAL); 7]);
    assert_eq!([1 << 17, u32::MAX].map(|port| b.unmask(port)), [Err(Errno::EINVAL); 2]);
    assert_eq!([1 << 17, u32::MAX].map(|port| b.bind_vcpu(port, 0)), [Err(Errno::EINVAL); 2]);
    assert_eq!((b.close(port), b.send(port)), (Ok(0), Err(Errno::EINVAL)));
    // The grant table moves to where the control block is, then the block's frame is given up.
    let port = b.bind_ipi(0).unwrap();
    b.with(|domain, cx| domain.place_special(table, Gfn(BLOCKS), cx)).unwrap();
    assert_eq!(b.send(port), Ok(0));
    b.with(|domain, cx| domain.unplace_special(table, cx)).unwrap();
    assert_eq!([b.send(port), b.unmask(port), b.close(port)], [Ok(0); 3]);
    assert_eq!(b.op(EVTCHN, EvtchnOp::RESET.0, &Reset { dom: Domid::SELF }).0, Ok(0));
    assert_eq!(b.init_control(0, BLOCKS + 1, 0), Ok(17));
}

#[test]
fn all_131071_ports_open_and_close_in_bounded_steps() {
    let mut b = Bench::with_fifo();
    b.start_fifo();
    for _ in 1..128 {
        // The guest may name one frame many times; that is its own trouble.
        b.expand_array(ARRAY).unwrap();
    }
    b.with(|domain, cx| {
        let kind = crate::evtchn::Kind::Ipi;
        let all =
            (0..1 << 18).map_while(|_| domain.ports.allocate(kind, 1, xen_abi::Width::W64, cx.mem).ok());
        assert_eq!(all.last(), Some((1 << 17) - 1));
    });
    assert_eq!(b.bind_ipi(0), Err(Errno::ENOSPC));
    b.send((1 << 17) - 1).unwrap();
    b.put(Bench::ARG, &Reset { dom: Domid::SELF });
    let args = [EvtchnOp::RESET.0.into(), Bench::ARG, 0, 0, 0, 0];
    let reset = Call { vcpu: 0, nr: EVTCHN, args, width: Width::Bits64, cpl: 0 };
    let steps = (0..1000).take_while(|_| b.raw(reset) == Outcome::Again(reset)).count();
    assert_eq!(steps, 127);
    assert_eq!(b.bind_ipi(0), Ok(1));
}
