//! What changed since the log was last written, for stores that have a state folder: records in the order in which it
//! happened.
//!
//! Whoever reads a record binds its permissions to the lives that domains have then. So what became of domains and their
//! limits stands before all that was changed after it.

use std::collections::BTreeMap;

use crate::DomId;
use crate::dormant::Dormant;
use crate::dump::node_record;
use crate::migration::{Record, append};
use crate::path_map::prefixes;
use crate::perms::Life;
use crate::store::Store;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    records: Vec<u8>,
    /// The domains that the records know of.
    lives: BTreeMap<DomId, Life>,
    settings: (u64, u64),
}

impl Journal {
    /// The existence of domains and the limits may have changed.
    fn catch_up(&mut self, store: &Store) {
        let settings = store.settings_version();
        if settings == self.settings {
            return;
        }
        let all = || self.lives.keys().copied().chain(store.domains.all()).map(Some).chain([None]).collect();
        let changed = store.settings_changed(self.settings).unwrap_or_else(all);
        for domid in &changed {
            self.catch_up_with(*domid, store);
        }
        for record in changed.into_iter().flatten().filter_map(|domid| store.target_record(domid)) {
            append(&mut self.records, &record);
        }
        self.settings = settings;
    }

    /// Of one domain, or the limits of all.
    fn catch_up_with(&mut self, domid: Option<DomId>, store: &Store) {
        let Some(domid) = domid else {
            return store.dump_limits(|record| append(&mut self.records, record));
        };
        let life = store.domains.life(domid).filter(|_| domid != 0);
        if self.lives.get(&domid).is_some_and(|before| Some(*before) != life) {
            append(&mut self.records, &Record::DomainGone { domid });
            self.lives.remove(&domid);
        }
        if let Some(life) = life {
            append(&mut self.records, &store.domain_record(domid));
            self.lives.insert(domid, life);
        }
    }
}

impl Store {
    /// From now on what changes is noted.
    pub(crate) fn keep_journal(&mut self) {
        let (lives, settings) = (self.lives(), self.settings_version());
        self.journal = Some(Box::new(Journal { records: Vec::new(), lives, settings }));
    }

    /// The domains that exist.
    pub(crate) fn lives(&self) -> BTreeMap<DomId, Life> {
        self.domains.all().filter_map(|domid| Some((domid, self.domains.life(domid)?))).collect()
    }

    /// A node is another than before.
    pub(crate) fn note_changed(&mut self, path: &str) {
        self.note_in_journal(|store, records| {
            if let Some(node) = store.tree.get(path) {
                append(records, &node_record(|domid| store.domains.life(domid), path, node));
            }
        });
    }

    /// A node came, and those above it below the first `depth` names of its path.
    pub(crate) fn note_created(&mut self, path: &str, depth: usize) {
        self.note_in_journal(|store, records| {
            let mut node = store.tree.root();
            for (level, prefix) in prefixes(path).enumerate().skip(1) {
                let Some(child) = node.child_at(&prefix) else { return };
                node = child;
                if level > depth {
                    append(records, &node_record(|domid| store.domains.life(domid), prefix.path, node));
                }
            }
        });
    }

    /// A node went, with all below it.
    pub(crate) fn note_removed(&mut self, path: &str) {
        self.note_in_journal(|_, records| append(records, &Record::Removed { path: path.as_bytes() }));
    }

    /// A domain asked for a watch.
    pub(crate) fn note_watched(&mut self, domid: DomId, watch: &Dormant) {
        if domid != 0 {
            self.note_in_journal(|_, records| append(records, &watch.record(domid)));
        }
    }

    /// One of its watches went.
    pub(crate) fn note_unwatched(&mut self, domid: DomId, path: &str, token: &[u8]) {
        if domid != 0 {
            let record = Record::Unwatched { domid, path: path.as_bytes(), token };
            self.note_in_journal(|_, records| append(records, &record));
        }
    }

    /// All of them went.
    pub(crate) fn note_no_watches(&mut self, domid: DomId) {
        if domid != 0 {
            self.note_in_journal(|_, records| append(records, &Record::NoWatches { domid }));
        }
    }

    fn note_in_journal(&mut self, note: impl FnOnce(&Self, &mut Vec<u8>)) {
        let Some(mut journal) = self.journal.take() else { return };
        journal.catch_up(self);
        note(self, &mut journal.records);
        self.journal = Some(journal);
    }

    /// Moves all that was noted to the end of `records`.
    pub(crate) fn take_notes(&mut self, records: &mut Vec<u8>) {
        self.note_in_journal(|_, notes| {
            records.append(notes);
            // One big commit must not keep its room for ever.
            notes.shrink_to(64 * 1024);
        });
    }

    /// Forgets what was noted.
    pub(crate) fn drop_notes(&mut self) {
        self.take_notes(&mut Vec::new());
    }
}
