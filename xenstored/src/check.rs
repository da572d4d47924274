//! The store examines itself: `xenstore control check`, and the tests after every step.

use std::collections::{BTreeMap, BTreeSet};

use crate::DomId;
use crate::path::Path;
use crate::store::Store;

impl Store {
    /// Compares the accounts of owners with a recount of the tree, and the watches of connections with the index.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&mut self) -> Result<(), String> {
        while self.tidy(1024) {}
        let mut nodes: BTreeMap<DomId, (usize, usize)> = BTreeMap::new();
        let mut tops: BTreeMap<DomId, BTreeSet<Path>> = BTreeMap::new();
        let mut host = 0;
        let mut rest = vec![(Path::root(), self.tree.root(), 0)];
        while let Some((path, node, above)) = rest.pop() {
            let owner = node.perms.owner();
            if owner == 0 {
                host += 1;
            } else {
                let (count, bytes) = nodes.entry(owner).or_default();
                *count += 1;
                *bytes += node.bytes();
                if owner != above {
                    tops.entry(owner).or_default().insert(path.clone());
                }
            }
            rest.extend(node.children().map(|child| (path.join(child.name()), child, owner)));
        }
        if host != self.accounts.nodes(0) {
            return Err(format!("nodes of the host: {host}, account: {}", self.accounts.nodes(0)));
        }
        if nodes != self.accounts.all() {
            return Err(format!("nodes owned: {nodes:?}, accounts: {:?}", self.accounts.all()));
        }
        for (owner, tops) in tops {
            let account = self.accounts.tops(owner);
            if tops != account.iter().cloned().collect() {
                return Err(format!("topmost nodes of {owner}: {tops:?}, account: {account:?}"));
            }
        }
        let watches: usize = self.conns.values().map(|conn| conn.watches.len()).sum();
        if watches != self.watches.count() {
            return Err(format!("watches of connections: {watches}, index: {}", self.watches.count()));
        }
        for conn in self.conns.values() {
            let bytes: usize = conn.watches.keys().map(|(name, token)| Self::watch_bytes(name, token)).sum();
            if bytes != conn.watch_bytes {
                return Err(format!("bytes of watches: {bytes}, counted: {}", conn.watch_bytes));
            }
        }
        let open: usize = self.conns.values().map(|conn| conn.transactions.len()).sum();
        if open != self.open {
            return Err(format!("transactions of connections: {open}, counted: {}", self.open));
        }
        Ok(())
    }
}
