//! Watches of domains that are not attached: after a crash of the daemon a domain's kernel believes that its watches
//! are there, so a state folder keeps them until the domain is introduced again.

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

    /// The domain is attached again: its watches are, too. Every one is told once, because nobody knows what it missed.
    pub(crate) fn wake_watches(&mut self, domid: DomId, conn: ConnId, out: &mut Out) {
        for watch in self.dormant.remove(&domid).unwrap_or_default() {
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
