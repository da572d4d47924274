//! The grants that a queue uses: pinned for one request, or, when both sides have agreed on persistent grants, kept
//! for the next ones. At most so many are kept; those not used for longest go first.

use std::collections::HashMap;
use std::sync::Arc;
use xen_abi::Gref;
use xen_domain::gnttab::{GrantError, Grants, Pinned};

/// A grant in use by a request, to be given back by [`Pages::give`].
#[derive(Debug)]
pub enum Held {
    /// One that is kept.
    Kept(Gref),
    /// Pinned for this request; for writing or not.
    Once(Gref, bool),
}

#[derive(Debug)]
struct Kept {
    page: Pinned,
    users: u32,
    used: u64,
}

/// One queue's pins.
pub struct Pages {
    grants: Arc<dyn Grants>,
    kept: HashMap<u32, Kept>,
    most: usize,
    /// Of those kept, how many requests use.
    busy: usize,
    clock: u64,
}

impl Pages {
    /// Keeps at most `most` grants: 0 without persistent grants.
    pub fn new(grants: Arc<dyn Grants>, most: usize) -> Pages {
        Pages { grants, kept: HashMap::new(), most, busy: 0, clock: 0 }
    }

    /// Pins a grant, for writing into it or only for reading from it.
    ///
    /// # Errors
    /// It is not granted for that.
    pub fn take(&mut self, gref: Gref, write: bool) -> Result<(Pinned, Held), GrantError> {
        self.clock += 1;
        if let Some(kept) = self.kept.get_mut(&gref.0) {
            self.busy += usize::from(kept.users == 0);
            kept.users += 1;
            kept.used = self.clock;
            return Ok((kept.page, Held::Kept(gref)));
        }
        // A grant that is kept serves both directions; one that cannot is used once.
        if self.most > 0
            && self.make_room()
            && let Ok(page) = self.grants.pin(gref, true)
        {
            self.busy += 1;
            self.kept.insert(gref.0, Kept { page, users: 1, used: self.clock });
            return Ok((page, Held::Kept(gref)));
        }
        let page = self.grants.pin(gref, write)?;
        Ok((page, Held::Once(gref, write)))
    }

    /// The request is over.
    pub fn give(&mut self, held: Held) {
        match held {
            Held::Once(gref, write) => self.grants.unpin(gref, write),
            Held::Kept(gref) => {
                if let Some(kept) = self.kept.get_mut(&gref.0) {
                    kept.users = kept.users.saturating_sub(1);
                    self.busy -= usize::from(kept.users == 0);
                }
            }
        }
    }

    /// Grants kept.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Whether one more can be kept: lets an eighth go when all places are taken.
    fn make_room(&mut self) -> bool {
        if self.kept.len() < self.most {
            return true;
        }
        if self.busy == self.kept.len() {
            return false;
        }
        let mut idle: Vec<(u64, u32)> = self
            .kept
            .iter()
            .filter(|(_, kept)| kept.users == 0)
            .map(|(gref, kept)| (kept.used, *gref))
            .collect();
        let some = (self.most / 8).clamp(1, idle.len());
        idle.select_nth_unstable(some - 1);
        for (_, gref) in idle.into_iter().take(some) {
            self.kept.remove(&gref);
            self.grants.unpin(Gref(gref), true);
        }
        true
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.kept.keys().for_each(|gref| self.grants.unpin(Gref(*gref), true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_domain::gnttab::Pins;
    use xen_domain::mem::Gfn;
    use xen_domain::testing::{grant, revoke};

    #[test]
    fn the_longest_unused_go_first_and_all_go_at_the_end() {
        let ram = Arc::new(crate::memory::Memory::new(&[(0, 1 << 20)]).unwrap());
        let pins = Pins::alone(ram.clone(), 1);
        (10..40).for_each(|n| grant(&*ram, Gref(n), Gfn(n.into()), n == 39).unwrap());
        let mut pages = Pages::new(Arc::new(pins.clone()), 16);
        let mut used: Vec<Held> = (10..26).map(|n| pages.take(Gref(n), false).unwrap().1).collect();
        assert!(matches!(pages.take(Gref(30), false).unwrap().1, Held::Once(..)), "all places are in use");
        pages.give(Held::Once(Gref(30), false));
        let busy = used.remove(0);
        used.into_iter().for_each(|held| pages.give(held));
        let again = pages.take(Gref(11), true).unwrap().1;
        pages.give(again);
        let new = pages.take(Gref(31), true).unwrap().1;
        assert!(matches!(new, Held::Kept(_)));
        assert_eq!((pages.kept(), pins.in_use()), (15, 15), "an eighth went");
        let kept = |n| revoke(&*ram, Gref(n)).unwrap();
        assert!(kept(10) && kept(11) && kept(14), "in use, used again, and not yet the oldest");
        assert!(!kept(12) && !kept(13), "the two oldest");
        assert!(matches!(pages.take(Gref(39), false).unwrap().1, Held::Once(..)), "read-only");
        assert!(pages.take(Gref(39), true).is_err());
        pages.give(Held::Once(Gref(39), false));
        pages.give(busy);
        pages.give(new);
        drop(pages);
        assert_eq!(pins.in_use(), 0);
    }
}
