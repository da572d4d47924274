//! The same script of sends, masks, moves and closes delivers the same events under both ABIs, and across the switch.

use proptest::prelude::*;
use xen_abi::shared_info::Layout;
use xen_abi::xen::Domid;

use crate::hypercall::Width;
use crate::mem::{Gfn, GuestMem, SpecialPage};
use crate::testing::{Bench, GuestEvents, Unmasked};

/// Channels that a script may have open.
const SLOTS: usize = 6;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A fresh IPI to this vCPU, unmasked.
    Ipi(usize, u32),
    /// A fresh loopback pair; the slot's events are sent on the other end.
    Loopback(usize),
    Send(usize),
    Mask(usize),
    Unmask(usize),
    Move(usize, u32),
    Priority(usize, u32),
    Close(usize),
    /// Every vCPU handles its upcalls.
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    let slot = || 0..SLOTS;
    prop_oneof![
        2 => (slot(), 0..4u32).prop_map(|(slot, vcpu)| Step::Ipi(slot, vcpu)),
        2 => slot().prop_map(Step::Loopback),
        8 => slot().prop_map(Step::Send),
        2 => slot().prop_map(Step::Mask),
        3 => slot().prop_map(Step::Unmask),
        2 => (slot(), 0..4u32).prop_map(|(slot, vcpu)| Step::Move(slot, vcpu)),
        1 => (slot(), 0..16u32).prop_map(|(slot, priority)| Step::Priority(slot, priority)),
        1 => slot().prop_map(Step::Close),
        4 => Just(Step::Take),
    ]
}

/// A guest with open channels: the port that gets the events, and the one they are sent on.
struct Guest {
    bench: Bench,
    events: GuestEvents,
    slots: [Option<(u32, u32)>; SLOTS],
    delivered: Vec<Vec<usize>>,
}

impl Guest {
    fn new() -> Guest {
        let bench = Bench::with_fifo();
        let layout = Layout::of(Width::Bits64.into());
        let events = GuestEvents::TwoLevel { shared_info: SpecialPage::SharedInfo.home(), layout };
        (0..1024).for_each(|port| events.mask(&bench.ram, port));
        Guest { bench, events, slots: [None; SLOTS], delivered: Vec::new() }
    }

    /// Masks go along.
    fn switch(&mut self) {
        let old = self.events.clone();
        let array = Gfn(32).gpa();
        for port in (0..1024).filter(|&port| old.is_masked(&self.bench.ram, port)) {
            let masked = xen_abi::event_channel::fifo::MASKED;
            self.bench.ram.store_u32(array.offset(u64::from(port) * 4), masked).unwrap();
        }
        self.events = self.bench.start_fifo();
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Ipi(slot, vcpu) => {
                self.close(slot);
                let port = self.bench.bind_ipi(vcpu).unwrap();
                self.open(slot, port, port);
            }
            Step::Loopback(slot) => {
                self.close(slot);
                let far = self.bench.alloc_unbound(Domid::SELF, Domid::SELF).unwrap();
                let near = self.bench.interdomain(Domid::SELF, far).unwrap();
                self.open(slot, near, far);
            }
            Step::Take => self.take(),
            Step::Close(slot) => self.close(slot),
            Step::Send(slot) => self.with(slot, |guest, _, sent| guest.bench.send(sent).unwrap()),
            Step::Mask(slot) => self.with(slot, |guest, port, _| {
                guest.events.mask(&guest.bench.ram, port);
                0
            }),
            Step::Unmask(slot) => self.with(slot, |guest, port, _| guest.unmask(port)),
            Step::Move(slot, vcpu) => self.with(slot, |guest, port, sent| match port == sent {
                true => 0,
                false => guest.bench.bind_vcpu(port, vcpu).unwrap(),
            }),
            // An error under 2-level.
            Step::Priority(slot, priority) => {
                self.with(slot, |guest, port, _| guest.bench.set_priority(port, priority).unwrap_or(0))
            }
        }
    }

    fn with(&mut self, slot: usize, act: impl FnOnce(&mut Self, u32, u32) -> i64) {
        if let Some((port, sent)) = self.slots[slot] {
            assert_eq!(act(self, port, sent), 0);
        }
    }

    fn open(&mut self, slot: usize, port: u32, sent: u32) {
        self.slots[slot] = Some((port, sent));
        self.unmask(port);
    }

    fn unmask(&mut self, port: u32) -> i64 {
        match self.events.unmask(&self.bench.ram, port, || unreachable!("BUSY outside a call")) {
            Unmasked::Done => 0,
            Unmasked::Ask => self.bench.unmask(port).unwrap(),
        }
    }

    fn close(&mut self, slot: usize) {
        if let Some((port, sent)) = self.slots[slot].take() {
            self.events.mask(&self.bench.ram, port);
            self.bench.close(port).unwrap();
            if sent != port {
                self.bench.close(sent).unwrap();
            }
        }
    }

    fn take(&mut self) {
        let ports: Vec<u32> = (0..4).flat_map(|vcpu| self.bench.take(&mut self.events, vcpu)).collect();
        let slot = |port: &u32| self.slots.iter().position(|open| open.is_some_and(|(p, _)| p == *port));
        let mut slots: Vec<usize> =
            ports.iter().map(|port| slot(port).expect("an event of a closed port")).collect();
        slots.sort_unstable();
        self.delivered.push(slots);
    }
}

/// What is delivered when the guest goes to FIFO before this step.
fn run(steps: &[Step], switch: usize) -> Vec<Vec<usize>> {
    let mut guest = Guest::new();
    for (index, &step) in steps.iter().enumerate() {
        if index == switch {
            guest.switch();
        }
        guest.run(step);
    }
    guest.take();
    guest.delivered
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 300 }, ..ProptestConfig::default() })]
    #[test]
    fn both_abis_deliver_the_same(steps in prop::collection::vec(step(), 1..80), at in any::<prop::sample::Index>()) {
        let two_level = run(&steps, usize::MAX);
        prop_assert_eq!(&two_level, &run(&steps, 0), "FIFO from the start");
        prop_assert_eq!(&two_level, &run(&steps, at.index(steps.len())), "FIFO later");
    }
}
