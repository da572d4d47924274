//! Limits for guests, and the count of what they have.

use std::collections::{BTreeMap, HashMap};

use crate::DomId;
use crate::changes::Changes;
use crate::ids::IdMap;
use crate::path::Path;
use crate::perms::Perms;
use crate::tree::Node;

macro_rules! limits {
    (hard { $($name:ident $text:literal $default:literal $about:literal,)* }
     soft { $($soft:ident $soft_text:literal $soft_default:literal $soft_about:literal,)* }) => {
        /// What is limited for unprivileged domains. 0 takes a limit away.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Limit { $(#[doc = $about] $name,)* $(#[doc = $soft_about] $soft,)* }

        impl Limit {
            /// All that are enforced, in the order in which C xenstored shows them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
            /// Those above which a domain is only warned of.
            pub const SOFT: &[Self] = &[$(Self::$soft,)*];

            /// The name in GET_QUOTA, SET_QUOTA and `xenstore control quota`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* $(Self::$soft => $soft_text,)* }
            }

            /// What is counted.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Self::$name => $about,)* $(Self::$soft => $soft_about,)* }
            }

            const fn default(self) -> u32 {
                match self { $(Self::$name => $default,)* $(Self::$soft => $soft_default,)* }
            }
        }
    };
}

limits! {
    hard {
        Nodes "nodes" 1000 "Nodes that a domain owns",
        Watches "watches" 128 "Watches of a domain",
        Outstanding "outstanding" 20 "Replies that a domain has not read",
        Memory "memory" 2_621_440 "Bytes kept for a domain: nodes, watches, transactions, unread messages",
        Transactions "transactions" 10 "Open transactions of a domain",
        TransactionNodes "transaction-nodes" 1024 "Nodes accessed in one transaction",
        NodePermissions "node-permissions" 5 "Entries in a node's permissions",
        PathMax "path-max" 2048 "Bytes of a path, relative to a domain's home",
        NodeSize "node-size" 2048 "Bytes of one node: permissions, names of children, value",
    }
    soft {
        SoftMemory "soft-memory" 2_097_152 "Bytes kept for a domain from which on it is warned of",
    }
}

impl Limit {
    /// The limit of a name.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().copied().find(|limit| limit.name().as_bytes() == name)
    }

    /// All that GET_QUOTA and SET_QUOTA know.
    pub(crate) fn on_wire() -> impl Iterator<Item = Self> {
        Self::ALL.iter().chain(Self::SOFT).copied()
    }

    /// The one of these that has a name.
    pub(crate) fn from_wire(name: &[u8]) -> Option<Self> {
        Self::on_wire().find(|limit| limit.name().as_bytes() == name)
    }
}

/// The limits in force: defaults, those set for all, those set for one domain.
#[derive(Clone, Debug, Default)]
pub struct Quota {
    all: BTreeMap<Limit, u32>,
    of: BTreeMap<(DomId, Limit), u32>,
    /// Domains that limits were set for.
    pub(crate) changes: Changes,
}

impl Quota {
    /// The value as set, 0 for none.
    #[must_use]
    pub fn value(&self, domid: Option<DomId>, limit: Limit) -> u32 {
        let own = domid.and_then(|domid| self.of.get(&(domid, limit)));
        own.or_else(|| self.all.get(&limit)).copied().unwrap_or_else(|| limit.default())
    }

    /// Whether the limit was set for the domain, or for all.
    #[must_use]
    pub fn is_set(&self, domid: Option<DomId>, limit: Limit) -> bool {
        domid.map_or_else(|| self.all.contains_key(&limit), |domid| self.of.contains_key(&(domid, limit)))
    }

    /// Sets a limit for one domain, or for all.
    pub fn set(&mut self, domid: Option<DomId>, limit: Limit, value: u32) {
        self.changes.note(domid);
        match domid {
            Some(domid) => self.of.insert((domid, limit), value),
            None => self.all.insert(limit, value),
        };
    }

    /// The limit of a domain as a size; without one, more than there can be.
    #[must_use]
    pub fn limit(&self, domid: DomId, limit: Limit) -> usize {
        match self.value(Some(domid), limit) {
            0 => usize::MAX,
            value => usize::try_from(value).unwrap_or(usize::MAX),
        }
    }

    /// Forgets what was set for a domain that is no more.
    pub fn forget(&mut self, domid: DomId) {
        for limit in Limit::on_wire() {
            self.of.remove(&(domid, limit));
        }
    }
}

/// Bytes of a node as its size limit counts them: what C xenstored stores for it.
#[must_use]
pub fn node_size(perms: usize, names: usize, value: usize) -> usize {
    16 + 8 * perms + names + value
}

/// Bytes that a node is charged with: about what it takes.
#[must_use]
pub fn node_bytes(perms: &Perms, name: usize, value: usize) -> usize {
    128 + 8 * perms.entries().len() + name + value
}

/// What a domain owns in the tree.
#[derive(Debug, Default)]
struct Account {
    nodes: usize,
    bytes: usize,
    /// The topmost of its nodes, below a parent of another owner, by id: what is removed when the domain dies.
    tops: HashMap<u64, Path>,
}

/// The nodes of every owner.
#[derive(Debug)]
pub struct Accounts {
    owners: IdMap<DomId, Account>,
    /// How many are the host's, which is not limited.
    host: usize,
    /// How many are anybody's.
    count: usize,
}

impl Accounts {
    /// For a tree that has so many nodes, all of them the host's.
    #[must_use]
    pub fn new(host: usize) -> Self {
        Self { owners: IdMap::default(), host, count: host }
    }
}

impl Accounts {
    /// How many nodes there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many nodes a domain owns.
    #[must_use]
    pub fn nodes(&self, owner: DomId) -> usize {
        if owner == 0 {
            return self.host;
        }
        self.owners.get(&owner).map_or(0, |account| account.nodes)
    }

    /// How many nodes a domain owns, and their bytes.
    pub(crate) fn of(&self, owner: DomId) -> (usize, usize) {
        (self.nodes(owner), self.bytes(owner))
    }

    /// Bytes of the nodes a domain owns.
    #[must_use]
    pub fn bytes(&self, owner: DomId) -> usize {
        self.owners.get(&owner).map_or(0, |account| account.bytes)
    }

    /// Paths of the topmost nodes of a domain, in order of creation.
    #[must_use]
    pub fn tops(&self, owner: DomId) -> Vec<Path> {
        let mut tops: Vec<_> =
            self.owners.get(&owner).map(|account| account.tops.iter().collect()).unwrap_or_default();
        tops.sort_by_key(|(id, _)| **id);
        tops.into_iter().map(|(_, path)| path.clone()).collect()
    }

    /// The topmost nodes of a domain at and below `path`, by id, in no order.
    pub(crate) fn tops_in<'a>(
        &'a self,
        owner: DomId,
        path: &'a str,
    ) -> impl Iterator<Item = (u64, &'a Path)> {
        let inside = move |top: &Path| {
            let rest = top.strip_prefix(path);
            path == "/" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let tops = self.owners.get(&owner).into_iter().flat_map(|account| &account.tops);
        tops.filter(move |(_, top)| inside(top)).map(|(id, top)| (*id, top))
    }

    /// Nodes came to `owner`, the topmost with this id and path; its parent belongs to `above`.
    pub fn charge(
        &mut self,
        owner: DomId,
        above: DomId,
        (id, path): (u64, &str),
        nodes: usize,
        bytes: usize,
    ) {
        self.count += nodes;
        if owner == 0 {
            self.host += nodes;
        } else {
            let account = self.owners.entry(owner).or_default();
            account.nodes += nodes;
            account.bytes += bytes;
            if owner != above {
                account.tops.insert(id, Path::of(path));
            }
        }
    }

    /// A node of `owner` grew by so many bytes, or shrank.
    pub fn resize(&mut self, owner: DomId, grown: isize) {
        if owner != 0
            && let Some(account) = self.owners.get_mut(&owner)
        {
            account.bytes = account.bytes.saturating_add_signed(grown);
        }
    }

    /// A node went from `owner`.
    pub fn discharge(&mut self, owner: DomId, id: u64, bytes: usize) {
        self.count = self.count.saturating_sub(1);
        if owner == 0 {
            self.host = self.host.saturating_sub(1);
        } else if let Some(account) = self.owners.get_mut(&owner) {
            account.nodes = account.nodes.saturating_sub(1);
            account.bytes = account.bytes.saturating_sub(bytes);
            account.tops.remove(&id);
            if account.nodes == 0 {
                self.owners.remove(&owner);
            }
        }
    }

    /// A node at `path` went over from `old` to another owner: its children may become topmost nodes, or cease to be.
    pub fn owner_changed(&mut self, node: &Node, path: &str, (old, bytes): (DomId, usize), above: DomId) {
        let new = node.perms.owner();
        self.discharge(old, node.id, bytes);
        self.charge(new, above, (node.id, path), 1, node.bytes());
        for child in node.children() {
            let owner = child.perms.owner();
            let Some(account) = self.owners.get_mut(&owner) else { continue };
            if owner == new {
                account.tops.remove(&child.id);
            } else if owner == old {
                account.tops.insert(child.id, Path::of(path).join(child.name()));
            }
        }
    }

    /// Gives back the room that many owners had.
    pub fn shrink(&mut self) {
        self.owners.shrink_to_fit();
    }

    /// Nodes and bytes, sorted by owner; without the host.
    #[must_use]
    pub fn all(&self) -> BTreeMap<DomId, (usize, usize)> {
        self.owners.iter().map(|(&owner, account)| (owner, (account.nodes, account.bytes))).collect()
    }
}
