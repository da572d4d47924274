//! Watches, indexed by what they watch.
//!
//! An event looks at the watches on its own path and on the paths above it, a removal also at those below: nothing
//! here visits watches of unconcerned paths or connections.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::path_map::{PathMap, prefixes};
use crate::perms::{Caller, Perms};
use crate::store::ConnId;
use crate::tree::Node;

/// One watch.
#[derive(Debug)]
pub struct Watch {
    /// Who is told.
    pub conn: ConnId,
    /// Chosen by the client, part of every event.
    pub token: Box<[u8]>,
    /// How many levels below the watched name count; `None`: all.
    pub depth: Option<usize>,
    /// Bytes to leave away at the front of event paths, for watches registered by a relative path.
    pub relative: usize,
}

/// A change of the tree, as watches see it.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The node that changed.
    pub path: &'a str,
    /// If it was removed: the node as it was. Watches below are told too, those exactly on a removed node.
    pub removed: Option<&'a Arc<Node>>,
    /// Permissions of the node before and after the change: who may read by one of them may know.
    pub perms: [Option<&'a Perms>; 2],
}

/// All watches, by watched name.
#[derive(Debug, Default)]
pub struct Watches {
    /// The watches on a name, by number: oldest first.
    on: PathMap<BTreeMap<u64, Watch>>,
    /// The names, in order.
    names: BTreeSet<Arc<str>>,
    last: u64,
    count: usize,
}

impl Watches {
    /// Registers a watch and answers its number. That it is new is the caller's concern.
    pub fn insert(&mut self, name: Arc<str>, watch: Watch) -> u64 {
        self.last += 1;
        self.count += 1;
        self.names.insert(Arc::clone(&name));
        self.on.get_or_insert(&name, BTreeMap::new).0.insert(self.last, watch);
        self.last
    }

    /// Removes the watch of a number.
    pub fn remove(&mut self, name: &str, number: u64) {
        let Some(list) = self.on.get_mut(name) else { return };
        self.count -= usize::from(list.remove(&number).is_some());
        if list.is_empty() {
            self.on.remove(name);
            self.names.remove(name);
        }
    }

    fn on(&self, name: &str) -> impl Iterator<Item = &Watch> {
        self.on.get(name).into_iter().flat_map(BTreeMap::values)
    }

    /// The watch of a number.
    #[must_use]
    pub fn get(&self, name: &str, number: u64) -> Option<&Watch> {
        self.on.get(name)?.get(&number)
    }

    /// Calls `tell` with the event path of every watch that a change concerns and that may know of it. `above`: the
    /// permissions of the node above; who may read that may know too.
    pub fn fire<'a>(
        &self,
        change: &Change<'a>,
        above: impl FnOnce() -> Option<&'a Perms>,
        caller: impl Fn(ConnId) -> Option<Caller>,
        mut tell: impl FnMut(&Watch, &str),
    ) {
        let above = LazyCell::new(above);
        let perms = || change.perms.into_iter().chain([*above]).flatten();
        let may_know = |watch: &Watch| {
            caller(watch.conn).is_some_and(|caller| perms().any(|perms| perms.access(&caller).read()))
        };
        if let Some(root) = change.removed {
            self.fire_below(change.path, root, &caller, &mut tell);
        }
        let (mut lists, mut deepest) = (Vec::new(), 0);
        for (depth, above) in prefixes(change.path).enumerate() {
            lists.extend(self.on.at(&above).map(|list| (depth, list)));
            deepest = depth;
        }
        let concerned = |depth: usize, watch: &Watch| {
            watch.depth.is_none_or(|most| deepest - depth <= most) && may_know(watch)
        };
        let mut tell = |watch: &Watch| tell(watch, change.path.get(watch.relative..).unwrap_or_default());
        if let [(depth, list)] = lists[..] {
            return list.values().filter(|watch| concerned(depth, watch)).for_each(tell);
        }
        // Whoever has several hears in the order in which they came.
        let all = lists.iter().flat_map(|&(depth, list)| list.iter().map(move |watch| (depth, watch)));
        let mut told: Vec<_> = all.filter(|(depth, (_, watch))| concerned(*depth, watch)).collect();
        told.sort_by_key(|(_, (number, _))| **number);
        told.into_iter().for_each(|(_, (_, watch))| tell(watch));
    }

    /// The watches on what went with a removed node: what is deepest first, then the older nodes.
    fn fire_below(
        &self,
        path: &str,
        root: &Arc<Node>,
        caller: impl Fn(ConnId) -> Option<Caller>,
        mut tell: impl FnMut(&Watch, &str),
    ) {
        let (from, to) = (format!("{path}/"), format!("{path}0"));
        let names = self.names.range::<str, _>((Bound::Excluded(&*from), Bound::Excluded(&*to)));
        let below = |name| Some((descend(root, str::get(name, from.len()..)?)?, name));
        let mut gone: Vec<_> = names.filter_map(|name| below(name)).collect();
        gone.sort_by(|((one, _), _), ((other, _), _)| one.cmp(other));
        for ((_, [above, node]), name) in gone {
            for watch in self.on(name) {
                let may_read =
                    |caller: Caller| node.perms.access(&caller).read() || above.perms.access(&caller).read();
                if caller(watch.conn).is_some_and(may_read) {
                    tell(watch, name.get(watch.relative..).unwrap_or_default());
                }
            }
        }
    }

    /// Calls `tell` for the watches on exactly this name.
    pub fn fire_exact(&self, name: &str, tell: impl FnMut(&Watch)) {
        self.on(name).for_each(tell);
    }

    /// Calls `tell` for the watches on a special event, such as `@releaseDomain` of domain 7: those on
    /// `@releaseDomain`, which hear of the domain only with a depth of 1, and those on `@releaseDomain/7`.
    pub fn fire_special(&self, event: &str, domid: crate::DomId, mut tell: impl FnMut(&Watch, &str)) {
        let precise = format!("{event}/{domid}");
        let on = |name: &str| self.on.get(name).into_iter().flatten();
        let mut told: Vec<_> =
            on(event).map(|watch| (watch, watch.1.depth.is_some_and(|depth| depth > 0))).collect();
        told.extend(on(&precise).map(|watch| (watch, true)));
        // Two runs that are in order already.
        told.sort_by_key(|((number, _), _)| **number);
        for ((_, watch), single) in told {
            tell(watch, if single { &precise } else { event });
        }
    }

    /// Bytes that one more may take.
    pub(crate) fn growth(&self) -> usize {
        self.on.growth()
    }

    /// Gives back the room that many had who are gone.
    pub(crate) fn shrink(&mut self) {
        self.on.shrink();
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

/// The node at a relative path below `root`, after its parent; and what sorts it behind all that is below it and, with
/// what is above, by age.
fn descend<'a>(root: &'a Arc<Node>, relative: &str) -> Option<(Vec<u64>, [&'a Arc<Node>; 2])> {
    let (mut ids, mut at) = (Vec::new(), [root, root]);
    for name in relative.split('/') {
        let [_, node] = at;
        at = [node, node.child(name)?];
        ids.push(at[1].id);
    }
    ids.push(u64::MAX);
    Some((ids, at))
}
