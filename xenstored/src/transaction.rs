//! Transactions: what was seen of the store, and what is changed, node by node.
//!
//! A transaction keeps a snapshot of every node from the moment it first looks at it, and its own changes above them;
//! the rest it sees as the store has it. At its end the nodes it has seen are compared with the store: if one of them
//! differs, the transaction conflicts and the client tries again. If not, its changes are brought over. Looking at a
//! node's value or permissions and looking at its list of children are different things, so transactions that create
//! different children of one node do not conflict. A removal has looked at all that is below. An open transaction costs the store nothing but what it has seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::DomId;
use crate::path::{Path, name, parent, prefix};
use crate::path_map::{PathMap, prefixes};
use crate::perms::Perms;
use crate::tree::{Node, Tree};
use crate::watch::Change;
use crate::wire::Errno;

/// Bytes that remembering a node takes, besides its path and value.
const ENTRY: usize = 256;

/// Where the daemon notes what it does.
pub(crate) const COUNTERS: &str = "/tool/xenstored";

fn is_counter(path: &str) -> bool {
    path.strip_prefix(COUNTERS).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What was looked at of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// Its existence, value and permissions.
    Content,
    /// The names of its children too.
    Children,
}

/// A node as a request sees it.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// Generation of its creation.
    pub id: u64,
    /// Generation of the last change of it or of the list of its children.
    pub generation: u64,
    /// The value.
    pub value: &'a [u8],
    /// The permissions.
    pub perms: &'a Perms,
    /// Bytes of the list of its children.
    pub listing_len: usize,
}

impl<'a> From<&'a Arc<Node>> for Sight<'a> {
    fn from(node: &'a Arc<Node>) -> Self {
        let (value, perms, listing_len) = (node.value(), &node.perms, node.listing_len());
        Self { id: node.id, generation: node.changed.max(node.listed()), value, perms, listing_len }
    }
}

/// A node as the transaction has made it.
#[derive(Debug)]
struct Own {
    id: u64,
    value: Box<[u8]>,
    perms: Perms,
    /// Only the value differs from what the store has.
    only_value: bool,
}

#[derive(Debug, Default)]
enum Now {
    /// As in the store, or in `base`.
    #[default]
    Same,
    Own(Own),
    Gone,
}

#[derive(Debug, Default)]
struct Seen {
    /// The store was looked at; `base` is what it had.
    looked: bool,
    base: Option<Arc<Node>>,
    /// Its list of children, with its generation, once that was looked at.
    listing: Option<(u64, Arc<[u8]>)>,
    /// Bytes of that list then, and by how much it changed.
    listing_len: usize,
    listing_change: isize,
    now: Now,
    /// What the store has here and below is removed.
    covered: bool,
    /// Last change of anything below when it was.
    below: Option<u64>,
    /// Children created here, with their ids, and removed ones.
    names: BTreeMap<Box<str>, Option<u64>>,
    /// Last own change of the node or its children.
    generation: u64,
    event: Option<usize>,
}

/// What watches will be told of.
#[derive(Clone, Debug)]
pub struct Event {
    /// The node.
    pub path: Path,
    /// If it is removed: as it was.
    pub removed: Option<Arc<Node>>,
    /// Its permissions before and after.
    pub perms: [Option<Perms>; 2],
}

impl Event {
    pub(crate) fn change(&self) -> Change<'_> {
        let [before, after] = &self.perms;
        Change { path: &self.path, removed: self.removed.as_ref(), perms: [before.as_ref(), after.as_ref()] }
    }
}

/// Permissions of a special name, none if it has none.
#[derive(Debug)]
pub(crate) struct Special {
    pub(crate) base: Option<Perms>,
    /// As the transaction has set them.
    pub(crate) own: Option<Perms>,
}

/// An open transaction.
#[derive(Debug, Default)]
pub struct Transaction {
    seen: PathMap<Seen>,
    /// What watches will be told, once per node.
    pub(crate) events: Vec<Event>,
    /// Something was removed, so that not all that the store has is to be seen.
    removes: bool,
    /// Nodes that the caller will own more (or less) after the commit.
    pub(crate) owned: isize,
    /// Bytes it takes.
    pub(crate) bytes: usize,
    /// Permissions of special names as they were when first looked at, and as they are here since.
    pub(crate) special: BTreeMap<String, Special>,
    /// Set by a failure that the transaction must not survive.
    pub(crate) failed: Option<Errno>,
}

/// One step of a commit.
pub(crate) enum Step {
    /// The node goes, if it is there; the event that tells of it.
    Remove(Path, Option<usize>),
    /// The node gets this value.
    Write(Path, Box<[u8]>),
    /// The node comes, or gets this value and these permissions.
    Put(Path, Box<[u8]>, Perms),
}

impl Transaction {
    /// One of which nothing is known any more: it is tried again, as after any conflict.
    pub(crate) fn lost() -> Self {
        Self { failed: Some(Errno::EAGAIN), ..Self::default() }
    }

    /// Remembers that a node was looked at, existing or not. At most `limit` nodes.
    ///
    /// # Errors
    /// `ENOSPC` for more.
    pub fn note(&mut self, tree: &Tree, path: &str, aspect: Aspect, limit: usize) -> Result<(), Errno> {
        // To find it again quickly: see `PathMap`.
        let before = self.seen.get_mut(path).map(|seen| &*seen);
        let known = before.is_some_and(|seen| {
            let listed = aspect == Aspect::Content || seen.listing.is_some() || seen.base.is_none();
            seen.covered || matches!(seen.now, Now::Gone) || (seen.looked && listed)
        });
        let new = before.is_none();
        if known || self.hides(path) {
            return Ok(());
        }
        self.has_room(new.into(), limit)?;
        let seen = entry(&mut self.seen, &mut self.bytes, path);
        let node = tree.get(path);
        if !std::mem::replace(&mut seen.looked, true) {
            seen.base = node.map(Node::alone);
            seen.listing_len = node.map_or(0, |node| node.listing_len());
            self.bytes += node.map_or(0, |node| node.value().len());
        }
        if aspect == Aspect::Children && seen.listing.is_none() {
            seen.listing = node.map(|node| (node.listed(), node.listing()));
            seen.listing_len = node.map_or(0, |node| node.listing_len());
            self.bytes += seen.listing_len;
        }
        Ok(())
    }

    /// The node at `path`, as the transaction sees it.
    #[must_use]
    pub fn find<'a>(&'a self, tree: &'a Tree, path: &str) -> Option<Sight<'a>> {
        sight(self.seen.get(path), || if self.hides(path) { None } else { tree.get(path) })
    }

    /// The nearest existing ancestor of `path`, or its node itself, and how many components its path has.
    #[must_use]
    pub fn nearest<'a>(&'a self, tree: &'a Tree, path: &str) -> (Sight<'a>, usize) {
        let mut nearest = (Sight::from(tree.root()), 0);
        let (mut store, mut covered) = (Some(tree.root()), false);
        // To the end: what was seen stays, even if others have removed what is above it.
        for (depth, above) in prefixes(path).enumerate() {
            let seen = self.seen.at(&above);
            if depth > 0 {
                store = store.and_then(|node| node.child_at(&above));
            }
            covered |= seen.is_some_and(|seen| seen.covered);
            if let Some(found) = sight(seen, || store.filter(|_| !covered)) {
                nearest = (found, depth);
            }
        }
        nearest
    }

    /// The names of the children, oldest first, each with a NUL.
    #[must_use]
    pub fn listing(&self, tree: &Tree, path: &str) -> Arc<[u8]> {
        let seen = self.seen.get(path);
        let base = match seen {
            _ if self.hides(path) => Arc::default(),
            Some(Seen { listing: Some((_, listing)), .. }) => Arc::clone(listing),
            Some(Seen { looked: true, base: None, .. }) => Arc::default(),
            _ => tree.get(path).map(|node| node.listing()).unwrap_or_default(),
        };
        let Some(names) = seen.map(|seen| &seen.names).filter(|names| !names.is_empty()) else { return base };
        let changed = |name: &[u8]| std::str::from_utf8(name).is_ok_and(|name| names.contains_key(name));
        let old = base.split_inclusive(|&byte| byte == 0);
        let old = old.filter(|name| !name.split_last().is_some_and(|(_, name)| changed(name)));
        let mut new: Vec<_> = names.iter().filter_map(|(name, id)| Some(((*id)?, name))).collect();
        new.sort_unstable();
        let new = new.into_iter().flat_map(|(_, name)| name.bytes().chain([0]));
        old.flatten().copied().chain(new).collect()
    }

    /// Sets value and permissions of an existing node.
    pub fn set(&mut self, path: &str, id: u64, value: &[u8], perms: &Perms, generation: u64) {
        let only_value = self.seen.get(path).is_some_and(|seen| match (&seen.now, &seen.base) {
            (Now::Own(own), _) => own.only_value && own.perms == *perms,
            (Now::Same, Some(base)) => base.perms == *perms,
            _ => false,
        });
        let seen = entry(&mut self.seen, &mut self.bytes, path);
        seen.generation = generation;
        let own = Now::Own(Own { id, value: value.into(), perms: perms.clone(), only_value });
        self.bytes += value.len();
        if let Now::Own(before) = std::mem::replace(&mut seen.now, own) {
            self.bytes -= before.value.len();
        }
    }

    /// Creates a node and its missing parents below the first `depth` names of its path. The first one's id is `id`,
    /// and so on. At most `limit` nodes in all.
    ///
    /// # Errors
    /// `ENOSPC` for more.
    pub fn create(
        &mut self,
        (path, depth): (&str, usize),
        (value, perms): (&[u8], &Perms),
        mut id: u64,
        limit: usize,
    ) -> Result<(), Errno> {
        let missing = || prefixes(path).skip(depth + 1);
        let new = missing().filter(|above| self.seen.at(above).is_none()).count();
        if self.seen.len() + self.special.len() + new > limit {
            return Err(Errno::ENOSPC);
        }
        let mut parent = prefix(path, depth);
        for new in missing() {
            let seen = entry(&mut self.seen, &mut self.bytes, parent);
            seen.generation = id;
            seen.names.insert(new.name.into(), Some(id));
            seen.listing_change = seen.listing_change.saturating_add_unsigned(new.name.len() + 1);
            parent = new.path;
            self.set(parent, id, if parent == path { value } else { b"" }, perms, id);
            id += 1;
        }
        Ok(())
    }

    /// Removes a node that exists, and all below.
    pub fn remove(&mut self, tree: &Tree, path: &str, generation: u64) {
        self.removes = true;
        let below = format!("{path}/");
        let mut freed = 0;
        let mut gone = |seen: &mut Seen| {
            if let Now::Own(own) = std::mem::replace(&mut seen.now, Now::Gone) {
                freed += own.value.len();
            }
            (seen.covered, seen.generation) = (true, generation);
            (seen.names, seen.listing_change) = (BTreeMap::new(), 0);
        };
        self.seen.iter_mut().filter(|(other, _)| other.starts_with(&below)).for_each(|(_, seen)| gone(seen));
        let seen = entry(&mut self.seen, &mut self.bytes, path);
        if !seen.covered {
            seen.below = tree.get(path).map(|node| node.below());
        }
        gone(seen);
        self.bytes -= freed;
        if let Some(parent) = parent(path).filter(|_| path != "/") {
            let parent = entry(&mut self.seen, &mut self.bytes, parent);
            parent.generation = generation;
            parent.names.insert(name(path).into(), None);
            parent.listing_change = parent.listing_change.saturating_sub_unsigned(name(path).len() + 1);
        }
    }

    /// Counts the nodes of an owner at and below `path`. `tops`: the ids and paths of its topmost ones in the store from
    /// there on. Nodes of others are not visited, but for those right below its own.
    pub(crate) fn count<'a>(
        &self,
        tree: &Tree,
        (path, owner): (&str, DomId),
        tops: impl Iterator<Item = (u64, &'a Path)>,
    ) -> isize {
        let below = format!("{path}/");
        let inside = |other: &str| other == path || other.starts_with(&below);
        let own = self.seen.iter().filter(|(other, _)| inside(other));
        let is_own = |seen: &Seen| matches!(&seen.now, Now::Own(own) if own.perms.owner() == owner);
        let mut count = own.filter(|(_, seen)| is_own(seen)).count();
        let mut rest = vec![];
        // The topmost one, if it belongs to the owner and what is above does too.
        if let Some(node) = tree.get(path).filter(|node| node.perms.owner() == owner) {
            rest.push((Path::of(path), node));
        }
        for (id, top) in tops.filter(|(_, top)| &***top != path) {
            rest.extend(tree.get(top).filter(|node| node.id == id).map(|node| (top.clone(), node)));
        }
        rest.retain(|(path, _)| !self.hides(path));
        while let Some((path, node)) = rest.pop() {
            let seen = self.seen.get(&path);
            if seen.is_some_and(|seen| seen.covered) {
                continue;
            }
            count += usize::from(seen.is_none_or(|seen| matches!(seen.now, Now::Same)));
            let children = node.children().filter(|child| child.perms.owner() == owner);
            rest.extend(children.map(|child| (path.join(child.name()), child)));
        }
        isize::try_from(count).unwrap_or(isize::MAX)
    }

    /// Keeps what watches will be told; a second change of a node joins the first.
    pub fn event(&mut self, path: &str, [before, after]: [Option<&Perms>; 2]) {
        let seen = entry(&mut self.seen, &mut self.bytes, path);
        let index = *seen.event.get_or_insert(self.events.len());
        let (before, after) = (before.cloned(), after.cloned());
        match self.events.get_mut(index) {
            None => {
                let event = Event { path: Path::of(path), removed: None, perms: [before, after] };
                self.events.push(event);
            }
            Some(Event { perms: [_, last], .. }) => *last = after,
        }
    }

    /// Bytes that the next request may take for its table.
    pub(crate) fn growth(&self) -> usize {
        self.seen.growth()
    }

    /// Whether `new` more names may be looked at. One that is spoiled already takes no more.
    fn has_room(&self, new: usize, limit: usize) -> Result<(), Errno> {
        match self.failed {
            Some(errno @ (Errno::ENOSPC | Errno::ENOMEM)) => Err(errno),
            _ if new > 0 && self.seen.len() + self.special.len() + new > limit => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    /// Remembers that a special name was looked at, and what `base` was. With nodes at most `limit`.
    ///
    /// # Errors
    /// `ENOSPC` for more.
    pub(crate) fn note_special(
        &mut self,
        name: &str,
        base: Option<&Perms>,
        limit: usize,
    ) -> Result<&mut Special, Errno> {
        if !self.special.contains_key(name) {
            self.has_room(1, limit)?;
            self.bytes += name.len() + ENTRY;
        }
        let base = || Special { base: base.cloned(), own: None };
        Ok(self.special.entry(name.to_owned()).or_insert_with(base))
    }

    /// Sets the permissions of a special name that was looked at.
    pub(crate) fn set_special(&mut self, name: &str, perms: Perms) {
        if let Some(special) = self.special.get_mut(name) {
            special.own = Some(perms);
        }
    }

    /// The first path of which something that was looked at is different in the store.
    #[must_use]
    pub fn conflict(&self, tree: &Tree) -> Option<Path> {
        // Nobody has changed what the daemon itself notes, unless this transaction does.
        let changes_counters = self.events.iter().any(|event| is_counter(&event.path));
        let differs = |seen: &Seen, path: &str| match (&seen.base, tree.get(path)) {
            (None, None) => false,
            (Some(base), Some(now)) => {
                (base.id, base.changed) != (now.id, now.changed)
                    || seen.below.is_some_and(|below| below != now.below())
                    || seen.listing.as_ref().is_some_and(|(listed, _)| *listed != now.listed())
            }
            _ => true,
        };
        let seen =
            self.seen.iter().filter(|(path, seen)| seen.looked && (changes_counters || !is_counter(path)));
        let lost = seen.filter(|(path, seen)| differs(seen, path)).map(|(path, _)| path).min()?;
        Some(Path::of(Arc::clone(lost)))
    }

    /// Whether this node was looked at or changed.
    #[must_use]
    pub fn concerns(&self, path: &str) -> bool {
        self.seen.get(path).is_some()
    }

    /// Ends it: what has to be done to a store without conflicts, and what watches have to be told then. The snapshots
    /// are gone, so that the store need not copy what it changes.
    pub(crate) fn into_steps(self) -> (Vec<Step>, Vec<Option<Event>>) {
        let (mut removes, mut puts) = (Vec::new(), Vec::new());
        let mut events: Vec<_> = self.events.into_iter().map(Some).collect();
        for (path, seen) in self.seen.into_entries() {
            let path = Path::of(path);
            // Of what came and went nobody hears.
            if seen.base.is_none()
                && matches!(seen.now, Now::Gone)
                && let Some(event) = seen.event.and_then(|event| events.get_mut(event))
            {
                *event = None;
            }
            if seen.covered {
                removes.push((path.clone(), seen.event));
            }
            if let Now::Own(own) = seen.now {
                let new = seen.base.is_none() || seen.covered;
                puts.push((own, path, new));
            }
        }
        // From the top down, so that a removal takes all with it; and in the order of creation.
        removes.sort_unstable();
        puts.sort_unstable_by_key(|(own, ..)| own.id);
        // Missing parents come with their children.
        let mut children = puts.iter().skip(1);
        let comes: Vec<bool> = puts
            .iter()
            .map(|(own, path, new)| {
                let by = |(child, below, _): &(Own, Path, bool)| {
                    own.id + 1 == child.id && parent(below) == Some(&**path)
                };
                let plain = |child: &Own| own.value.is_empty() && own.perms == child.perms;
                *new && children.next().is_some_and(|next| by(next) && plain(&next.0))
            })
            .collect();
        let removes = removes.into_iter().map(|(path, event)| Step::Remove(path, event));
        let puts = puts.into_iter().zip(comes).filter(|(_, comes)| !comes);
        let puts = puts.map(|((own, path, _), _)| match own.only_value {
            true => Step::Write(path, own.value),
            false => Step::Put(path, own.value, own.perms),
        });
        (removes.chain(puts).collect(), events)
    }

    /// Whether what the store has at `path` was removed here.
    fn hides(&self, path: &str) -> bool {
        self.removes && prefixes(path).any(|above| self.seen.at(&above).is_some_and(|seen| seen.covered))
    }
}

/// A node of which `seen` is known; `store` has it otherwise.
fn sight<'a>(seen: Option<&'a Seen>, store: impl FnOnce() -> Option<&'a Arc<Node>>) -> Option<Sight<'a>> {
    let mut sight = match seen {
        Some(Seen { now: Now::Gone, .. }) => return None,
        Some(Seen { now: Now::Own(own), .. }) => {
            Sight { id: own.id, generation: 0, value: &own.value, perms: &own.perms, listing_len: 0 }
        }
        Some(Seen { looked: true, base, .. }) => base.as_ref().map(Sight::from)?,
        _ => store().map(Sight::from)?,
    };
    if let Some(seen) = seen {
        let base = seen.base.as_ref().map_or(0, |base| base.changed);
        let listed = seen.listing.as_ref().map_or(0, |(listed, _)| *listed);
        sight.generation = sight.generation.max(base).max(listed).max(seen.generation);
        let len = if seen.covered { 0 } else { seen.listing_len.max(sight.listing_len) };
        sight.listing_len = len.saturating_add_signed(seen.listing_change);
    }
    Some(sight)
}

fn entry<'a>(seen: &'a mut PathMap<Seen>, bytes: &mut usize, path: &str) -> &'a mut Seen {
    let (seen, new) = seen.get_or_insert(path, Seen::default);
    *bytes += if new { path.len() + ENTRY } else { 0 };
    seen
}
