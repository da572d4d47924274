//! How much of what is limited domains use, and the most they have used: `xenstore control quota`.

use std::fmt::Write;

use crate::DomId;
use crate::ids::IdMap;
use crate::quota::Limit;
use crate::store::{Conn, ConnId, Store};

/// One number for each of [`Limit::ALL`]. A domain has no amount of what is limited for a node or a transaction: 0.
pub(crate) type Amounts = [usize; Limit::ALL.len()];

/// What a domain's messages take at the moment, as its server knows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unread {
    /// Replies that it has not read.
    pub replies: usize,
    /// Bytes kept for it.
    pub bytes: usize,
}

/// What is known of one domain.
#[derive(Debug, Default)]
struct Own {
    unread: Unread,
    most: Amounts,
    /// It is above the soft limit, and was warned of.
    warned: bool,
}

/// Uses as last noted, and the most ever seen.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    of: IdMap<DomId, Own>,
    most_of_all: Amounts,
}

impl Usage {
    pub(crate) fn most(&self, domid: DomId) -> Amounts {
        self.of.get(&domid).map(|own| own.most).unwrap_or_default()
    }

    /// Bytes of messages that wait for a domain, as last noted.
    pub(crate) fn unread_bytes(&self, domid: DomId) -> usize {
        self.of.get(&domid).map_or(0, |own| own.unread.bytes)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::from("Max. seen accounting values:\n");
        for (limit, most) in Limit::ALL.iter().zip(self.most_of_all) {
            let _ = writeln!(text, "{:<17}: {most:8}", limit.name());
        }
        text
    }

    pub(crate) fn reset(&mut self) {
        self.of.values_mut().for_each(|own| own.most = Amounts::default());
        self.most_of_all = Amounts::default();
    }

    pub(crate) fn forget(&mut self, domid: DomId) {
        self.of.remove(&domid);
    }
}

impl Store {
    /// What a domain uses.
    pub(crate) fn used(&self, domid: DomId) -> Amounts {
        let unread = self.usage.of.get(&domid).map(|own| own.unread).unwrap_or_default();
        let conn = self.domains.get(domid).and_then(|domain| domain.conn);
        self.amounts(domid, conn.and_then(|conn| self.conns.get(&conn)), unread)
    }

    fn amounts(&self, domid: DomId, conn: Option<&Conn>, unread: Unread) -> Amounts {
        let (nodes, bytes) = self.accounts.of(domid);
        let (watches, transactions, kept) = conn.map_or((0, 0, 0), Conn::amounts);
        [nodes, watches, unread.replies, unread.bytes + bytes + kept, transactions, 0, 0, 0, 0]
    }

    /// The server says what the messages of a domain take, after it gave the domain a turn. `true` if that is above the
    /// soft limit and was not the last time.
    pub fn note_unread(&mut self, conn: ConnId, unread: Unread) -> bool {
        let Some(state) = self.conns.get(&conn).filter(|state| state.caller.domid != 0) else { return false };
        let domid = state.caller.domid;
        let now = self.amounts(domid, Some(state), unread);
        let limit = self.quota.limit(domid, Limit::SoftMemory);
        let usage = &mut self.usage;
        let own = usage.of.entry(domid).or_default();
        own.unread = unread;
        for ((own, all), now) in own.most.iter_mut().zip(&mut usage.most_of_all).zip(now) {
            (*own, *all) = ((*own).max(now), (*all).max(now));
        }
        let [_, _, _, bytes, ..] = now;
        let above = bytes > limit;
        let before = std::mem::replace(&mut own.warned, above);
        above && !before
    }
}
