//! Domains that are not attached: after a crash of the daemon a domain's kernel believes that its watches are there, so a
//! state folder keeps them until the domain is introduced again. Its transactions are lost, and tried again.

use std::hash::{BuildHasher, RandomState};

use crate::DomId;
use crate::migration::Record;
use crate::out::Out;
use crate::store::{ConnId, Store};
use crate::wire::{Header, MsgType};

/// A watch as its domain asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dormant {
    pub(crate) path: Box<[u8]>,
    pub(crate) token: Box<[u8]>,
    pub(crate) depth: Option<u16>,
}

impl Dormant {
    pub(crate) fn record(&self, domid: DomId) -> Record<'_> {
        Record::Dormant { domid, path: &self.path, token: &self.token, depth: self.depth }
    }
}

impl Store {
    /// The watches of a connection, oldest first.
    pub(crate) fn watches_of(&self, conn: ConnId) -> Vec<Dormant> {
        let Some(state) = self.conns.get(&conn) else { return Vec::new() };
        let mut watches: Vec<_> = state.watches.iter().collect();
        watches.sort_unstable_by_key(|(_, number)| **number);
        let watch = |((name, token), number): (&(std::sync::Arc<str>, Box<[u8]>), &u64)| {
            let watch = self.watches.get(name, *number)?;
            let path = name.get(watch.relative..).unwrap_or_default().as_bytes().into();
            let depth = watch.depth.map(|depth| u16::try_from(depth).unwrap_or(u16::MAX - 1));
            Some(Dormant { path, token: token.clone(), depth })
        };
        watches.into_iter().filter_map(watch).collect()
    }

    /// The watches of a domain, attached or not.
    pub(crate) fn watches_of_domain(&self, domid: DomId) -> Vec<Dormant> {
        match self.domains.get(domid).and_then(|domain| domain.conn) {
            Some(conn) => self.watches_of(conn),
            None => self.dormant.get(&domid).cloned().unwrap_or_default(),
        }
    }

    /// All domains there are were served by an earlier daemon.
    pub(crate) fn await_domains(&mut self) {
        for domid in self.domains.all() {
            self.dormant.entry(domid).or_default();
        }
    }

    /// If an earlier daemon has served the domain it is attached again: its watches are, too. Every one is told once,
    /// because nobody knows what it missed. Its new transactions must not have the ids of those that it has open.
    pub(crate) fn come_back(&mut self, domid: DomId, conn: ConnId, out: &mut Out) {
        let Some(watches) = self.dormant.remove(&domid) else { return };
        if let Some(state) = self.conns.get_mut(&conn) {
            let [a, b, c, d, ..] = RandomState::new().hash_one(domid).to_le_bytes();
            (state.came_back, state.last_transaction) = (true, u32::from_le_bytes([a, b, c, d]));
        }
        self.note_no_watches(domid);
        for watch in watches {
            if self.rewatch(conn, &watch).is_some() {
                out.event(conn, &String::from_utf8_lossy(&watch.path), &watch.token);
            }
        }
    }

    /// As a request, whose reply and event are for nobody. Limits do not hold: it was accepted before. None if it is
    /// refused.
    pub(crate) fn rewatch(&mut self, conn: ConnId, watch: &Dormant) -> Option<()> {
        let caller = self.conns.get(&conn)?.caller;
        self.conns.get_mut(&conn)?.caller.privileged = true;
        let accepted = self.try_rewatch(conn, watch);
        self.conns.get_mut(&conn)?.caller = caller;
        accepted
    }

    fn try_rewatch(&mut self, conn: ConnId, watch: &Dormant) -> Option<()> {
        let depth = watch.depth.map(|depth| format!("{depth}\0")).unwrap_or_default();
        let payload = [&watch.path, &b"\0"[..], &watch.token, b"\0", depth.as_bytes()].concat();
        let len = u32::try_from(payload.len()).ok()?;
        let header = Header { kind: MsgType::WATCH, req_id: 0, tx_id: 0, len };
        let mut out = Out::default();
        self.handle(conn, header, &payload, false, &mut out);
        let error = MsgType::ERROR.0.to_le_bytes();
        let refused = out.messages().any(|(_, message, _)| message.starts_with(&error));
        (!refused).then_some(())
    }
}
