//! The store: connections, and one entry point for their requests.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::DomId;
use crate::domain::Domains;
use crate::ops;
use crate::out::{Action, Out};
use crate::path::Path;
use crate::perms::{Caller, Perms};
use crate::quota::{Accounts, Limit, Quota};
use crate::transaction::Transaction;
use crate::tree::{Node, Tree};
use crate::watch::{Change, Watches};
use crate::wire::{Errno, Header};

/// A connection: a client on the socket, or a domain's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What the store keeps for a connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) caller: Caller,
    pub(crate) transactions: BTreeMap<u32, Transaction>,
    pub(crate) last_transaction: u32,
    /// Watched name and token of every watch.
    pub(crate) watches: HashSet<(Arc<str>, Box<[u8]>)>,
}

/// One request being handled.
pub struct Call<'a> {
    /// Who is answered.
    pub conn: ConnId,
    /// Who asks.
    pub caller: Caller,
    /// The request's header.
    pub header: Header,
    /// Its payload.
    pub payload: &'a [u8],
    /// Whether a usable ring came along, see [`Store::handle`].
    pub ring: bool,
    /// The transaction it belongs to.
    pub tx: Option<Transaction>,
}

/// The store.
#[derive(Debug)]
pub struct Store {
    pub(crate) tree: Tree,
    pub(crate) accounts: Accounts,
    pub(crate) watches: Watches,
    pub(crate) domains: Domains,
    pub(crate) quota: Quota,
    /// Permissions of `@introduceDomain` and `@releaseDomain`.
    pub(crate) special: BTreeMap<&'static str, Perms>,
    pub(crate) conns: HashMap<ConnId, Conn>,
    last_conn: u64,
    /// Removed nodes whose owners have not been credited yet.
    removed: Vec<Arc<Node>>,
    /// Trees of ended transactions.
    discarded: Vec<Arc<Node>>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// A store with the nodes that every store has.
    #[must_use]
    pub fn new() -> Self {
        let mut tree = Tree::default();
        let mut path = Path::root();
        for name in ["tool", "xenstored"] {
            path = path.join(name);
            tree.create(&path, Perms::private(), b"");
        }
        let special = [ops::INTRODUCE_DOMAIN, ops::RELEASE_DOMAIN].map(|name| (name, Perms::private()));
        Self {
            tree,
            accounts: Accounts::default(),
            watches: Watches::default(),
            domains: Domains::default(),
            quota: Quota::default(),
            special: BTreeMap::from(special),
            conns: HashMap::new(),
            last_conn: 0,
            removed: Vec::new(),
            discarded: Vec::new(),
        }
    }

    /// A client connected to the socket.
    pub fn connect(&mut self) -> ConnId {
        self.add_conn(Caller::PRIVILEGED)
    }

    /// A client's socket is closed. Its watches and transactions go.
    pub fn disconnect(&mut self, conn: ConnId) {
        self.reset(conn);
        self.conns.remove(&conn);
    }

    /// Handles one whole request and appends all that it causes to `out`.
    ///
    /// `ring`: the request came with a set of descriptors that the server can serve as a ring. If INTRODUCE succeeds
    /// `out` has an [`Action::Serve`] for it.
    pub fn handle(&mut self, conn: ConnId, header: Header, payload: &[u8], ring: bool, out: &mut Out) {
        let Some(state) = self.conns.get(&conn) else { return };
        let mut call = Call { conn, caller: state.caller, header, payload, ring, tx: None };
        if let Err(errno) = ops::dispatch(self, &mut call, out) {
            if let Some(tx) = call.tx.as_mut().filter(|_| matches!(errno, Errno::ENOSPC | Errno::ENOMEM)) {
                tx.failed = Some(errno);
            }
            out.error(&call, errno);
        }
        let id = call.header.tx_id;
        if let (Some(tx), Some(state)) = (call.tx, self.conns.get_mut(&conn)) {
            state.transactions.insert(id, tx);
        }
    }

    /// Drops the watches and transactions of a connection, which stays: its peer began anew.
    pub fn reset(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        let watches = std::mem::take(&mut state.watches);
        let transactions = std::mem::take(&mut state.transactions);
        for (name, token) in watches {
            self.watches.remove(&name, conn, &token);
        }
        for tx in transactions.into_values() {
            self.discard(tx);
        }
    }

    /// The domain of this connection has shut down. Announced once, until RESUME.
    pub fn domain_shut_down(&mut self, domid: DomId, out: &mut Out) {
        if let Some(domain) = self.domains.get_mut(domid)
            && !std::mem::replace(&mut domain.shutdown, true)
        {
            self.fire_special(ops::RELEASE_DOMAIN, domid, out);
        }
    }

    /// The domain is no more: its connection goes, the nodes it owns are removed, `@releaseDomain` fires.
    /// `false` if there is no such domain.
    pub fn release(&mut self, domid: DomId, out: &mut Out) -> bool {
        let Some(domain) = self.domains.end(domid) else { return false };
        if let Some(conn) = domain.conn {
            self.disconnect(conn);
            out.actions.push(Action::Drop(conn));
        }
        for path in self.accounts.tops(domid) {
            let owned = self.tree.get(&path).is_some_and(|node| node.perms.owner() == domid);
            if owned && path.is_root() {
                self.replace_perms(&path, Perms::private());
            } else if owned {
                self.remove_node(None, &path, out);
            }
        }
        self.quota.forget(domid);
        self.fire_special(ops::RELEASE_DOMAIN, domid, out);
        true
    }

    /// Does up to `budget` nodes of work that requests left behind. `false` when nothing is left.
    pub fn tidy(&mut self, budget: usize) -> bool {
        for _ in 0..budget {
            if let Some(node) = self.removed.pop() {
                self.accounts.discharge(node.perms.owner(), node.id);
                take_apart(node, &mut self.removed, true);
            } else if let Some(node) = self.discarded.pop() {
                take_apart(node, &mut self.discarded, false);
            } else {
                return false;
            }
        }
        true
    }

    /// The limit that holds for a caller; privileged ones have none.
    #[must_use]
    pub fn limit(&self, caller: &Caller, limit: Limit) -> usize {
        if caller.privileged { usize::MAX } else { self.quota.limit(caller.domid, limit) }
    }

    /// The limit that holds for the domain of a connection.
    #[must_use]
    pub fn conn_limit(&self, conn: ConnId, limit: Limit) -> usize {
        self.conns.get(&conn).map_or(0, |state| self.limit(&state.caller, limit))
    }

    pub(crate) fn add_conn(&mut self, caller: Caller) -> ConnId {
        self.last_conn += 1;
        let conn = ConnId(self.last_conn);
        let state =
            Conn { caller, transactions: BTreeMap::new(), last_transaction: 0, watches: HashSet::new() };
        self.conns.insert(conn, state);
        conn
    }

    pub(crate) fn bury(&mut self, node: Arc<Node>) {
        self.removed.push(node);
    }

    pub(crate) fn discard(&mut self, tx: Transaction) {
        self.discarded.extend(tx.into_trees().map(Tree::into_root));
    }

    /// Tells the watches of a change.
    pub(crate) fn fire(&self, change: &Change, out: &mut Out) {
        let caller = |conn| self.conns.get(&conn).map(|state| state.caller);
        self.watches.fire(change, caller, |watch, path| out.event(watch.conn, path, &watch.token));
    }

    /// Tells the watches of a special event.
    pub(crate) fn fire_special(&self, event: &str, domid: DomId, out: &mut Out) {
        self.watches.fire_special(event, domid, |watch, name| {
            let caller = self.conns.get(&watch.conn).map(|state| state.caller);
            let perms = self.special.get(event);
            if caller.zip(perms).is_some_and(|(caller, perms)| perms.access(&caller).read()) {
                out.event(watch.conn, name, &watch.token);
            }
        });
    }
}

/// Drops a node without recursion: its children go to `rest`, if `all` even those that a snapshot shares.
fn take_apart(node: Arc<Node>, rest: &mut Vec<Arc<Node>>, all: bool) {
    match Arc::try_unwrap(node) {
        Ok(node) => rest.extend(node.into_children()),
        Err(shared) if all => rest.extend(shared.children().cloned()),
        Err(_) => {}
    }
}
