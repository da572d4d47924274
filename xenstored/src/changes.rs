//! Which domains something was changed for lately, for those who look from time to time what is new.

use std::collections::VecDeque;

use crate::DomId;

/// So many changes are told one by one; who looks more seldom has to look at everything.
const KEPT: usize = 256;

/// Changes, counted; the last ones are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    count: u64,
    last: VecDeque<Option<DomId>>,
}

impl Changes {
    /// Something changed for a domain, or for all of them.
    pub(crate) fn note(&mut self, domid: Option<DomId>) {
        self.count += 1;
        self.last.push_back(domid);
        if self.last.len() > KEPT {
            self.last.pop_front();
        }
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// For whom, since there were so many; none if that is too long ago.
    pub(crate) fn since(&self, count: u64) -> Option<impl Iterator<Item = Option<DomId>>> {
        let new = usize::try_from(self.count.checked_sub(count)?).ok()?;
        let known = self.last.len().checked_sub(new)?;
        Some(self.last.iter().skip(known).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_changes_are_known_and_older_ones_are_not() {
        let mut changes = Changes::default();
        assert_eq!(changes.since(0).map(Iterator::count), Some(0));
        (1..=300).for_each(|domid| changes.note(Some(domid)));
        assert!(changes.since(300 - 257).is_none() && changes.since(301).is_none());
        let since = |count| changes.since(count).unwrap().flatten().collect::<Vec<_>>();
        assert_eq!((since(298), since(44).len(), since(44)[0]), (vec![299, 300], 256, 45));
    }
}
