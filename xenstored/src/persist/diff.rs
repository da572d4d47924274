//! What is different between two trees, of which one came out of the other.

use std::collections::HashMap;
use std::sync::Arc;

use crate::dump::node_record;
use crate::migration::{Record, append as put};
use crate::path::Path;
use crate::store::Store;
use crate::tree::{Node, Tree};

/// A path, what was there, and what is.
type Pair<'a> = (Path, Option<&'a Arc<Node>>, &'a Arc<Node>);

/// Appends records that lead from `before` to the tree of `store`. Only what differs is visited: what is shared is equal.
pub(super) fn append(before: &Tree, store: &Store, bytes: &mut Vec<u8>) {
    let mut rest = vec![(Path::root(), Some(before.root()), store.tree.root())];
    while let Some((path, before, now)) = rest.pop() {
        if before.is_none_or(|before| before.changed != now.changed) {
            put(bytes, &node_record(|domid| store.domains.life(domid), &path, now));
        }
        let mut came = children(&path, before, now, bytes);
        // Oldest first when they are taken off the end: that is their order in listings.
        came.sort_unstable_by_key(|(_, _, child)| std::cmp::Reverse(child.id));
        rest.extend(came);
    }
}

/// The children that have to be looked at; those that are gone are said to be removed.
fn children<'a>(
    path: &Path,
    before: Option<&'a Arc<Node>>,
    now: &'a Arc<Node>,
    bytes: &mut Vec<u8>,
) -> Vec<Pair<'a>> {
    let mut old: HashMap<&str, &Arc<Node>> = HashMap::new();
    let mut new = Vec::new();
    match before {
        None => new.extend(now.children()),
        Some(before) => {
            let (went, came) = before.differing_children(now);
            old.extend(went.into_iter().map(|other| (other.name(), other)));
            new = came;
        }
    }
    let mut changed = Vec::new();
    for child in new {
        let other = old.remove(child.name());
        match other {
            Some(other) if Arc::ptr_eq(other, child) => {}
            Some(other) if other.id == child.id => {
                changed.push((path.join(child.name()), Some(other), child));
            }
            other => {
                // Another node of the same name.
                if other.is_some() {
                    put(bytes, &Record::Removed { path: path.join(child.name()).as_bytes() });
                }
                changed.push((path.join(child.name()), None, child));
            }
        }
    }
    for name in old.into_keys() {
        put(bytes, &Record::Removed { path: path.join(name).as_bytes() });
    }
    changed
}
