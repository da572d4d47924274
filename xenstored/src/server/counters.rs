//! What every connection did: in `xenstore control memreport`, and as nodes under /tool/xenstored for whoever looks
//! there. Nothing is written while nobody looks, no watch is told of it, and it is in no transaction's way.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use super::Server;
use super::link::{Carrier, Link};
use crate::transaction::COUNTERS as HOME;
use crate::wire::{Header, MsgType};

/// So long the nodes stay as they are: two listings of the whole store, one after the other, are the same.
const FRESH: Duration = Duration::from_secs(5);

/// Counts of one connection since it began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    requests: u64,
    events: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl Counters {
    pub(super) fn received(&mut self, bytes: usize) {
        self.bytes_in += bytes as u64;
    }

    pub(super) fn handled(&mut self, requests: u64) {
        self.requests += requests;
    }

    pub(super) fn sent(&mut self, bytes: usize, event: bool) {
        self.bytes_out += bytes as u64;
        self.events += u64::from(event);
    }

    /// Adds those of a connection to a sum.
    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.events += other.events;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, events, bytes_in, bytes_out } = self;
        write!(f, "requests {requests} events {events} in {bytes_in} out {bytes_out}")
    }
}

/// Whether a request looks at the nodes of the counters or above them.
pub(super) fn is_asked_for(header: &Header, payload: &[u8]) -> bool {
    matches!(header.kind, MsgType::READ | MsgType::DIRECTORY | MsgType::DIRECTORY_PART)
        && payload.starts_with(HOME.as_bytes())
}

impl Server {
    /// Brings the nodes up to date, unless they were just now.
    pub(super) fn publish_counters(&mut self) {
        let now = self.began.elapsed();
        if self.published_at.is_some_and(|then| now < then + FRESH) {
            return;
        }
        self.published_at = Some(now);
        let mut nodes = BTreeMap::new();
        for (conn, link) in &self.links {
            let name = match &link.carrier {
                Carrier::Ring(domain) => format!("domain/{}", domain.domid),
                Carrier::Socket(_) => format!("connection/{}", conn.0),
            };
            nodes.insert(name, link.counters.to_string());
        }
        nodes.insert("total".into(), self.total().to_string());
        for name in
            self.published.keys().filter(|name| !nodes.contains_key(*name)).cloned().collect::<Vec<_>>()
        {
            self.request(MsgType::RM, format!("{HOME}/{name}\0").as_bytes());
        }
        for (name, text) in &nodes {
            if self.published.get(name) != Some(text) {
                self.request(MsgType::WRITE, format!("{HOME}/{name}\0{text}").as_bytes());
            }
        }
        self.published = nodes;
    }

    /// Counts begin anew: what a daemon before has left of them goes.
    pub(super) fn forget_counters(&mut self) {
        for name in ["connection", "domain", "total"] {
            self.request(MsgType::RM, format!("{HOME}/{name}\0").as_bytes());
        }
    }

    fn total(&self) -> Counters {
        let mut total = self.closed;
        self.links.values().for_each(|link| total.add(&link.counters));
        total
    }

    /// The report of `memreport`, for people: totals first, then a line per domain and per client.
    pub(super) fn report(&self) -> String {
        let mut text = self.store.report();
        let bytes: usize = self.links.values().map(Link::buffered).sum();
        let _ = writeln!(text, "buffers {bytes}\ntotal {}", self.total());
        let mut links: Vec<_> = self.links.iter().collect();
        links.sort_by_key(|(conn, link)| (!link.is_ring(), conn.0));
        for (conn, link) in links {
            let _ = match &link.carrier {
                Carrier::Ring(domain) => write!(text, "domain {}", domain.domid),
                Carrier::Socket(_) => write!(text, "connection {}", conn.0),
            };
            let _ = writeln!(text, " {} buffered {}", link.counters, link.buffered());
        }
        text
    }
}

impl Link {
    fn buffered(&self) -> usize {
        self.inbox.len() + self.outbox.len()
    }
}
