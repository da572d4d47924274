//! Limits for guests, and the count of what they have.

use std::collections::{BTreeMap, HashMap};

use crate::DomId;
use crate::path::Path;
use crate::tree::Node;

macro_rules! limits {
    ($($name:ident $text:literal $default:literal $about:literal,)*) => {
        /// What is limited for unprivileged domains. 0 takes a limit away.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Limit { $(#[doc = $about] $name,)* }

        impl Limit {
            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name in GET_QUOTA, SET_QUOTA and `xenstore control quota`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What is counted.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Self::$name => $about,)* }
            }

            const fn default(self) -> u32 {
                match self { $(Self::$name => $default,)* }
            }
        }
    };
}

limits! {
    Nodes "nodes" 1000 "Nodes that a domain owns",
    NodeSize "node-size" 2048 "Bytes of one node: permissions, names of children, value",
    Watches "watches" 128 "Watches of a domain",
    Transactions "transactions" 10 "Open transactions of a domain",
    TransactionNodes "transaction-nodes" 1024 "Nodes accessed in one transaction",
    NodePermissions "node-permissions" 5 "Entries in a node's permissions",
    PathMax "path-max" 2048 "Bytes of a path, relative to a domain's home",
    Outstanding "outstanding" 20 "Replies that a domain has not read",
    Memory "memory" 2_621_440 "Bytes kept for a domain: unread replies and events",
}

impl Limit {
    /// The limit of a name.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().copied().find(|limit| limit.name().as_bytes() == name)
    }
}

/// The limits in force: defaults, those set for all, those set for one domain.
#[derive(Clone, Debug, Default)]
pub struct Quota {
    all: BTreeMap<Limit, u32>,
    of: BTreeMap<(DomId, Limit), u32>,
}

impl Quota {
    /// The value as set, 0 for none.
    #[must_use]
    pub fn value(&self, domid: Option<DomId>, limit: Limit) -> u32 {
        let own = domid.and_then(|domid| self.of.get(&(domid, limit)));
        own.or_else(|| self.all.get(&limit)).copied().unwrap_or_else(|| limit.default())
    }

    /// Sets a limit for one domain, or for all.
    pub fn set(&mut self, domid: Option<DomId>, limit: Limit, value: u32) {
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
        self.of.retain(|&(of, _), _| of != domid);
    }
}

/// Bytes of a node as its size limit counts them: what C xenstored stores for it.
#[must_use]
pub fn node_size(perms: usize, names: usize, value: usize) -> usize {
    24 + 8 * perms + names + value
}

/// What a domain owns in the tree.
#[derive(Debug, Default)]
struct Account {
    nodes: usize,
    /// The topmost of its nodes, below a parent of another owner, by id: what is removed when the domain dies.
    tops: HashMap<u64, Path>,
}

/// The nodes of every unprivileged owner.
#[derive(Debug, Default)]
pub struct Accounts(HashMap<DomId, Account>);

impl Accounts {
    /// How many nodes a domain owns.
    #[must_use]
    pub fn nodes(&self, owner: DomId) -> usize {
        self.0.get(&owner).map_or(0, |account| account.nodes)
    }

    /// Paths of the topmost nodes of a domain, in order of creation.
    #[must_use]
    pub fn tops(&self, owner: DomId) -> Vec<Path> {
        let mut tops: Vec<_> =
            self.0.get(&owner).map(|account| account.tops.iter().collect()).unwrap_or_default();
        tops.sort_by_key(|(id, _)| **id);
        tops.into_iter().map(|(_, path)| path.clone()).collect()
    }

    /// A node came to `owner`; its parent belongs to `above`.
    pub fn charge(&mut self, owner: DomId, above: DomId, id: u64, path: &Path) {
        if owner != 0 {
            let account = self.0.entry(owner).or_default();
            account.nodes += 1;
            if owner != above {
                account.tops.insert(id, path.clone());
            }
        }
    }

    /// A node went from `owner`.
    pub fn discharge(&mut self, owner: DomId, id: u64) {
        if let Some(account) = self.0.get_mut(&owner) {
            account.nodes = account.nodes.saturating_sub(1);
            account.tops.remove(&id);
            if account.nodes == 0 {
                self.0.remove(&owner);
            }
        }
    }

    /// A node at `path` went over from one owner to another: its children may become topmost nodes, or cease to be.
    pub fn owner_changed(&mut self, node: &Node, path: &Path, old: DomId, above: DomId) {
        let new = node.perms.owner();
        self.discharge(old, node.id);
        self.charge(new, above, node.id, path);
        for child in node.children() {
            let owner = child.perms.owner();
            let Some(account) = self.0.get_mut(&owner) else { continue };
            if owner == new {
                account.tops.remove(&child.id);
            } else if owner == old {
                account.tops.insert(child.id, path.join(child.name()));
            }
        }
    }

    /// Counts, sorted by owner.
    #[must_use]
    pub fn all(&self) -> BTreeMap<DomId, usize> {
        self.0.iter().map(|(&owner, account)| (owner, account.nodes)).collect()
    }
}
