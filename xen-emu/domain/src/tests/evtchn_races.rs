//! Models of a guest that masks, unmasks and takes events while they are raised: loom runs every interleaving, up to
//! three preemptions, of the accesses to the words that both sides share. Hypercalls hold the domain's lock, as here.

use std::collections::BTreeMap;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;
use xen_abi::Width;
use xen_abi::event_channel::fifo::{LINKED, MASKED, PENDING};
use xen_abi::shared_info::Layout;

use crate::evtchn::abi::{Place, PortOps, Raised};
use crate::evtchn::abi_2l::TwoLevel;
use crate::evtchn::abi_fifo::Fifo;
use crate::mem::{Fault, Gfn, Gpa, GuestMem};
use crate::testing::{GuestEvents, Unmasked};

const SHARED_INFO: Gfn = Gfn(1);
const ARRAY: Gfn = Gfn(2);
const BLOCK: Gfn = Gfn(3);
const INFO: Gfn = Gfn(4);

/// A locked instruction is a full barrier, which loom wants to be told.
fn locked<T>(old: T) -> T {
    fence(SeqCst);
    old
}

/// Guest words that loom watches.
struct Words(BTreeMap<u64, AtomicU32>);

impl Words {
    fn at(&self, gpa: Gpa) -> Result<&AtomicU32, Fault> {
        self.0.get(&gpa.0).ok_or(Fault)
    }
}

impl GuestMem for Words {
    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<(), Fault> {
        Err(Fault)
    }
    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), Fault> {
        Err(Fault)
    }
    fn load_u32(&self, gpa: Gpa) -> Result<u32, Fault> {
        self.at(gpa).map(|word| word.load(SeqCst))
    }
    fn store_u32(&self, gpa: Gpa, value: u32) -> Result<(), Fault> {
        self.at(gpa).map(|word| word.store(value, SeqCst))
    }
    fn load_u64(&self, _: Gpa) -> Result<u64, Fault> {
        Err(Fault)
    }
    fn fetch_or_u8(&self, gpa: Gpa, bits: u8) -> Result<u8, Fault> {
        self.at(gpa).map(|word| locked(word.fetch_or(bits.into(), SeqCst)).to_le_bytes()[0])
    }
    fn fetch_or_u32(&self, gpa: Gpa, bits: u32) -> Result<u32, Fault> {
        self.at(gpa).map(|word| locked(word.fetch_or(bits, SeqCst)))
    }
    fn fetch_and_u32(&self, gpa: Gpa, bits: u32) -> Result<u32, Fault> {
        self.at(gpa).map(|word| locked(word.fetch_and(bits, SeqCst)))
    }
    fn fetch_or_u64(&self, _: Gpa, _: u64) -> Result<u64, Fault> {
        Err(Fault)
    }
    fn fetch_and_u64(&self, _: Gpa, _: u64) -> Result<u64, Fault> {
        Err(Fault)
    }
    fn cas_u32(&self, gpa: Gpa, old: u32, new: u32) -> Result<Result<u32, u32>, Fault> {
        self.at(gpa).map(|word| locked(word.compare_exchange(old, new, SeqCst, SeqCst)))
    }
}

/// One vCPU and what raises events for it.
struct World {
    words: Words,
    abi: Mutex<Box<dyn PortOps>>,
    /// The vCPU has an interrupt waiting.
    irq: AtomicBool,
    at: Place,
}

impl World {
    fn new(mut abi: Box<dyn PortOps>) -> Arc<World> {
        let layout = Layout::of(Width::W32);
        let shared = |offset: usize| SHARED_INFO.gpa().0 + offset as u64;
        let words = [shared(layout.pending), shared(layout.mask)];
        let info = [INFO.gpa().0, INFO.gpa().0 + layout.vcpu_pending_sel as u64];
        let block = [BLOCK.gpa().0, BLOCK.gpa().0 + 8 + 7 * 4];
        let array = (1..4).map(|port| ARRAY.gpa().0 + port * 4);
        let all = words.into_iter().chain(info).chain(block).chain(array);
        if let Some(fifo) = abi.fifo() {
            fifo.set_control(0, BLOCK.gpa()).unwrap();
            fifo.add_page(ARRAY);
        }
        let at = Place { shared_info: SHARED_INFO.gpa(), layout, vcpu: 0, vcpu_info: Some(INFO.gpa()) };
        Arc::new(World {
            words: Words(all.map(|gpa| (gpa, AtomicU32::new(0))).collect()),
            abi: Mutex::new(abi),
            irq: AtomicBool::new(false),
            at,
        })
    }

    fn events(&self) -> GuestEvents {
        match self.abi.lock().unwrap().fifo() {
            Some(_) => GuestEvents::fifo(ARRAY.gpa(), vec![BLOCK.gpa()]),
            None => GuestEvents::TwoLevel { shared_info: SHARED_INFO.gpa(), layout: self.at.layout },
        }
    }

    fn set_pending(&self, abi: &mut dyn PortOps, port: u32) {
        if abi.set_pending(&self.words, &self.at, port) == Ok(Raised::Upcall) {
            self.irq.fetch_or(true, SeqCst);
        }
    }

    fn raise(&self, port: u32) {
        let mut abi = self.abi.lock().unwrap();
        self.set_pending(&mut **abi, port);
    }

    fn unmask(&self, events: &GuestEvents, port: u32) {
        if events.unmask(&self.words, port, thread::yield_now) == Unmasked::Ask {
            let mut abi = self.abi.lock().unwrap();
            if abi.unmask(&self.words, &self.at, port) == Ok(true) {
                self.set_pending(&mut **abi, port);
            }
        }
    }

    /// The upcall handler, if there is an interrupt.
    fn interrupt(&self, events: &mut GuestEvents) -> Vec<u32> {
        match self.irq.swap(false, SeqCst) {
            true => events.take(&self.words, 0, INFO.gpa()),
            false => Vec::new(),
        }
    }
}

/// In every interleaving, `raising` beside `guest`, after `before`; then the last interrupt. `check` gets all events
/// taken.
fn model(
    before: fn(&World, &mut GuestEvents),
    raising: fn(&World),
    guest: fn(&World, &mut GuestEvents) -> Vec<u32>,
    check: fn(&[u32]),
) {
    let abis: [fn() -> Box<dyn PortOps>; 2] = [|| Box::new(TwoLevel), || Box::new(Fifo::new(1, 0))];
    for abi in abis {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(move || {
            let world = World::new(abi());
            let mut events = world.events();
            before(&world, &mut events);
            let beside = {
                let world = world.clone();
                thread::spawn(move || raising(&world))
            };
            let mut taken = guest(&world, &mut events);
            beside.join().unwrap();
            taken.extend(world.interrupt(&mut events));
            taken.sort_unstable();
            check(&taken);
        });
    }
}

/// A handler that is still at the 2-level bitmap while the domain goes over to FIFO.
#[test]
fn an_event_goes_along_to_fifo_or_is_taken_before() {
    loom::model(|| {
        let world = World::new(Box::new(TwoLevel));
        world.raise(1);
        let beside = {
            let world = world.clone();
            thread::spawn(move || {
                world.abi.lock().unwrap().clear_pending(&world.words, &world.at, 1) == Ok(true)
            })
        };
        let word = SHARED_INFO.gpa().offset(world.at.layout.pending as u64);
        let taken = world.words.fetch_and_u32(word, !(1 << 1)).unwrap() & 1 << 1 != 0;
        assert_ne!(beside.join().unwrap(), taken);
    });
}

#[test]
fn two_events_are_taken_once_each() {
    let raising = |world: &World| {
        world.raise(1);
        world.raise(2);
    };
    model(|_, _| {}, raising, World::interrupt, |taken| assert_eq!(taken, [1, 2]));
}

#[test]
fn an_event_raised_while_another_is_taken() {
    let raising = |world: &World| world.raise(2);
    model(|world, _| world.raise(1), raising, World::interrupt, |taken| assert_eq!(taken, [1, 2]));
}

#[test]
fn an_event_raised_again_while_it_is_taken() {
    let raising = |world: &World| world.raise(1);
    let check = |taken: &[u32]| assert!(matches!(taken, [1] | [1, 1]), "{taken:?}");
    model(|world, _| world.raise(1), raising, World::interrupt, check);
}

#[test]
fn an_event_raised_while_its_mask_is_taken_off() {
    let guest = |world: &World, events: &mut GuestEvents| {
        world.unmask(events, 1);
        world.interrupt(events)
    };
    model(
        |world, events| events.mask(&world.words, 1),
        |world| world.raise(1),
        guest,
        |taken| assert_eq!(taken, [1]),
    );
}

#[test]
fn an_event_masked_on_its_way_comes_after_the_mask() {
    let guest = |world: &World, events: &mut GuestEvents| {
        events.mask(&world.words, 1);
        let early = world.interrupt(events);
        world.unmask(events, 1);
        early
    };
    model(|_, _| {}, |world| world.raise(1), guest, |taken| assert_eq!(taken, [1]));
}

#[test]
fn a_tail_is_masked_and_unmasked_while_the_next_event_is_linked_to_it() {
    let guest = |world: &World, events: &mut GuestEvents| {
        events.mask(&world.words, 1);
        world.unmask(events, 1);
        world.interrupt(events)
    };
    model(|world, _| world.raise(1), |world| world.raise(2), guest, |taken| assert_eq!(taken, [1, 2]));
}

/// The word of the tail changes under the hands that link to it; while it is BUSY the mask does not come off.
#[test]
fn a_tail_is_unmasked_while_the_next_event_is_linked_to_it() {
    let before = |world: &World, events: &mut GuestEvents| {
        world.raise(1);
        events.mask(&world.words, 1);
        if let GuestEvents::Fifo { array, .. } = events {
            // A guest that drops the event and will take the port off its queue later.
            let word = array.offset(4);
            assert_eq!(world.words.fetch_and_u32(word, !PENDING), Ok(PENDING | MASKED | LINKED));
        } else {
            let mut abi = world.abi.lock().unwrap();
            abi.clear_pending(&world.words, &world.at, 1).unwrap();
        }
    };
    let guest = |world: &World, events: &mut GuestEvents| {
        world.unmask(events, 1);
        world.interrupt(events)
    };
    model(before, |world| world.raise(2), guest, |taken| assert_eq!(taken, [2]));
}
