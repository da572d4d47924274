use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use xen_abi::grant_table::{GrantEntryV1, gtf};
use xen_abi::{Domid, Gref};
use zerocopy::{FromBytes, IntoBytes};

use crate::gnttab::{GrantError, Grants, Pinned, Pins};
use crate::mem::{Fault, Gfn, Gpa, GuestMem};
use crate::testing::{FakeRam, entry_v1, grant, revoke};

fn flags(ram: &FakeRam, gref: u32) -> u16 {
    let mut bytes = [0; 8];
    ram.read(entry_v1(Gref(gref)), &mut bytes).unwrap();
    GrantEntryV1::read_from_bytes(&bytes).unwrap().flags
}

fn surroundings() -> (Arc<FakeRam>, Pins) {
    let ram = Arc::new(FakeRam::new(0..16, 0));
    let pins = Pins::alone(ram.clone(), 1);
    (ram, pins)
}

#[test]
fn the_bits_of_use_come_with_the_first_pin_and_go_with_the_last() {
    let (ram, pins) = surroundings();
    grant(&*ram, Gref(9), Gfn(3), false).unwrap();
    let (r, w, rw) = (gtf::READING, gtf::WRITING, gtf::READING | gtf::WRITING);
    let whole = Ok(Pinned { gpa: Gpa(0x3000), len: 4096 });
    for (pin, write, wanted) in [
        (true, false, r),
        (true, true, rw),
        (true, true, rw),
        (false, true, rw),
        (false, true, r),
        (false, false, 0),
        (true, true, rw),
        (true, false, rw),
        (false, true, r),
        (false, true, r),
        (false, false, 0),
        (false, false, 0),
    ] {
        if pin {
            assert_eq!(pins.pin(Gref(9), write), whole);
        } else {
            pins.unpin(Gref(9), write);
        }
        assert_eq!(flags(&ram, 9), gtf::PERMIT_ACCESS | wanted, "pin {pin} write {write}");
    }
    assert_eq!((pins.in_use(), w), (0, gtf::WRITING));
}

#[test]
fn nothing_moves_that_a_backend_writes_to() {
    let (ram, pins) = surroundings();
    grant(&*ram, Gref(9), Gfn(3), false).unwrap();
    let moves = |frame| pins.unless_written(Gfn(frame), || ()).is_some();
    pins.pin(Gref(9), false).unwrap();
    assert!(moves(3), "what is read can be read elsewhere");
    pins.pin(Gref(9), true).unwrap();
    assert!(!moves(3) && moves(4));
    pins.unpin(Gref(9), true);
    assert!(moves(3));
}

#[test]
fn what_is_not_granted_to_us_is_refused_and_not_marked() {
    let (ram, pins) = surroundings();
    let put = |flags, domid, frame| {
        let entry = GrantEntryV1 { flags, domid: Domid(domid), frame };
        ram.write(entry_v1(Gref(8)), entry.as_bytes()).unwrap();
    };
    let access = gtf::PERMIT_ACCESS;
    for (bits, domid, frame, write, wanted) in [
        (gtf::INVALID, 0, 1, false, GrantError::BadRef(8)),
        (gtf::ACCEPT_TRANSFER, 0, 1, false, GrantError::BadRef(8)),
        (gtf::TRANSITIVE, 0, 1, false, GrantError::BadRef(8)),
        (access, 7, 1, false, GrantError::BadDomain(8)),
        (access | gtf::READONLY, 0, 1, true, GrantError::ReadOnly(8)),
        (access, 0, 16, true, GrantError::BadFrame(8)),
        (access, 0, u32::MAX, false, GrantError::BadFrame(8)),
    ] {
        put(bits, domid, frame);
        assert_eq!(pins.pin(Gref(8), write), Err(wanted));
        assert_eq!((flags(&ram, 8), pins.in_use()), (bits, 0));
    }
    for gref in [512, u32::MAX] {
        assert_eq!(pins.pin(Gref(gref), false), Err(GrantError::NoEntry(gref)));
    }
    put(access | gtf::READONLY, 0, 1);
    pins.pin(Gref(8), false).unwrap();
    assert_eq!(pins.pin(Gref(8), true), Err(GrantError::ReadOnly(8)));
    assert_eq!(flags(&ram, 8), access | gtf::READONLY | gtf::READING);
}

#[test]
fn a_grant_revoked_or_changed_in_use_stays_what_it_was() {
    let (ram, pins) = surroundings();
    let gref = Gref(511);
    grant(&*ram, gref, Gfn(3), false).unwrap();
    let pinned = pins.pin(gref, true).unwrap();
    assert_eq!(revoke(&*ram, gref), Ok(true));
    assert_eq!(pins.pin(gref, false), Ok(pinned), "it counts on");
    grant(&*ram, gref, Gfn(4), true).unwrap();
    assert_eq!(pins.pin(gref, false), Ok(pinned), "what the last pin does not see is not seen");
    pins.unpin(gref, true);
    pins.unpin(gref, false);
    pins.unpin(gref, false);
    assert_eq!(flags(&ram, 511), gtf::PERMIT_ACCESS | gtf::READONLY);
    assert_eq!(pins.pin(gref, true), Err(GrantError::ReadOnly(511)));
    assert_eq!(pins.pin(gref, false).map(|pinned| pinned.gpa), Ok(Gpa(0x4000)));
}

/// Memory in which the guest changes a word whenever somebody looks.
struct Restless(FakeRam);

macro_rules! pass {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, gpa: Gpa $(, $arg: $ty)*) -> Result<$out, Fault> { self.0.$name(gpa $(, $arg)*) })*
    };
}

impl GuestMem for Restless {
    pass! {
        read(buf: &mut [u8]) -> ();
        write(buf: &[u8]) -> ();
        load_u32() -> u32;
        store_u32(value: u32) -> ();
        load_u64() -> u64;
        fetch_or_u8(bits: u8) -> u8;
        fetch_or_u32(bits: u32) -> u32;
        fetch_and_u32(bits: u32) -> u32;
        fetch_or_u64(bits: u64) -> u64;
        fetch_and_u64(bits: u64) -> u64;
    }
    fn cas_u32(&self, gpa: Gpa, old: u32, new: u32) -> Result<Result<u32, u32>, Fault> {
        let pat = u32::from(gtf::PAT);
        self.0.store_u32(gpa, old ^ pat)?;
        self.0.cas_u32(gpa, old, new)
    }
}

#[test]
fn an_entry_that_never_rests_is_given_up() {
    let ram = Arc::new(Restless(FakeRam::new(0..16, 0)));
    let pins = Pins::alone(ram.clone(), 1);
    grant(&*ram, Gref(8), Gfn(3), false).unwrap();
    assert_eq!(pins.pin(Gref(8), true), Err(GrantError::Busy(8)));
    assert_eq!(pins.in_use(), 0);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pin(u32, bool),
    Unpin(u32, bool),
    Write(u32, u16, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let gref = 0u32..3;
    prop_oneof![
        3 => (gref.clone(), any::<bool>()).prop_map(|(gref, write)| Step::Pin(gref, write)),
        3 => (gref.clone(), any::<bool>()).prop_map(|(gref, write)| Step::Unpin(gref, write)),
        1 => (gref, 0u16..0x20, 0u32..20).prop_map(|(gref, flags, frame)| Step::Write(gref, flags, frame)),
    ]
}

proptest! {
    /// Against a model that counts: a pin succeeds exactly where the rules say so, the bits in the entry are those of
    /// the counts unless the guest has written over them, and what is pinned does not move.
    #[test]
    fn pins_count(steps in prop::collection::vec(step(), 1..60)) {
        let (ram, pins) = surroundings();
        // gref -> (frame, readers, writers)
        let mut model: BTreeMap<u32, (u32, u32, u32)> = BTreeMap::new();
        let mut entries = [(0u16, 0u32); 3];
        for step in steps {
            match step {
                Step::Write(gref, bits, frame) => {
                    entries[gref as usize] = (bits, frame);
                    let entry = GrantEntryV1 { flags: bits, domid: Domid::DOM0, frame };
                    ram.write(entry_v1(Gref(gref)), entry.as_bytes()).unwrap();
                }
                Step::Pin(gref, write) => {
                    let (bits, frame) = &mut entries[gref as usize];
                    let held = model.get(&gref).copied();
                    let granted = *bits & gtf::TYPE_MASK == gtf::PERMIT_ACCESS && *frame < 16;
                    let news = held.is_none_or(|(_, _, writers)| write && writers == 0);
                    let allowed = (held.is_some() || granted)
                        && !(news && write && *bits & gtf::READONLY != 0);
                    let pinned = pins.pin(Gref(gref), write);
                    prop_assert_eq!(pinned.is_ok(), allowed, "{:?}", pinned);
                    if let Ok(pinned) = pinned {
                        let (was, readers, writers) = held.unwrap_or((*frame, 0, 0));
                        prop_assert_eq!(pinned.gpa, Gpa(u64::from(was) << 12));
                        let (readers, writers) =
                            if write { (readers, writers + 1) } else { (readers + 1, writers) };
                        model.insert(gref, (was, readers, writers));
                    }
                    let told = gtf::READING | gtf::WRITING;
                    let permits = *bits & gtf::TYPE_MASK == gtf::PERMIT_ACCESS
                        && !(write && *bits & gtf::READONLY != 0);
                    if allowed && news {
                        *bits |= if write { told } else { gtf::READING };
                    } else if held.is_none() && permits {
                        // Marked, found to lead nowhere, and unmarked again.
                        *bits &= !told;
                    }
                }
                Step::Unpin(gref, write) => {
                    pins.unpin(Gref(gref), write);
                    let Some((_, readers, writers)) = model.get_mut(&gref) else { continue };
                    let count = if write { &mut *writers } else { &mut *readers };
                    if *count == 0 {
                        continue;
                    }
                    *count -= 1;
                    let bits = &mut entries[gref as usize].0;
                    match (*readers, *writers) {
                        (0, 0) => {
                            *bits &= !(gtf::READING | gtf::WRITING);
                            model.remove(&gref);
                        }
                        (_, 0) if write => *bits &= !gtf::WRITING,
                        _ => {}
                    }
                }
            }
            for (gref, (bits, _)) in (0..).zip(entries) {
                prop_assert_eq!(flags(&ram, gref), bits, "gref {}", gref);
            }
            prop_assert_eq!(pins.in_use(), model.len());
        }
    }
}
