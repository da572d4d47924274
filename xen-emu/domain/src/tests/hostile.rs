//! A guest that calls anything with anything: nothing panics, every call ends, and nothing is written but the pages
//! the caller has mapped, the special pages, and the vcpu_infos and pages of events it has registered.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{EVTCHN, GNTTAB, HVM, MEMORY, SCHED, VCPU, VERSION};
use crate::effect::Backend;
use crate::hypercall::{Call, Outcome, Width};
use crate::peer::{Foreign, Told};
use crate::testing::Bench;

/// GNTTABOP_copy.
const COPY: u64 = 5;

/// Numbers that mean something somewhere: ports, frames, pointers, ids, and the edges of types.
fn number() -> impl Strategy<Value = u64> {
    let pointers = prop::sample::select(vec![0x8000u64, 0x8ff8, 0x8fff, 0x9000, 0xfffc, 0x1_0000, 0x3000]);
    let edges = prop::sample::select(vec![
        0x7ff0,
        0xf3 | 2 << 56,
        1 << 31,
        u64::from(u32::MAX),
        1 << 40,
        1 << 56,
        (1 << 56) + 0x1000_0000,
        u64::MAX >> 6,
        u64::MAX,
    ]);
    prop_oneof![3 => 0u64..8, 2 => 0u64..70, 1 => (0u64..512).prop_map(|n| n * 8), 3 => pointers, 1 => edges, 1 => any::<u64>()]
}

/// An operation of the family, or anything.
fn operation(nr: u64) -> impl Strategy<Value = u64> {
    if nr == GNTTAB {
        // A copy may write any page of the guest's own; `gnttab` has a test for it.
        return (0u64..13).prop_filter("copies", |op| *op != COPY).boxed();
    }
    let known = match nr {
        VCPU => 16,
        EVTCHN => 14,
        SCHED => 8,
        VERSION => 15,
        18 | 21 => 2,
        _ => 29,
    };
    prop_oneof![19 => 0u64..known, 1 => any::<u64>()].boxed()
}

/// The arguments after the operation, most often shaped as the family wants them.
fn arguments(nr: u64) -> impl Strategy<Value = [u64; 5]> {
    let shaped = match nr {
        VCPU => (0..5u64, Just(Bench::ARG)).boxed(),
        GNTTAB => (Just(Bench::ARG), Just(1)).boxed(),
        13 => (Just(Bench::ARG), 0..80u64).boxed(),
        18 => (0..5000u64, Just(0x9000)).boxed(),
        _ => (Just(Bench::ARG), number()).boxed(),
    };
    let first_two = prop_oneof![9 => shaped, 1 => (number(), number())];
    (first_two, number(), number(), number()).prop_map(|((b, c), d, e, f)| [b, c, d, e, f])
}

fn call() -> impl Strategy<Value = Call> {
    let families =
        vec![MEMORY, MEMORY, VCPU, VCPU, EVTCHN, EVTCHN, HVM, SCHED, GNTTAB, VERSION, 13, 15, 18, 21, 33, 99];
    let registers =
        prop::sample::select(families).prop_flat_map(|nr| (Just(nr), operation(nr), arguments(nr)));
    (registers, 0u32..5, any::<bool>(), 0u8..20).prop_map(|((nr, op, [b, c, d, e, f]), vcpu, long, cpl)| {
        let first = if nr == 13 { b } else { op };
        let (b, c) = if nr == 13 { (c, d) } else { (b, c) };
        let width = if long { Width::Bits64 } else { Width::Bits32 };
        Call { vcpu, nr, args: [first, b, c, d, e, f], width, cpl: cpl / 19 * 3 }
    })
}

/// What is put where the argument is read, before the call: longs, or words.
fn argument() -> impl Strategy<Value = Vec<u8>> {
    let longs = prop::collection::vec(number(), 0..8);
    let words = prop::collection::vec(number().prop_map(|n| u32::try_from(n & 0xffff_ffff).unwrap()), 0..8);
    prop_oneof![
        longs.prop_map(|longs| longs.into_iter().flat_map(u64::to_le_bytes).collect()),
        words.prop_map(|words| words.into_iter().flat_map(u32::to_le_bytes).collect()),
    ]
}

fn run(bench: &mut Bench, mut call: Call) {
    // The longest continuations: 2^32 multicall entries or console bytes end at the first page that faults.
    for _ in 0..10_000 {
        match bench.raw(call) {
            Outcome::Again(rest) => call = rest,
            Outcome::Ask(rest) => {
                assert!(!bench.domain.answered(rest.vcpu));
                let told = bench.fx.answers.pop_front().unwrap_or(Told::Nobody);
                bench.tell(told);
                call = rest;
            }
            Outcome::Block(_) => {
                bench.domain.unblocked(call.vcpu);
                return;
            }
            Outcome::Done(_) | Outcome::Exit(_) => return,
        }
    }
    panic!("never ends: {call:x?}");
}

/// What another domain's process might say, right or wrong.
fn told() -> impl Strategy<Value = Told> {
    prop_oneof![
        (0u32..8).prop_map(|n| Told::Bound(Backend::Device(n))),
        (0u32..8).prop_map(|n| Told::Mapped(Foreign(n))),
        (0usize..9).prop_map(|len| Told::Bytes(vec![Bench::FILL; len])),
        Just(Told::Done),
        Just(Told::NotBound(xen_abi::errno::Errno::EINVAL)),
        any::<i16>().prop_map(|status| Told::NotGranted(xen_abi::grant_table::GntStatus(status))),
        Just(Told::Nobody),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 400 }, ..ProptestConfig::default() })]
    #[test]
    fn nothing_breaks_and_nothing_else_is_written(
        long in any::<bool>(),
        accelerated in any::<bool>(),
        fifo in any::<bool>(),
        answers in prop::collection::vec(told(), 0..40),
        steps in prop::collection::vec((argument(), call()), 1..100),
    ) {
        let mut bench = Bench::new(if long { Width::Bits64 } else { Width::Bits32 });
        bench.fx.accelerated = accelerated;
        bench.fx.answers = answers.into();
        bench.domain.config.fifo = fifo;
        let mut events = BTreeSet::new();
        bench.with(|domain, cx| domain.connect_backend(Backend::Store, cx)).unwrap();
        bench.with(|domain, cx| domain.connect_backend(Backend::Console, cx)).unwrap();
        for (argument, call) in steps {
            for (at, byte) in (Bench::ARG..).zip(argument) {
                bench.put(at, &byte);
            }
            run(&mut bench, call);
            let pages = bench.domain.pages();
            prop_assert!(pages <= Bench::FRAMES, "more memory than there is");
            bench.with(|domain, cx| domain.raise(1, cx));
            events.extend(bench.domain.ports.abi.fifo().into_iter().flat_map(|fifo| fifo.frames()));
        }
        let mapped: BTreeSet<u64> = bench.gva.0.clone().collect();
        let registered = bench.domain.vcpus.iter().filter_map(|vcpu| vcpu.info).map(|gpa| gpa.gfn().0);
        let may: BTreeSet<u64> = mapped.into_iter().chain(registered).chain(events).collect();
        // A multicall may have found a copy.
        prop_assume!(!bench.domain.counters().contains_key(&(GNTTAB, COPY)));
        let changed = bench.ram.changed(Bench::FILL);
        prop_assert!(changed.is_subset(&may), "written: {:x?}", changed.difference(&may));
        prop_assert!(!bench.domain.describe("").is_empty());
    }
}
