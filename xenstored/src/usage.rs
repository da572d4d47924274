//! How much of what is limited domains use, and the most they have used: `xenstore control quota`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::DomId;
use crate::quota::Limit;
use crate::store::{ConnId, Store};

/// What is counted, in the order it is shown.
pub(crate) const COUNTED: [Limit; 5] =
    [Limit::Nodes, Limit::Watches, Limit::Transactions, Limit::Outstanding, Limit::Memory];

/// One number for each of [`COUNTED`].
pub(crate) type Amounts = [usize; COUNTED.len()];

/// What a domain's messages take at the moment, as its server knows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unread {
    /// Replies that it has not read.
    pub replies: usize,
    /// Bytes kept for it.
    pub bytes: usize,
}

/// Uses as last noted, and the most ever seen.
#[derive(Debug)]
pub(crate) struct Usage {
    unread: BTreeMap<DomId, Unread>,
    most: BTreeMap<DomId, Amounts>,
    most_of_all: Amounts,
    /// Those that are above the soft limit.
    warned: BTreeSet<DomId>,
    /// Bytes from which on a domain is warned of; 0 for never.
    pub(crate) soft_memory: u32,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            unread: BTreeMap::new(),
            most: BTreeMap::new(),
            most_of_all: Amounts::default(),
            warned: BTreeSet::new(),
            soft_memory: 2 * 1024 * 1024,
        }
    }
}

impl Usage {
    pub(crate) fn most(&self, domid: DomId) -> Amounts {
        self.most.get(&domid).copied().unwrap_or_default()
    }

    /// Bytes of messages that wait for a domain, as last noted.
    pub(crate) fn unread_bytes(&self, domid: DomId) -> usize {
        self.unread.get(&domid).map_or(0, |unread| unread.bytes)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::from("Max. seen accounting values:\n");
        for (limit, most) in COUNTED.iter().zip(self.most_of_all) {
            let _ = writeln!(text, "{:<16}: {most:8}", limit.name());
        }
        text
    }

    pub(crate) fn reset(&mut self) {
        (self.most, self.most_of_all) = (BTreeMap::new(), Amounts::default());
    }

    pub(crate) fn forget(&mut self, domid: DomId) {
        self.unread.remove(&domid);
        self.most.remove(&domid);
        self.warned.remove(&domid);
    }
}

impl Store {
    /// What a domain uses.
    pub(crate) fn used(&self, domid: DomId) -> Amounts {
        let conn = self.domains.get(domid).and_then(|domain| domain.conn);
        let state = conn.and_then(|conn| self.conns.get(&conn));
        let unread = self.usage.unread.get(&domid).copied().unwrap_or_default();
        [
            self.accounts.nodes(domid),
            state.map_or(0, |state| state.watches.len()),
            state.map_or(0, |state| state.transactions.len()),
            unread.replies,
            unread.bytes + conn.map_or(0, |conn| self.memory(conn)),
        ]
    }

    /// The server says what the messages of a domain take, after it gave the domain a turn. `true` if that is above the
    /// soft limit and was not the last time.
    pub fn note_unread(&mut self, conn: ConnId, unread: Unread) -> bool {
        let Some(domid) = self.conns.get(&conn).map(|state| state.caller.domid).filter(|&domid| domid != 0)
        else {
            return false;
        };
        let limit = usize::try_from(self.usage.soft_memory).unwrap_or(usize::MAX);
        let above = |bytes: usize| limit > 0 && bytes > limit;
        self.usage.unread.insert(domid, unread);
        let now = self.used(domid);
        let bytes = now.last().copied().unwrap_or(0);
        let usage = &mut self.usage;
        let own = usage.most.entry(domid).or_default();
        for ((own, all), now) in own.iter_mut().zip(&mut usage.most_of_all).zip(now) {
            (*own, *all) = ((*own).max(now), (*all).max(now));
        }
        if !above(bytes) {
            usage.warned.remove(&domid);
        }
        above(bytes) && usage.warned.insert(domid)
    }
}
