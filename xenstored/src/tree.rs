//! The tree of nodes: persistent, so that keeping a snapshot of a node or of everything costs one reference.
//!
//! Nodes that no snapshot shares are changed in place; shared ones are copied on the way down. Children are kept in
//! chunks, ordered by a keyed hash of their names: a search touches the one node it finds, and a copy of a large
//! directory copies one chunk and the references to the others. Every change has a number, the generation, from one
//! counter. Nothing here recurses: paths may be 1500 levels deep.

use std::cmp::Ordering;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock, OnceLock};

use crate::DomId;
use crate::path::{Path, parent};
use crate::perms::Perms;
use crate::quota::node_bytes;

/// Children per chunk at most; a full one is split in halves.
const CHUNK: usize = 64;

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name and value in one piece: most of a store's memory are small nodes.
    text: Box<[u8]>,
    name_len: u16,
    /// Generation of its creation: an identity, and the order among its siblings.
    pub id: u64,
    /// Generation of the last change of value or permissions.
    pub changed: u64,
    /// The permissions.
    pub perms: Perms,
    dir: Option<Box<Dir>>,
}

impl Node {
    fn new(name: &str, id: u64, perms: Perms, value: &[u8]) -> Self {
        let text = [name.as_bytes(), value].concat().into();
        // A path has at most 3072 bytes.
        let name_len = u16::try_from(name.len()).unwrap_or(u16::MAX);
        Self { text, name_len, id, changed: id, perms, dir: None }
    }

    /// The last component of the path.
    #[must_use]
    pub fn name(&self) -> &str {
        std::str::from_utf8(self.name_bytes()).unwrap_or_default()
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        self.text.get(self.name_len.into()..).unwrap_or_default()
    }

    /// What its owner is charged with.
    #[must_use]
    pub fn bytes(&self) -> usize {
        node_bytes(&self.perms, self.name_len.into(), self.value().len())
    }

    /// Generation of the last change of the set of children.
    #[must_use]
    pub fn listed(&self) -> u64 {
        self.dir.as_ref().map_or(self.id, |dir| dir.listed)
    }

    /// A child by name.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Arc<Self>> {
        self.dir.as_ref()?.slots.get(hash(name), name)
    }

    /// All children, in no order.
    pub fn children(&self) -> impl Iterator<Item = &Arc<Self>> {
        let lists = self.dir.iter().flat_map(|dir| dir.slots.lists());
        lists.flat_map(|slots| slots.iter().map(|slot| &slot.node))
    }

    /// All children, oldest first.
    #[must_use]
    pub fn children_by_age(&self) -> Vec<&Arc<Self>> {
        let mut children: Vec<_> = self.children().collect();
        children.sort_unstable_by_key(|child| child.id);
        children
    }

    /// The names of the children, oldest first, each with a NUL: the payload of DIRECTORY.
    #[must_use]
    pub fn listing(&self) -> Arc<[u8]> {
        let Some(dir) = &self.dir else { return Arc::default() };
        let list = || {
            self.children_by_age().iter().flat_map(|c| c.name_bytes().iter().copied().chain([0])).collect()
        };
        Arc::clone(dir.listing.get_or_init(list))
    }

    /// Bytes of [`Node::listing`], without making it.
    #[must_use]
    pub fn listing_len(&self) -> usize {
        self.dir.as_ref().map_or(0, |dir| dir.listing_len)
    }

    /// The same node without its children: what a snapshot of one node keeps.
    #[must_use]
    pub fn alone(self: &Arc<Self>) -> Arc<Self> {
        if self.dir.is_none() {
            return Arc::clone(self);
        }
        let Self { text, name_len, id, changed, perms, dir: _ } = &**self;
        let (text, perms) = (text.clone(), perms.clone());
        Arc::new(Self { text, name_len: *name_len, id: *id, changed: *changed, perms, dir: None })
    }

    fn name_bytes(&self) -> &[u8] {
        self.text.get(..self.name_len.into()).unwrap_or_default()
    }

    fn set_value(&mut self, value: &[u8]) {
        let name = usize::from(self.name_len);
        match self.text.get_mut(name..) {
            Some(old) if old.len() == value.len() => old.copy_from_slice(value),
            _ => self.text = [self.name_bytes(), value].concat().into(),
        }
    }

    fn child_mut(&mut self, name: &str) -> Option<&mut Self> {
        self.dir.as_mut()?.slots.get_mut(hash(name), name)
    }

    fn insert(&mut self, node: Self) {
        let (listed, len) = (node.id, usize::from(node.name_len) + 1);
        let dir = self.dir.get_or_insert_default();
        if dir.slots.insert(Slot { hash: hash(node.name()), node: Arc::new(node) }) {
            dir.listed = listed;
            dir.listing_len += len;
            dir.listing = OnceLock::new();
        }
    }

    fn remove(&mut self, name: &str, generation: u64) -> Option<Arc<Self>> {
        let dir = self.dir.as_mut()?;
        let node = dir.slots.remove(hash(name), name)?;
        dir.listed = generation;
        dir.listing_len -= usize::from(node.name_len) + 1;
        dir.listing = OnceLock::new();
        Some(node)
    }

    /// Takes the children of a removed node apart, for whoever has to visit them all.
    pub(crate) fn take_children(&mut self) -> impl Iterator<Item = Arc<Self>> + use<> {
        let slots = self.dir.take().map(|dir| dir.slots.into_slots()).unwrap_or_default();
        slots.into_iter().flatten().map(|slot| slot.node)
    }
}

/// Deep trees must not need a deep stack.
impl Drop for Node {
    fn drop(&mut self) {
        let mut rest: Vec<Box<Dir>> = self.dir.take().into_iter().collect();
        while let Some(dir) = rest.pop() {
            for slot in dir.slots.into_slots().into_iter().flatten() {
                rest.extend(Arc::into_inner(slot.node).and_then(|mut node| node.dir.take()));
            }
        }
    }
}

#[derive(Debug, Default)]
struct Dir {
    listed: u64,
    listing_len: usize,
    slots: Slots,
    listing: OnceLock<Arc<[u8]>>,
}

/// Children in the order of their hashes and names: few in one list, many in chunks.
#[derive(Clone, Debug)]
enum Slots {
    Few(Vec<Slot>),
    Many(Vec<Chunk>),
}

/// Some children that follow each other; never empty.
#[derive(Clone, Debug)]
struct Chunk {
    /// Hash of the first of them.
    first: u32,
    slots: Arc<Vec<Slot>>,
}

#[derive(Clone, Debug)]
struct Slot {
    hash: u32,
    node: Arc<Node>,
}

impl Slot {
    fn cmp(&self, hash: u32, name: &str) -> Ordering {
        self.hash.cmp(&hash).then_with(|| self.node.name_bytes().cmp(name.as_bytes()))
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Slots {
    fn lists(&self) -> impl Iterator<Item = &[Slot]> {
        let (few, many): (&[Slot], &[Chunk]) = match self {
            Self::Few(slots) => (slots, &[]),
            Self::Many(chunks) => (&[], chunks),
        };
        [few].into_iter().chain(many.iter().map(|chunk| chunk.slots.as_slice()))
    }

    fn into_slots(self) -> Vec<Vec<Slot>> {
        match self {
            Self::Few(slots) => vec![slots],
            Self::Many(chunks) => chunks.into_iter().map(|chunk| Arc::unwrap_or_clone(chunk.slots)).collect(),
        }
    }

    /// Which of many chunks has or would have the name.
    fn chunk(chunks: &[Chunk], hash: u32, name: &str) -> usize {
        let above = chunks.partition_point(|chunk| match chunk.first.cmp(&hash) {
            Ordering::Equal => chunk.slots.first().is_some_and(|slot| slot.cmp(hash, name).is_le()),
            order => order.is_lt(),
        });
        above.saturating_sub(1)
    }

    fn get(&self, hash: u32, name: &str) -> Option<&Arc<Node>> {
        let slots = match self {
            Self::Few(slots) => slots,
            Self::Many(chunks) => &*chunks.get(Self::chunk(chunks, hash, name))?.slots,
        };
        let slot = slots.binary_search_by(|slot| slot.cmp(hash, name)).ok()?;
        slots.get(slot).map(|slot| &slot.node)
    }

    /// The list that has or would have the name, as one that nobody else has, and its number if there are many.
    fn list_mut(&mut self, hash: u32, name: &str) -> Option<(&mut Vec<Slot>, usize)> {
        match self {
            Self::Few(slots) => Some((slots, 0)),
            Self::Many(chunks) => {
                let index = Self::chunk(chunks, hash, name);
                Some((Arc::make_mut(&mut chunks.get_mut(index)?.slots), index))
            }
        }
    }

    fn get_mut(&mut self, hash: u32, name: &str) -> Option<&mut Node> {
        let (slots, _) = self.list_mut(hash, name)?;
        let slot = slots.binary_search_by(|slot| slot.cmp(hash, name)).ok()?;
        slots.get_mut(slot).map(|slot| Arc::make_mut(&mut slot.node))
    }

    /// `false` if the name is there already.
    fn insert(&mut self, new: Slot) -> bool {
        let Some((slots, index)) = self.list_mut(new.hash, new.node.name()) else { return false };
        let Err(slot) = slots.binary_search_by(|slot| slot.cmp(new.hash, new.node.name())) else {
            return false;
        };
        slots.insert(slot, new);
        let upper = (slots.len() > CHUNK).then(|| slots.split_off(CHUNK / 2));
        if let (Self::Few(slots), Some(_)) = (&mut *self, &upper) {
            *self = Self::Many(vec![Chunk::new(std::mem::take(slots))]);
        }
        if let Self::Many(chunks) = self {
            chunks.get_mut(index).into_iter().for_each(Chunk::renew);
            upper.into_iter().for_each(|upper| chunks.insert(index + 1, Chunk::new(upper)));
        }
        true
    }

    fn remove(&mut self, hash: u32, name: &str) -> Option<Arc<Node>> {
        let (slots, index) = self.list_mut(hash, name)?;
        let slot = slots.binary_search_by(|slot| slot.cmp(hash, name)).ok()?;
        let node = slots.remove(slot).node;
        let empty = slots.is_empty();
        match self {
            Self::Many(chunks) if empty && chunks.len() == 1 => *self = Self::default(),
            Self::Many(chunks) if empty => drop(chunks.remove(index)),
            Self::Many(chunks) => chunks.get_mut(index).into_iter().for_each(Chunk::renew),
            Self::Few(_) => {}
        }
        Some(node)
    }
}

impl Chunk {
    fn new(slots: Vec<Slot>) -> Self {
        let mut chunk = Self { first: 0, slots: Arc::new(slots) };
        chunk.renew();
        chunk
    }

    fn renew(&mut self) {
        self.first = self.slots.first().map_or(0, |slot| slot.hash);
    }
}

impl Clone for Dir {
    fn clone(&self) -> Self {
        let (listing, slots) = (self.listing.clone(), self.slots.clone());
        Self { listed: self.listed, listing_len: self.listing_len, slots, listing }
    }
}

/// Keyed, so that a guest cannot choose names that share a hash.
fn hash(name: &str) -> u32 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let [a, b, c, d, ..] = KEY.hash_one(name).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// A whole store's nodes. Cloning it takes a snapshot.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Arc<Node>,
    generation: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Self { root: Arc::new(Node::new("", 0, Perms::private(), b"")), generation: 0 }
    }
}

impl Tree {
    /// The node at `path`.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Arc<Node>> {
        names(path).try_fold(&self.root, |node, name| node.child(name))
    }

    /// The nearest existing ancestor of `path`, or its node itself, and how many components its path has.
    #[must_use]
    pub fn nearest(&self, path: &Path) -> (&Arc<Node>, usize) {
        let (mut node, mut depth) = (&self.root, 0);
        for name in path.components() {
            let Some(child) = node.child(name) else { break };
            (node, depth) = (child, depth + 1);
        }
        (node, depth)
    }

    /// The node of `/`.
    #[must_use]
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// A number that no change had before.
    pub fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Replaces the value of an existing node. Answers its owner, and by how many bytes it grew.
    pub fn write(&mut self, path: &Path, value: &[u8]) -> Option<(DomId, isize)> {
        self.change(path, |node| {
            let grown = value.len().wrapping_sub(node.value().len()).cast_signed();
            node.set_value(value);
            (node.perms.owner(), grown)
        })
    }

    /// Replaces the permissions of an existing node. Answers the old ones.
    pub fn set_perms(&mut self, path: &Path, perms: Perms) -> Option<Perms> {
        self.change(path, |node| std::mem::replace(&mut node.perms, perms))
    }

    /// Adds a node and its missing parents, which have no value, below the first `depth` names of its path, which exist.
    /// Answers the id of the topmost new node; `None` if nothing is missing.
    pub fn create(&mut self, path: &Path, depth: usize, perms: &Perms, value: &[u8]) -> Option<u64> {
        let missing: Vec<&str> = path.components().skip(depth).collect();
        let top = self.generation + 1;
        let (last, parents) = missing.split_last()?;
        let mut id = self.generation + u64::try_from(missing.len()).ok()?;
        self.generation = id;
        let mut node = Node::new(last, id, perms.clone(), value);
        for name in parents.iter().rev() {
            id -= 1;
            let mut parent = Node::new(name, id, perms.clone(), b"");
            parent.insert(node);
            node = parent;
        }
        let mut parent = path.components().take(depth);
        let parent = parent.try_fold(Arc::make_mut(&mut self.root), |node, name| node.child_mut(name))?;
        parent.insert(node);
        Some(top)
    }

    /// Takes a node and all below out of the tree. `/` stays.
    pub fn remove(&mut self, path: &Path) -> Option<Arc<Node>> {
        let above = parent(path)?;
        if path.is_root() || self.get(path).is_none() {
            return None;
        }
        let generation = self.next_generation();
        self.node_mut(above)?.remove(path.name(), generation)
    }

    /// Changes an existing node; answers what `edit` says.
    fn change<T>(&mut self, path: &Path, edit: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let generation = self.next_generation();
        let node = self.node_mut(path)?;
        node.changed = generation;
        Some(edit(node))
    }

    /// Copies what snapshots share on the way down.
    fn node_mut(&mut self, path: &str) -> Option<&mut Node> {
        names(path).try_fold(Arc::make_mut(&mut self.root), |node, name| node.child_mut(name))
    }
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    fn path(text: &str) -> Path {
        Path::parse(text.as_bytes(), 0, None).unwrap()
    }

    #[test]
    fn snapshots_stay_and_unshared_nodes_are_changed_in_place() {
        let mut tree = Tree::default();
        tree.create(&path("/a"), 0, &Perms::private(), b"1").unwrap();
        let before = Arc::as_ptr(tree.get(&path("/a")).unwrap());
        assert_eq!(tree.write(&path("/a"), b"2"), Some((0, 0)));
        assert_eq!(Arc::as_ptr(tree.get(&path("/a")).unwrap()), before);
        let snapshot = tree.clone();
        assert_eq!(tree.write(&path("/a"), b"333"), Some((0, 2)));
        assert_eq!(snapshot.get(&path("/a")).unwrap().value(), b"2");
        assert_eq!(tree.get(&path("/a")).unwrap().value(), b"333");
    }

    #[test]
    fn s6_listing_is_oldest_first() {
        let mut tree = Tree::default();
        for name in ["/b", "/a", "/c10", "/c2"] {
            tree.create(&path(name), 0, &Perms::private(), b"").unwrap();
        }
        tree.remove(&path("/a"));
        tree.create(&path("/a"), 0, &Perms::private(), b"").unwrap();
        assert_eq!(*tree.root().listing(), *b"b\0c10\0c2\0a\0");
        assert_eq!(tree.root().listing_len(), 11);
    }

    #[test]
    fn xsa418_deep_trees_need_no_deep_stack() {
        let deep = path(&"/a".repeat(1500));
        let small = std::thread::Builder::new().stack_size(64 * 1024);
        let done = small.spawn(move || {
            let mut tree = Tree::default();
            assert_eq!(tree.create(&deep, 0, &Perms::private(), b"1"), Some(1));
            assert_eq!(tree.create(&deep, 1500, &Perms::private(), b"1"), None);
            let snapshot = tree.clone();
            assert_eq!(tree.write(&deep, b"2"), Some((0, 0)));
            assert_eq!(tree.get(&deep).unwrap().value(), b"2");
            drop(tree.remove(&path("/a")));
            assert_eq!(snapshot.get(&deep).unwrap().value(), b"1");
        });
        done.unwrap().join().unwrap();
    }

    proptest! {
        /// A directory of many children behaves as a map, with and without snapshots in between.
        #[test]
        fn directories_are_maps(ops in prop::collection::vec((0..400u32, 0..4u8), 1..1500)) {
            let (mut tree, mut model, mut snapshots) = (Tree::default(), BTreeMap::new(), Vec::new());
            for (key, op) in ops {
                let node = path(&format!("/n{key}"));
                match op {
                    0 => prop_assert_eq!(tree.remove(&node).is_some(), model.remove(&node).is_some()),
                    1 if snapshots.len() < 4 => snapshots.push((tree.clone(), model.clone())),
                    _ => {
                        let new = tree.get(&node).is_none();
                        tree.create(&node, tree.nearest(&node).1, &Perms::private(), b"");
                        prop_assert_eq!(new, model.insert(node, ()).is_none());
                    }
                }
            }
            snapshots.push((tree, model));
            for (tree, model) in &snapshots {
                let mut names: Vec<String> = tree.root().children().map(|n| format!("/{}", n.name())).collect();
                names.sort_unstable();
                prop_assert!(names.iter().map(String::as_str).eq(model.keys().map(|path| &**path)));
                prop_assert_eq!(tree.root().listing().len(), tree.root().listing_len());
            }
        }
    }
}
