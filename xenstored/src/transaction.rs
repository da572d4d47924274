//! Transactions: two snapshots, and the set of nodes that were looked at.
//!
//! A transaction works on its own `view`. At its end the nodes it has seen are compared between `base`, where it began,
//! and the store as it is: if one of them differs, the transaction conflicts and the client tries again. If not, the
//! nodes it has changed are brought over. Looking at a node's value or permissions and looking at its list of children
//! are different things, so transactions that create different children of one node do not conflict.

use std::collections::HashMap;

use crate::DomId;
use crate::path::Path;
use crate::tree::{Node, Tree};
use crate::watch::Change;
use crate::wire::Errno;

/// What was looked at of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// Its existence, value and permissions.
    Content,
    /// The names of its children too.
    Children,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    children: bool,
    changed: bool,
}

/// An open transaction.
#[derive(Debug)]
pub struct Transaction {
    base: Tree,
    /// The tree as the transaction sees it.
    pub view: Tree,
    seen: HashMap<Path, Seen>,
    /// Changed paths in the order of their first change, so that parents come before children.
    changed: Vec<Path>,
    /// What watches will be told, once per node.
    pub events: Vec<Change>,
    event_of: HashMap<Path, usize>,
    /// Nodes that each owner will have more (or less) after the commit.
    pub owned: HashMap<DomId, isize>,
    /// Set by a failure that the transaction must not survive.
    pub failed: Option<Errno>,
}

/// One step of a commit.
pub enum Step<'a> {
    /// The node goes.
    Remove(&'a Path),
    /// The node comes, or gets this value and these permissions.
    Put(&'a Path, &'a Node),
}

impl Transaction {
    /// Begins on the store as it is now.
    #[must_use]
    pub fn new(tree: &Tree) -> Self {
        Self {
            base: tree.clone(),
            view: tree.clone(),
            seen: HashMap::new(),
            changed: Vec::new(),
            events: Vec::new(),
            event_of: HashMap::new(),
            owned: HashMap::new(),
            failed: None,
        }
    }

    /// Whether it has not looked at anything yet.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.seen.is_empty() && self.failed.is_none()
    }

    /// Whether `tree` is as it was when the transaction began.
    #[must_use]
    pub fn began_on(&self, tree: &Tree) -> bool {
        self.base.same(tree)
    }

    /// Remembers that a node was looked at, existing or not. At most `limit` nodes.
    ///
    /// # Errors
    /// `ENOSPC` for more.
    pub fn note(&mut self, path: &Path, aspect: Aspect, limit: usize) -> Result<(), Errno> {
        let full = self.seen.len() >= limit;
        match self.seen.get_mut(path) {
            Some(seen) => seen.children |= aspect == Aspect::Children,
            None if full => return Err(Errno::ENOSPC),
            None => {
                let seen = Seen { children: aspect == Aspect::Children, changed: false };
                self.seen.insert(path.clone(), seen);
            }
        }
        Ok(())
    }

    /// Remembers that `view` was changed at `path`.
    pub fn touch(&mut self, path: &Path) {
        let seen = self.seen.entry(path.clone()).or_default();
        if !seen.changed {
            seen.changed = true;
            self.changed.push(path.clone());
        }
    }

    /// Keeps what watches will be told; a second change of a node joins the first.
    pub fn event(&mut self, change: Change) {
        let index = *self.event_of.entry(change.path.clone()).or_insert(self.events.len());
        match self.events.get_mut(index) {
            None => self.events.push(change),
            Some(first) => {
                let [_, after, above] = change.perms;
                let [before, ..] = first.perms.clone();
                first.perms = [before, after, above];
                first.removed = change.removed.or_else(|| first.removed.take());
            }
        }
    }

    /// Whether something it has looked at is different in `now`.
    #[must_use]
    pub fn conflicts(&self, now: &Tree) -> bool {
        !self.base.same(now)
            && self.seen.iter().any(|(path, seen)| match (self.base.get(path), now.get(path)) {
                (None, None) => false,
                (Some(before), Some(now)) => {
                    (before.id, before.changed) != (now.id, now.changed)
                        || (seen.children && before.listed != now.listed)
                }
                _ => true,
            })
    }

    /// What has to be done to a store without conflicts.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        self.changed.iter().flat_map(|path| {
            let (before, after) = (self.base.get(path), self.view.get(path));
            let renewed = before.zip(after).is_some_and(|(before, after)| before.id != after.id);
            let remove = before.is_some() && (after.is_none() || renewed);
            let put = after.filter(|after| before.is_none_or(|before| before.changed != after.changed));
            remove.then_some(Step::Remove(path)).into_iter().chain(put.map(|node| Step::Put(path, node)))
        })
    }

    /// The two trees, for whoever takes them apart.
    #[must_use]
    pub fn into_trees(self) -> [Tree; 2] {
        [self.view, self.base]
    }
}
