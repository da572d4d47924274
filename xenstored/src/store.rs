//! The store: connections, and one entry point for their requests.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::DomId;
use crate::domain::Domains;
use crate::dormant::Dormant;
use crate::ids::IdMap;
use crate::journal::Journal;
use crate::ops;
use crate::out::{Action, Out};
use crate::pace::{Cause, LOSSES, Pace};
use crate::path::{Path, parent};
use crate::perms::{Caller, Perms};
use crate::quota::{Accounts, Limit, Quota};
use crate::room::{MARGIN, Room};
use crate::transaction::Transaction;
use crate::tree::{Node, Tree};
use crate::usage::Usage;
use crate::watch::{Change, Watches};
use crate::wire::{Errno, Header, MsgType};

/// Nodes that every store has: `/`, `/tool`, `/tool/xenstored`.
const FIRST_NODES: usize = 3;
/// About the bytes of a small node.
const NODE: usize = 256;
/// Removed nodes that a request itself does away with, at its end.
const AT_ONCE: usize = 128;
/// Removed nodes that are done away with before an owner is refused something.
const BEFORE_REFUSAL: usize = 64;
/// Requests that change nodes.
const CHANGES: [MsgType; 5] =
    [MsgType::WRITE, MsgType::MKDIR, MsgType::RM, MsgType::SET_PERMS, MsgType::TRANSACTION_END];
/// Bytes that an open transaction takes, besides what it has seen.
const TRANSACTION: usize = size_of::<Transaction>() + 32;
/// Room for transactions of a connection that is given back when there are few.
const MANY: usize = 1024;
/// Bytes that a watch takes, besides its name and token.
const WATCH: usize = 192;

/// A connection: a client on the socket, or a domain's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Who has removed something: clients come first, then those for whom nobody waits, then guests.
pub(crate) type Remover = (bool, Option<ConnId>);

/// What the store keeps for a connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) caller: Caller,
    pub(crate) transactions: IdMap<u32, Box<Transaction>>,
    pub(crate) last_transaction: u32,
    /// It is a domain's that an earlier daemon served: what it had open there it has to try again.
    pub(crate) came_back: bool,
    /// Watched name and token of every watch, with its number in the index.
    pub(crate) watches: HashMap<(Arc<str>, Box<[u8]>), u64>,
    /// Bytes of the watches.
    pub(crate) watch_bytes: usize,
    /// What its last transactions were about that did not succeed at once.
    cause: Option<Cause>,
    /// How many of its transactions have lost since one has won.
    losses: u32,
}

impl Conn {
    /// Bytes kept for it, besides nodes and unread messages.
    fn bytes(&self) -> usize {
        self.watch_bytes + self.transactions.values().map(|tx| tx.bytes).sum::<usize>()
    }

    /// Its watches, its open transactions, and the bytes of both.
    pub(crate) fn amounts(&self) -> (usize, usize, usize) {
        (self.watches.len(), self.transactions.len(), self.bytes())
    }
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
    pub tx: Option<Box<Transaction>>,
}

impl Call<'_> {
    pub(crate) fn remover(&self) -> Remover {
        (!self.caller.privileged, Some(self.conn))
    }
}

/// The store.
#[derive(Debug)]
pub struct Store {
    pub(crate) tree: Tree,
    pub(crate) accounts: Accounts,
    pub(crate) watches: Watches,
    pub(crate) domains: Domains,
    pub(crate) quota: Quota,
    pub(crate) usage: Usage,
    /// The domains that an earlier daemon served and that are not attached, with their watches.
    pub(crate) dormant: HashMap<DomId, Vec<Dormant>>,
    /// Permissions of `@introduceDomain` and `@releaseDomain`, and of those of single domains.
    pub(crate) special: BTreeMap<String, Perms>,
    /// Changes of these.
    pub(crate) special_changes: u64,
    pub(crate) conns: IdMap<ConnId, Conn>,
    pub(crate) pace: Pace,
    /// Open transactions of all connections.
    pub(crate) open: usize,
    /// Connections that may go on and were not told.
    woken: Vec<ConnId>,
    last_conn: u64,
    /// What has to be written to the state folder, if there is one.
    pub(crate) journal: Option<Box<Journal>>,
    /// Removed nodes whose owners have not been credited yet.
    removed: BTreeMap<Remover, Vec<Arc<Node>>>,
    /// How many removed nodes have been.
    forgotten: u64,
    /// Bytes of other things that are gone.
    freed: usize,
    pub(crate) room: Room,
    /// Nodes outlive their owners.
    keeps_orphans: bool,
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
        tree.create(&Path::root().join("tool").join("xenstored"), 0, &Perms::private(), b"");
        let special = [ops::INTRODUCE_DOMAIN, ops::RELEASE_DOMAIN];
        let special = special.map(|name| (name.to_owned(), Perms::private()));
        Self {
            tree,
            accounts: Accounts::new(FIRST_NODES),
            watches: Watches::default(),
            domains: Domains::default(),
            quota: Quota::default(),
            usage: Usage::default(),
            dormant: HashMap::new(),
            special: BTreeMap::from(special),
            special_changes: 0,
            conns: IdMap::default(),
            pace: Pace::default(),
            open: 0,
            woken: Vec::new(),
            last_conn: 0,
            journal: None,
            removed: BTreeMap::new(),
            forgotten: 0,
            freed: 0,
            room: Room::default(),
            keeps_orphans: false,
        }
    }

    /// A client connected to the socket.
    pub fn connect(&mut self) -> ConnId {
        self.add_conn(Caller::PRIVILEGED)
    }

    /// A client's socket is closed. Its watches and transactions go.
    pub fn disconnect(&mut self, conn: ConnId) {
        let Some(domid) = self.domain_of(conn) else { return };
        let is_ring = self.domains.get(domid).is_some_and(|domain| domain.conn == Some(conn));
        let watches = if is_ring { self.watches_of(conn) } else { Vec::new() };
        self.reset(conn);
        self.conns.remove(&conn);
        // A ring that is lost without its domain: another one can be introduced, and has its watches.
        if let Some(domain) = self.domains.get_mut(domid).filter(|_| is_ring) {
            domain.conn = None;
            watches.iter().for_each(|watch| self.note_watched(domid, watch));
            self.dormant.insert(domid, watches);
        }
    }

    /// It is `now`, counted from any moment in the past; the server says so before it has requests handled.
    pub fn advance(&mut self, now: Duration) {
        self.pace.advance(now);
    }

    /// Whether a request has to wait, and with it all that follow on its connection: until the time that is answered,
    /// or until `out` has an [`Action::Wake`] for the connection. Then the server asks again.
    pub fn must_wait(&mut self, conn: ConnId, header: &Header) -> Option<Duration> {
        let state = self.conns.get(&conn)?;
        if !state.caller.privileged
            && let Some(until) = self.pace.in_debt(state.caller.domid)
        {
            return Some(until);
        }
        if !state.caller.privileged
            && CHANGES.contains(&header.kind)
            && let Some(until) = self.pace.guards()
        {
            return Some(until);
        }
        let start = header.kind == MsgType::TRANSACTION_START;
        self.pace.may_start(state.cause.as_ref().filter(|_| start)?, conn)
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
        if !self.removed.is_empty() {
            self.tidy_of(call.remover(), AT_ONCE);
        }
        let id = call.header.tx_id;
        if let Some(tx) = call.tx
            && let Some(state) = self.conns.get_mut(&conn)
        {
            state.transactions.insert(id, tx);
        }
        out.actions.extend(self.woken.drain(..).map(Action::Wake));
    }

    /// Drops the watches and transactions of a connection, which stays: its peer began anew.
    pub fn reset(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        self.freed = self.freed.wrapping_add(state.bytes());
        (state.watch_bytes, state.came_back) = (0, false);
        for ((name, _), number) in std::mem::take(&mut state.watches) {
            self.watches.remove(&name, number);
        }
        self.open -= state.transactions.len();
        self.pace.unguard(conn);
        self.freed = self.freed.wrapping_add(state.transactions.capacity() * TRANSACTION);
        state.transactions = IdMap::default();
        let (cause, domid) = (state.cause.take(), state.caller.domid);
        self.pass_turn(conn, cause.as_ref());
        self.note_no_watches(domid);
    }

    /// A connection's transaction begins: guests do not make one lose that has lost often.
    pub(crate) fn transaction_begins(&mut self, conn: ConnId) {
        self.open += 1;
        if self.conns.get(&conn).is_some_and(|state| state.caller.privileged && state.losses >= LOSSES) {
            self.pace.guard(conn);
        }
    }

    /// A connection's transaction is over, lost or won: others may have waited for it.
    pub(crate) fn transaction_over(&mut self, conn: ConnId, tx: Option<&Transaction>, lost: Option<Path>) {
        self.open -= 1;
        let Some(state) = self.conns.get_mut(&conn) else { return };
        // Room for many is not kept for few.
        let (room, few) = (state.transactions.capacity(), 4 * state.transactions.len());
        if room > MANY.max(few) {
            state.transactions.shrink_to(few.max(MANY / 4));
            let less = room.saturating_sub(state.transactions.capacity());
            self.freed = self.freed.wrapping_add(less * TRANSACTION);
        }
        let before = state.cause.clone();
        self.pace.unguard(conn);
        if lost.is_some() {
            state.losses = state.losses.saturating_add(1);
        } else if tx.is_some() {
            state.losses = 0;
        }
        if let Some(path) = lost {
            state.cause = Some((path, state.caller.privileged));
        } else if let Some((path, _)) = &before
            && tx.is_some_and(|tx| !tx.concerns(path))
        {
            state.cause = None;
        }
        self.pass_turn(conn, before.as_ref());
    }

    fn pass_turn(&mut self, conn: ConnId, cause: Option<&Cause>) {
        self.woken.extend(cause.and_then(|cause| self.pace.pass(cause, conn)));
    }

    /// Whether others have open transactions that a write of this connection may disturb.
    pub(crate) fn disturbs(&self, conn: ConnId) -> bool {
        self.open > self.conns.get(&conn).map_or(0, |state| state.transactions.len())
    }

    /// Bytes kept for the domain of a connection: its nodes, watches and transactions. The server adds what it keeps.
    #[must_use]
    pub fn memory(&self, conn: ConnId) -> usize {
        let Some(state) = self.conns.get(&conn) else { return 0 };
        self.accounts.bytes(state.caller.domid) + state.bytes()
    }

    /// Whether the caller may have so many bytes more kept for it.
    ///
    /// # Errors
    /// `ENOMEM` if not.
    pub(crate) fn check_memory(&mut self, call: &Call<'_>, more: usize) -> Result<(), Errno> {
        if call.caller.privileged || more == 0 {
            return Ok(());
        }
        let limit = self.limit(&call.caller, Limit::Memory);
        let open = call.tx.as_ref().map_or(0, |tx| tx.bytes);
        let more = self.usage.unread_bytes(call.caller.domid) + open + more;
        let fits = |store: &Self| store.memory(call.conn).saturating_add(more) <= limit;
        if self.fits_after_removals(call, fits) { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Whether something fits. If not, removed nodes that are still counted are counted off before it is refused: those
    /// that the caller has removed, until it fits, and some of the others.
    pub(crate) fn fits_after_removals(&mut self, call: &Call<'_>, fits: impl Fn(&Self) -> bool) -> bool {
        while !fits(self) {
            if self.tidy_of(call.remover(), BEFORE_REFUSAL) == 0 {
                self.tidy(BEFORE_REFUSAL);
                return fits(self);
            }
        }
        true
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
        if self.tree.root().perms.owner() == domid {
            self.replace_perms(&Path::root(), Perms::private());
        }
        for path in self.accounts.tops(domid) {
            if self.tree.get(&path).is_none_or(|node| node.perms.owner() != domid) {
                continue;
            }
            if self.keeps_orphans {
                self.adopt(path, domid);
            } else {
                self.remove_node(None, &path, out);
            }
        }
        self.quota.forget(domid);
        self.pace.forget(domid);
        self.usage.forget(domid);
        self.dormant.remove(&domid);
        self.fire_special(ops::RELEASE_DOMAIN, domid, out);
        for event in [ops::INTRODUCE_DOMAIN, ops::RELEASE_DOMAIN] {
            self.set_special(&format!("{event}/{domid}"), None);
        }
        true
    }

    /// Does up to `budget` nodes of work that requests left behind, clients' before guests'. `false` when nothing is left.
    pub fn tidy(&mut self, mut budget: usize) -> bool {
        while let Some((&by, _)) = self.removed.first_key_value() {
            if budget == 0 {
                return true;
            }
            budget -= self.tidy_of(by, budget);
        }
        false
    }

    /// The same for what one has left behind. Answers how many nodes it were.
    fn tidy_of(&mut self, by: Remover, budget: usize) -> usize {
        let Some(mut rest) = self.removed.remove(&by) else { return 0 };
        let mut done = 0;
        while done < budget
            && let Some(node) = rest.pop()
        {
            done += 1;
            self.accounts.discharge(node.perms.owner(), node.id, node.bytes());
            match Arc::try_unwrap(node) {
                Ok(mut node) => rest.extend(node.take_children()),
                Err(shared) => rest.extend(shared.children().cloned()),
            }
        }
        self.forgotten += done as u64;
        if !rest.is_empty() {
            self.removed.insert(by, rest);
        }
        done
    }

    /// Whether something that a client has removed has not been done away with yet.
    #[must_use]
    pub fn is_removing(&self, client: ConnId) -> bool {
        !self.removed.is_empty() && self.removed.contains_key(&(false, Some(client)))
    }

    /// How many nodes there are, with removed ones that are not done away with.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.accounts.count()
    }

    /// Whether nothing more can be kept, having taken so many bytes more.
    pub(crate) fn is_short(&mut self, more: usize) -> bool {
        self.room.note(more);
        // The list of removed nodes may become as long as there are nodes.
        self.room.is_short(MARGIN + 16 * self.accounts.count())
    }

    /// How many removed nodes [`Store::tidy`] has done away with, and as many for other things as would take that much.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten + (self.freed / NODE) as u64
    }

    /// Bytes of something that is no node are free.
    pub(crate) fn note_freed(&mut self, bytes: usize) {
        self.freed = self.freed.wrapping_add(bytes);
    }

    /// Gives back the room that tables had for many who are gone. Takes as long as those who are there are many.
    pub fn shrink(&mut self) {
        self.conns.shrink_to_fit();
        for state in self.conns.values_mut() {
            state.watches.shrink_to_fit();
            state.transactions.shrink_to_fit();
        }
        self.watches.shrink();
        self.accounts.shrink();
    }

    /// Whether the nodes of a domain that is no more are domain 0's from then on, and stay.
    pub fn keep_orphans(&mut self, keep: bool) {
        self.keeps_orphans = keep;
    }

    /// Makes domain 0 the owner of a node, and of those right below it that have the same one, and so on.
    fn adopt(&mut self, top: Path, owner: DomId) {
        let mut rest = vec![top];
        while let Some(path) = rest.pop() {
            let Some(node) = self.tree.get(&path) else { continue };
            let own = node.children().filter(|child| child.perms.owner() == owner);
            rest.extend(own.map(|child| path.join(child.name())));
            let perms = node.perms.owned_now_by(&Caller::PRIVILEGED);
            self.replace_perms(&path, perms);
        }
    }

    /// Sets a limit for all domains.
    pub fn set_limit(&mut self, limit: Limit, value: u32) {
        self.quota.set(None, limit, value);
    }

    /// The limit for all domains that have none of their own.
    #[must_use]
    pub fn limit_of_all(&self, limit: Limit) -> u32 {
        self.quota.value(None, limit)
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
        let (transactions, watches) = (IdMap::default(), HashMap::new());
        let (last_transaction, came_back, watch_bytes) = (0, false, 0);
        let state = Conn {
            caller,
            transactions,
            last_transaction,
            came_back,
            watches,
            watch_bytes,
            cause: None,
            losses: 0,
        };
        self.conns.insert(conn, state);
        conn
    }

    pub(crate) fn bury(&mut self, by: Remover, node: Arc<Node>) {
        if node.has_children() {
            self.removed.entry(by).or_default().push(node);
        } else {
            self.forgotten += 1;
            self.accounts.discharge(node.perms.owner(), node.id, node.bytes());
        }
    }

    /// Tells the watches of a change.
    pub(crate) fn fire(&self, change: &Change<'_>, out: &mut Out) {
        if self.watches.count() == 0 {
            return;
        }
        let above = || {
            let above = parent(change.path).filter(|_| change.path != "/");
            above.and_then(|above| self.tree.get(above)).map(|node| &node.perms)
        };
        let caller = |conn| self.conns.get(&conn).map(|state| state.caller);
        self.watches.fire(change, above, caller, |watch, path| out.event(watch.conn, path, &watch.token));
    }

    /// Bytes that a watch of this name and token takes.
    pub(crate) fn watch_bytes(name: &str, token: &[u8]) -> usize {
        WATCH + 2 * (name.len() + token.len())
    }
}
