//! The tree of nodes: persistent, so that keeping a snapshot of a node or of everything costs one reference.
//!
//! Nodes that no snapshot shares are changed in place; shared ones are copied on the way down. Children are kept in
//! chunks, ordered by a keyed hash of their names: a search touches the one node it finds, and a copy of a large
//! directory copies one chunk and the references to the others. Every change has a number, the generation, from one
//! counter. Nothing here recurses: paths may be 1500 levels deep.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock, OnceLock};

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
        let dir = self.dir.as_ref()?;
        let (chunk, slot) = dir.find(hash(name), name);
        dir.chunks.get(chunk)?.slots.get(slot.ok()?).map(|slot| &slot.node)
    }

    /// All children, in no order.
    pub fn children(&self) -> impl Iterator<Item = &Arc<Self>> {
        let chunks = self.dir.iter().flat_map(|dir| dir.chunks.iter());
        chunks.flat_map(|chunk| chunk.slots.iter().map(|slot| &slot.node))
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
        let dir = self.dir.as_mut()?;
        let (chunk, slot) = dir.find(hash(name), name);
        let slots = Arc::make_mut(&mut dir.chunks.get_mut(chunk)?.slots);
        slots.get_mut(slot.ok()?).map(|slot| Arc::make_mut(&mut slot.node))
    }

    fn insert(&mut self, node: Self) {
        let listed = node.id;
        let dir = self.dir.get_or_insert_default();
        dir.listed = listed;
        dir.insert(node);
    }

    /// Takes the children of a node apart that nobody else has, for whoever has to visit them all.
    pub(crate) fn take_children(&mut self) -> impl Iterator<Item = Arc<Self>> + use<> {
        let chunks = self.dir.take().map(|mut dir| std::mem::take(&mut dir.chunks)).unwrap_or_default();
        chunks.into_iter().flat_map(|chunk| Arc::unwrap_or_clone(chunk.slots)).map(|slot| slot.node)
    }
}

/// Deep trees must not need a deep stack.
impl Drop for Node {
    fn drop(&mut self) {
        let mut rest: Vec<Box<Dir>> = self.dir.take().into_iter().collect();
        while let Some(dir) = rest.pop() {
            for slot in dir.chunks.into_iter().filter_map(|chunk| Arc::into_inner(chunk.slots)).flatten() {
                rest.extend(Arc::into_inner(slot.node).and_then(|mut node| node.dir.take()));
            }
        }
    }
}

#[derive(Debug, Default)]
struct Dir {
    listed: u64,
    listing_len: usize,
    chunks: Vec<Chunk>,
    listing: OnceLock<Arc<[u8]>>,
}

/// Some children that follow each other by hash.
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

impl Clone for Dir {
    fn clone(&self) -> Self {
        let (listing, chunks) = (self.listing.clone(), self.chunks.clone());
        Self { listed: self.listed, listing_len: self.listing_len, chunks, listing }
    }
}

impl Dir {
    /// The chunk that has or would have the name, and the slot in it or where it would go.
    fn find(&self, hash: u32, name: &str) -> (usize, Result<usize, usize>) {
        let above = self.chunks.partition_point(|chunk| match chunk.first.cmp(&hash) {
            std::cmp::Ordering::Equal => {
                chunk.slots.first().is_some_and(|slot| slot.node.name_bytes() <= name.as_bytes())
            }
            order => order.is_lt(),
        });
        let index = above.saturating_sub(1);
        let slot = self.chunks.get(index).map_or(Err(0), |chunk| {
            let by_name = |node: &Node| node.name_bytes().cmp(name.as_bytes());
            chunk.slots.binary_search_by(|slot| slot.hash.cmp(&hash).then_with(|| by_name(&slot.node)))
        });
        (index, slot)
    }

    fn insert(&mut self, node: Node) {
        let hash = hash(node.name());
        let (index, slot) = self.find(hash, node.name());
        let Err(slot) = slot else { return };
        self.listing_len += usize::from(node.name_len) + 1;
        self.listing = OnceLock::new();
        let new = Slot { hash, node: Arc::new(node) };
        let Some(chunk) = self.chunks.get_mut(index) else {
            self.chunks.reserve_exact(1);
            self.chunks.push(Chunk { first: hash, slots: Arc::new(vec![new]) });
            return;
        };
        let slots = Arc::make_mut(&mut chunk.slots);
        slots.insert(slot, new);
        chunk.first = chunk.first.min(hash);
        if slots.len() > CHUNK {
            let upper = slots.split_off(CHUNK / 2);
            let first = upper.first().map_or(hash, |slot| slot.hash);
            self.chunks.insert(index + 1, Chunk { first, slots: Arc::new(upper) });
        }
    }

    fn remove(&mut self, name: &str) -> Option<Arc<Node>> {
        let (index, slot) = self.find(hash(name), name);
        let chunk = self.chunks.get_mut(index)?;
        let slot = slot.ok()?;
        let slots = Arc::make_mut(&mut chunk.slots);
        let node = slots.remove(slot).node;
        match slots.first() {
            Some(first) => chunk.first = first.hash,
            None => drop(self.chunks.remove(index)),
        }
        self.listing_len -= usize::from(node.name_len) + 1;
        self.listing = OnceLock::new();
        Some(node)
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

    /// Replaces the value of an existing node; `false` if there is none.
    pub fn write(&mut self, path: &Path, value: &[u8]) -> bool {
        self.change(path, |node| node.set_value(value))
    }

    /// Replaces the permissions of an existing node; `false` if there is none.
    pub fn set_perms(&mut self, path: &Path, perms: Perms) -> bool {
        self.change(path, |node| node.perms = perms)
    }

    /// Adds a node and its missing parents, which have no value. Answers the id of the topmost new node; `None` if the
    /// node exists.
    pub fn create(&mut self, path: &Path, perms: &Perms, value: &[u8]) -> Option<u64> {
        let (_, depth) = self.nearest(path);
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
        let dir = self.node_mut(above)?.dir.as_mut()?;
        dir.listed = generation;
        dir.remove(path.name())
    }

    fn change(&mut self, path: &Path, edit: impl FnOnce(&mut Node)) -> bool {
        if self.get(path).is_none() {
            return false;
        }
        let generation = self.next_generation();
        self.node_mut(path).is_some_and(|node| {
            edit(node);
            node.changed = generation;
            true
        })
    }

    /// Copies what snapshots share on the way down. Callers look first whether the node exists.
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
        tree.create(&path("/a"), &Perms::private(), b"1").unwrap();
        let before = Arc::as_ptr(tree.get(&path("/a")).unwrap());
        assert!(tree.write(&path("/a"), b"2"));
        assert_eq!(Arc::as_ptr(tree.get(&path("/a")).unwrap()), before);
        let snapshot = tree.clone();
        assert!(tree.write(&path("/a"), b"3"));
        assert_eq!(snapshot.get(&path("/a")).unwrap().value(), b"2");
        assert_eq!(tree.get(&path("/a")).unwrap().value(), b"3");
    }

    #[test]
    fn s6_listing_is_oldest_first() {
        let mut tree = Tree::default();
        for name in ["/b", "/a", "/c10", "/c2"] {
            tree.create(&path(name), &Perms::private(), b"").unwrap();
        }
        tree.remove(&path("/a"));
        tree.create(&path("/a"), &Perms::private(), b"").unwrap();
        assert_eq!(*tree.root().listing(), *b"b\0c10\0c2\0a\0");
        assert_eq!(tree.root().listing_len(), 11);
    }

    #[test]
    fn xsa418_deep_trees_need_no_deep_stack() {
        let deep = path(&"/a".repeat(1500));
        let small = std::thread::Builder::new().stack_size(64 * 1024);
        let done = small.spawn(move || {
            let mut tree = Tree::default();
            assert_eq!(tree.create(&deep, &Perms::private(), b"1"), Some(1));
            assert_eq!(tree.create(&deep, &Perms::private(), b"1"), None);
            let snapshot = tree.clone();
            assert!(tree.write(&deep, b"2"));
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
                        let new = tree.create(&node, &Perms::private(), b"").is_some();
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
