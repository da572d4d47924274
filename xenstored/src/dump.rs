//! The store's state as records, for a live update and for the disk, and back.

use std::collections::{BTreeSet, HashMap};

use xen_abi::io::xs_wire::XENSTORE_ABS_PATH_MAX;

use crate::DomId;
use crate::domain::DOMID_FIRST_RESERVED;
use crate::dormant::Dormant;
use crate::migration::{ConnSpec, NodePerm, Record, Stream};
use crate::out::Out;
use crate::path::{Name, Path};
use crate::perms::{DOMID_ANY, Entry, Life, Perm, Perms};
use crate::quota::Limit;
use crate::store::{ConnId, Store};
use crate::transaction::Transaction;
use crate::tree::{Node, Tree};
use crate::wire::number;

/// The name under which earlier daemons kept the soft limit.
const SOFT_MEMORY: &str = "quota-soft-memory";

impl Store {
    /// Writes limits, domains and nodes: what outlives all connections.
    pub(crate) fn dump(&self, stream: &mut Stream) {
        self.dump_settings(|record| stream.put(record));
        self.dump_dormant(|record| stream.put(record));
        dump_nodes(&self.tree, |domid| self.domains.life(domid), |record| stream.put(record));
        for (name, perms) in &self.special {
            stream.put(&record(|domid| self.domains.life(domid), name, b"", perms));
        }
    }

    /// Limits, and the domains that exist; then their targets, which are among them.
    pub(crate) fn dump_settings(&self, mut put: impl FnMut(&Record<'_>)) {
        self.dump_limits(&mut put);
        self.domains.all().for_each(|domid| put(&self.domain_record(domid)));
        self.domains.all().filter_map(|domid| self.target_record(domid)).for_each(|record| put(&record));
    }

    pub(crate) fn target_record(&self, domid: DomId) -> Option<Record<'static>> {
        self.target(domid).map(|target| Record::Target { domid, target })
    }

    /// The domains that are not attached, with their watches.
    pub(crate) fn dump_dormant(&self, mut put: impl FnMut(&Record<'_>)) {
        for (&domid, watches) in &self.dormant {
            put(&Record::NoWatches { domid });
            watches.iter().for_each(|watch| put(&watch.record(domid)));
        }
    }

    /// Something that differs whenever [`Store::dump_settings`] says something else.
    pub(crate) fn settings_version(&self) -> (u64, u64) {
        (self.domains.changes.count(), self.quota.changes.count())
    }

    /// The domains about which that is something else since then, none for the limits of all; none at all if nobody
    /// knows that any more.
    pub(crate) fn settings_changed(&self, since: (u64, u64)) -> Option<BTreeSet<Option<DomId>>> {
        let (domains, limits) = (self.domains.changes.since(since.0)?, self.quota.changes.since(since.1)?);
        Some(domains.chain(limits).collect())
    }

    /// The limits of all domains.
    pub(crate) fn dump_limits(&self, mut put: impl FnMut(&Record<'_>)) {
        put(&Record::GlobalQuota(self.quotas(None)));
    }

    /// Sets the bytes from which on a domain is warned of; 0 for never.
    pub fn set_soft_memory(&mut self, bytes: u32) {
        self.quota.set(None, Limit::SoftMemory, bytes);
    }

    /// No domain is there any more: the host was booted anew.
    pub(crate) fn release_all(&mut self) {
        for domid in self.domains.all().collect::<Vec<_>>() {
            self.release(domid, &mut Out::default());
        }
    }

    /// Writes the watches and transactions of a connection, which the stream knows by `id`.
    pub(crate) fn dump_conn(&self, conn: ConnId, id: u32, stream: &mut Stream) {
        let Some(state) = self.conns.get(&conn) else { return };
        for watch in self.watches_of(conn) {
            let Dormant { path, token, depth } = &watch;
            stream.put(&Record::Watch { conn: id, path, token, depth: *depth });
        }
        for &tx in state.transactions.keys() {
            stream.put(&Record::Transaction { conn: id, id: tx });
        }
    }

    /// Whether a connection has transactions open.
    pub(crate) fn in_transaction(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|state| !state.transactions.is_empty())
    }

    /// The connections that have transactions open, and how many.
    pub(crate) fn open_transactions(&self) -> impl Iterator<Item = (ConnId, DomId, usize)> {
        let open = |(&conn, state): (&ConnId, &crate::store::Conn)| {
            (conn, state.caller.domid, state.transactions.len())
        };
        self.conns.iter().map(open).filter(|(.., open)| *open > 0)
    }

    /// The domain whose rights a domain has, unless that one is no more.
    pub(crate) fn target(&self, domid: DomId) -> Option<DomId> {
        let (target, life) = self.domains.get(domid)?.target?;
        Some(target).filter(|target| self.domains.life(*target) == Some(life))
    }

    /// Whether a domain has shut down and was not resumed.
    pub(crate) fn is_shut_down(&self, domid: DomId) -> bool {
        self.domains.get(domid).is_some_and(|domain| domain.shutdown)
    }

    /// The domain that speaks on a connection.
    pub(crate) fn domain_of(&self, conn: ConnId) -> Option<DomId> {
        self.conns.get(&conn).map(|state| state.caller.domid)
    }

    /// What a domain is offered in its ring page.
    pub(crate) fn features(&self, domid: DomId) -> u32 {
        self.domains.features(domid)
    }

    /// What the stream has no records for: who has to wait how long, by names and numbers.
    pub(crate) fn own_settings(&self) -> Vec<(String, u64)> {
        self.pace.saved().collect()
    }

    /// Takes one of [`Store::own_settings`] over.
    pub(crate) fn resume_setting(&mut self, name: &str, value: u64) {
        self.pace.resume(name, value);
    }

    pub(crate) fn domain_record(&self, domid: DomId) -> Record<'static> {
        Record::Domain { domid, features: self.domains.features(domid), quotas: self.quotas(Some(domid)) }
    }

    fn quotas(&self, domid: Option<DomId>) -> Vec<(&'static [u8], u32)> {
        let own = Limit::on_wire().filter(|&limit| self.quota.is_set(domid, limit));
        own.map(|limit| (limit.name().as_bytes(), self.quota.value(domid, limit))).collect()
    }
}

/// Every node as a record, parents first, siblings in the order of their creation. `life`: the present life of a domid.
pub(crate) fn dump_nodes(
    tree: &Tree,
    life: impl Fn(DomId) -> Option<Life> + Copy,
    mut put: impl FnMut(&Record<'_>),
) {
    let mut rest = vec![(Path::root(), tree.root())];
    while let Some((path, node)) = rest.pop() {
        put(&node_record(life, &path, node));
        let children = node.children_by_age();
        rest.extend(children.into_iter().rev().map(|child| (path.join(child.name()), child)));
    }
}

pub(crate) fn node_record<'a>(
    life: impl Fn(DomId) -> Option<Life>,
    path: &'a str,
    node: &'a Node,
) -> Record<'a> {
    record(life, path, node.value(), &node.perms)
}

/// A node, or a special name, as a record.
pub(crate) fn record<'a>(
    life: impl Fn(DomId) -> Option<Life>,
    path: &'a str,
    value: &'a [u8],
    perms: &Perms,
) -> Record<'a> {
    let perm = |entry: &Entry| NodePerm {
        letter: u8::try_from(entry.perm.access.letter()).unwrap_or(b'n'),
        stale: match entry.perm.domid {
            DOMID_ANY => entry.life == Life::NEVER,
            domid => life(domid) != Some(entry.life),
        },
        domid: entry.perm.domid,
    };
    let perms = perms.entries().iter().map(perm).collect();
    Record::Node { conn: 0, tx: 0, access: 0, perms, path: path.as_bytes(), value }
}

/// C xenstored lets domain 0 have longer paths than the protocol: what is there cannot come along.
fn too_long(path: &[u8]) -> bool {
    let long = path.len() > XENSTORE_ABS_PATH_MAX;
    if long {
        let begin = String::from_utf8_lossy(path.get(..64).unwrap_or_default());
        tracing::warn!("{begin}...: a path of {} bytes is left out", path.len());
    }
    long
}

/// Builds a store out of records.
#[derive(Debug)]
pub(crate) struct Import {
    store: Store,
    /// Connections by their ids in the stream.
    conns: HashMap<u32, ConnId>,
    targets: Vec<(DomId, DomId)>,
    transactions: Vec<(ConnId, u32)>,
    quotas: Vec<(Option<DomId>, Limit, u32)>,
}

impl Import {
    pub(crate) fn new() -> Self {
        let store = Store::new();
        Self {
            store,
            conns: HashMap::new(),
            targets: Vec::new(),
            transactions: Vec::new(),
            quotas: Vec::new(),
        }
    }

    /// The connection with this id in the stream.
    pub(crate) fn conn(&self, id: u32) -> Option<ConnId> {
        self.conns.get(&id).copied()
    }

    /// Takes one record in; those that are not the store's are passed over. None for one that makes no sense.
    pub(crate) fn take(&mut self, record: &Record<'_>) -> Option<()> {
        match record {
            Record::Conn { id, spec, .. } => self.add_conn(*id, spec),
            Record::Ring { conn, shutdown: true, .. } => {
                let conn = self.conn(*conn)?;
                let domid = self.store.conns.get(&conn)?.caller.domid;
                self.store.domains.get_mut(domid)?.shutdown = true;
                Some(())
            }
            Record::Watch { path, .. } if too_long(path) => Some(()),
            Record::Watch { conn, path, token, depth } => {
                let watch = Dormant { path: (*path).into(), token: (*token).into(), depth: *depth };
                self.store.rewatch(self.conn(*conn)?, &watch)
            }
            Record::Dormant { domid, path, token, depth } => {
                let watch = Dormant { path: (*path).into(), token: (*token).into(), depth: *depth };
                self.store.dormant.entry(*domid).or_default().push(watch);
                Some(())
            }
            Record::NoWatches { domid } => {
                self.store.dormant.remove(domid);
                if self.store.domains.get(*domid).is_some() {
                    self.store.dormant.insert(*domid, Vec::new());
                }
                Some(())
            }
            Record::Unwatched { domid, path, token } => {
                if let Some(watches) = self.store.dormant.get_mut(domid) {
                    watches.retain(|watch| (&*watch.path, &*watch.token) != (*path, *token));
                }
                Some(())
            }
            Record::Target { domid, target } => {
                let life = self.store.domains.life(*target)?;
                self.store.domains.get_mut(*domid)?.target = Some((*target, life));
                Some(())
            }
            Record::Transaction { conn, id } => {
                self.transactions.push((self.conn(*conn)?, *id));
                Some(())
            }
            // A node of a transaction: the transaction will begin again.
            Record::Node { conn: 1.., .. } => Some(()),
            Record::Node { perms, path, value, .. } => self.node(perms, path, value),
            Record::GlobalQuota(quotas) => {
                self.limits(None, quotas);
                Some(())
            }
            Record::Setting { name, value } if *name == SOFT_MEMORY.as_bytes() => {
                self.quotas.push((None, Limit::SoftMemory, number(value).ok()?));
                Some(())
            }
            Record::Domain { domid, features, quotas } => {
                if *domid != 0 {
                    self.store.domains.ensure(*domid);
                    self.store.domains.set_features(*domid, *features);
                }
                self.limits(Some(*domid), quotas);
                Some(())
            }
            Record::Removed { path } => {
                let path = match Name::parse(path, 0, None).ok()? {
                    Name::Node(path) => path,
                    Name::Special(name) => return self.store.set_special(&name, None).then_some(()),
                };
                self.store.remove_node(None, &path, &mut Out::default());
                Some(())
            }
            Record::DomainGone { domid } => {
                self.store.domains.end(*domid);
                self.store.dormant.remove(domid);
                self.quotas.retain(|(of, ..)| *of != Some(*domid));
                Some(())
            }
            _ => Some(()),
        }
    }

    /// The store, with what has to come after everything else.
    pub(crate) fn finish(mut self) -> Store {
        for (domid, target) in std::mem::take(&mut self.targets) {
            self.store.set_target(domid, target);
        }
        // A target that is not there yet was set without its connection being told.
        for state in self.store.conns.values_mut().filter(|state| state.caller.domid != 0) {
            state.caller = self.store.domains.caller(state.caller.domid);
        }
        for (conn, id) in std::mem::take(&mut self.transactions) {
            let tx = Transaction::lost();
            if let Some(state) = self.store.conns.get_mut(&conn) {
                state.last_transaction = state.last_transaction.max(id);
                self.store.open += usize::from(state.transactions.insert(id, Box::new(tx)).is_none());
            }
        }
        for (domid, limit, value) in std::mem::take(&mut self.quotas) {
            self.store.quota.set(domid, limit, value);
        }
        while self.store.tidy(1024) {}
        self.store
    }

    fn add_conn(&mut self, id: u32, spec: &ConnSpec) -> Option<()> {
        let conn = match *spec {
            // On Xen domain 0 has a ring too; here it cannot go on, but what refers to it makes sense.
            ConnSpec::Socket { .. } | ConnSpec::Ring { domid: 0, .. } => self.store.connect(),
            ConnSpec::Ring { domid, target, .. } => {
                self.store.domains.ensure(domid);
                let conn = self.store.add_conn(self.store.domains.caller(domid));
                self.store.domains.get_mut(domid)?.conn = Some(conn);
                self.targets.extend(target.map(|target| (domid, target)));
                conn
            }
        };
        self.conns.insert(id, conn).is_none().then_some(())
    }

    fn node(&mut self, perms: &[NodePerm], path: &[u8], value: &[u8]) -> Option<()> {
        if too_long(path) {
            return Some(());
        }
        let perms = self.perms(perms)?;
        let path = match Name::parse(path, 0, None).ok()? {
            Name::Node(path) => path,
            Name::Special(name) => {
                self.store.set_special(&name, Some(perms));
                return Some(());
            }
        };
        if let Some(parent) = path.parent() {
            self.store.tree.get(&parent)?;
        }
        self.store.put(&path, value, perms);
        Some(())
    }

    /// An entry that is not stale names a domain that exists.
    fn perms(&mut self, perms: &[NodePerm]) -> Option<Perms> {
        let entry = |perm: &NodePerm| {
            let text = [&[perm.letter][..], perm.domid.to_string().as_bytes()].concat();
            let life = if !perm.stale && [0, DOMID_ANY].contains(&perm.domid) {
                Life(0)
            } else if perm.stale || perm.domid >= DOMID_FIRST_RESERVED {
                Life::NEVER
            } else {
                self.store.domains.ensure(perm.domid).life
            };
            Some(Entry { perm: Perm::parse(&text).ok()?, life })
        };
        Perms::new(perms.iter().map(entry).collect::<Option<Vec<_>>>()?)
    }

    fn limits(&mut self, domid: Option<DomId>, quotas: &[(&[u8], u32)]) {
        let known = quotas.iter().filter_map(|(name, value)| Some((Limit::from_wire(name)?, *value)));
        self.quotas.extend(known.map(|(limit, value)| (domid, limit, value)));
    }
}

#[cfg(test)]
mod tests;
