//! The tree of nodes: persistent, so that keeping a snapshot of a node or of everything costs one reference.
//!
//! Nodes that no snapshot shares are changed in place; shared ones are copied on the way down. Children are kept in
//! chunks, ordered by a keyed hash of their names: a search touches the one node it finds, and a copy of a large
//! directory copies one chunk and the references to the others. Every change has a number, the generation, from one
//! counter. Nothing here recurses: paths may be 1500 levels deep.

use std::cmp::Ordering;
use std::sync::{Arc, OnceLock};

use crate::DomId;
use crate::path::{components, name, names, parent};
use crate::path_map::{Prefix, hash_name};
use crate::perms::Perms;
use crate::quota::node_bytes;
use crate::text::Text;

/// Children per chunk at most; a full one is split in halves.
const CHUNK: usize = 64;
/// The lowest and the highest hash.
const ALL: (u32, u32) = (0, u32::MAX);

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    text: Text,
    /// Generation of its creation: an identity, and the order among its siblings.
    pub id: u64,
    /// Generation of the last change of value or permissions.
    pub changed: u64,
    /// The permissions.
    pub perms: Perms,
    children: Slots,
    /// Of a node that has children, or had some.
    list: Option<Box<List>>,
}

impl Node {
    fn new(name: &str, id: u64, perms: Perms, value: &[u8]) -> Self {
        let text = Text::new(name.as_bytes(), value);
        Self { text, id, changed: id, perms, children: Slots::default(), list: None }
    }

    /// The last component of the path.
    #[must_use]
    pub fn name(&self) -> &str {
        std::str::from_utf8(self.text.name()).unwrap_or_default()
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        self.text.value()
    }

    /// What its owner is charged with.
    #[must_use]
    pub fn bytes(&self) -> usize {
        node_bytes(&self.perms, self.text.name().len(), self.value().len())
    }

    /// Generation of the last change of the set of children.
    #[must_use]
    pub fn listed(&self) -> u64 {
        self.list.as_ref().map_or(self.id, |list| list.changed)
    }

    /// Generation of the last change of anything below, or of the set of children.
    #[must_use]
    pub fn below(&self) -> u64 {
        self.list.as_ref().map_or(self.id, |list| list.below)
    }

    /// Whether there is anything below.
    #[must_use]
    pub fn has_children(&self) -> bool {
        !self.children.is_empty()
    }

    /// A child by name.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Arc<Self>> {
        self.child_named(name.as_bytes())
    }

    fn child_named(&self, name: &[u8]) -> Option<&Arc<Self>> {
        self.children.get(hash_name(name), name)
    }

    /// A child whose name ends a path.
    pub(crate) fn child_at(&self, prefix: &Prefix<'_>) -> Option<&Arc<Self>> {
        self.children.get(prefix.name_hash, prefix.name.as_bytes())
    }

    /// All children, in no order.
    pub fn children(&self) -> impl Iterator<Item = &Arc<Self>> {
        self.children.lists().flat_map(|slots| slots.iter().map(|slot| &slot.node))
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
        let Some(list) = &self.list else { return Arc::default() };
        let names =
            || self.children_by_age().iter().flat_map(|c| c.text.name().iter().copied().chain([0])).collect();
        Arc::clone(list.names.get_or_init(names))
    }

    /// Bytes of [`Node::listing`], without making it.
    #[must_use]
    pub fn listing_len(&self) -> usize {
        self.list.as_ref().map_or(0, |list| list.len)
    }

    /// The same node without its children: what a snapshot of one node keeps.
    #[must_use]
    pub fn alone(self: &Arc<Self>) -> Arc<Self> {
        if self.list.is_none() {
            return Arc::clone(self);
        }
        let Self { text, id, changed, perms, .. } = &**self;
        let (text, perms, children) = (text.clone(), perms.clone(), Slots::default());
        Arc::new(Self { text, id: *id, changed: *changed, perms, children, list: None })
    }

    /// To change it, or something below it.
    fn child_mut(&mut self, name: &[u8], generation: u64) -> Option<&mut Self> {
        if let Some(list) = &mut self.list {
            list.below = generation;
        }
        self.children.get_mut(hash_name(name), name)
    }

    fn insert(&mut self, node: Self) {
        let (id, len) = (node.id, node.text.name().len() + 1);
        if self.children.insert(Slot { hash: hash_name(node.text.name()), node: Arc::new(node) }) {
            let list = self.list.get_or_insert_default();
            list.change(id, list.len + len);
        }
    }

    fn remove(&mut self, name: &str, generation: u64) -> Option<Arc<Self>> {
        let node = self.children.remove(hash_name(name.as_bytes()), name.as_bytes())?;
        let list = self.list.as_mut()?;
        list.change(generation, list.len - (node.text.name().len() + 1));
        Some(node)
    }

    /// Takes the children of a removed node apart, for whoever has to visit them all.
    pub(crate) fn take_children(&mut self) -> impl Iterator<Item = Arc<Self>> + use<> {
        std::mem::take(&mut self.children).into_slots().into_iter().flatten().map(|slot| slot.node)
    }
}

/// Deep trees must not need a deep stack.
impl Drop for Node {
    fn drop(&mut self) {
        if self.children.is_empty() {
            return;
        }
        let mut rest = vec![std::mem::take(&mut self.children)];
        while let Some(children) = rest.pop() {
            for slot in children.into_slots().into_iter().flatten() {
                let node = Arc::into_inner(slot.node);
                rest.extend(node.map(|mut node| std::mem::take(&mut node.children)));
            }
        }
    }
}

/// The list of a node's children, as DIRECTORY answers it.
#[derive(Clone, Debug, Default)]
struct List {
    /// Generation of its last change.
    changed: u64,
    /// The same of anything below.
    below: u64,
    /// Bytes of it.
    len: usize,
    /// Made when somebody asks.
    names: OnceLock<Arc<[u8]>>,
}

impl List {
    fn change(&mut self, generation: u64, len: usize) {
        *self = Self { changed: generation, below: generation, len, names: OnceLock::new() };
    }
}

/// Children in the order of their hashes and names: few in one list, many in chunks.
#[derive(Clone, Debug)]
enum Slots {
    // Boxes take a word less than vectors, in every node.
    Few(Box<[Slot]>),
    Many(Box<[Chunk]>),
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
    fn cmp(&self, hash: u32, name: &[u8]) -> Ordering {
        self.hash.cmp(&hash).then_with(|| self.node.text.name().cmp(name))
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::Few(Box::default())
    }
}

impl Slots {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Few(slots) if slots.is_empty())
    }

    fn lists(&self) -> impl Iterator<Item = &[Slot]> {
        let (few, many): (&[Slot], &[Chunk]) = match self {
            Self::Few(slots) => (slots, &[]),
            Self::Many(chunks) => (&[], chunks),
        };
        [few].into_iter().chain(many.iter().map(|chunk| chunk.slots.as_slice()))
    }

    fn into_slots(self) -> Vec<Vec<Slot>> {
        match self {
            Self::Few(slots) => vec![slots.into_vec()],
            Self::Many(chunks) => chunks.into_iter().map(|chunk| Arc::unwrap_or_clone(chunk.slots)).collect(),
        }
    }

    fn get(&self, hash: u32, name: &[u8]) -> Option<&Arc<Node>> {
        let (slots, all): (&[Slot], _) = match self {
            Self::Few(slots) => (slots, ALL),
            Self::Many(chunks) => {
                let (index, all) = chunk_of(chunks, hash, name);
                (chunks.get(index)?.slots.as_slice(), all)
            }
        };
        slots.get(find(slots, all, hash, name).ok()?).map(|slot| &slot.node)
    }

    fn get_mut(&mut self, hash: u32, name: &[u8]) -> Option<&mut Node> {
        let (slots, all): (&mut [Slot], _) = match self {
            Self::Few(slots) => (slots, ALL),
            Self::Many(chunks) => {
                let (index, all) = chunk_of(chunks, hash, name);
                (Arc::make_mut(&mut chunks.get_mut(index)?.slots).as_mut_slice(), all)
            }
        };
        let slot = find(slots, all, hash, name).ok()?;
        slots.get_mut(slot).map(|slot| Arc::make_mut(&mut slot.node))
    }

    /// `false` if the name is there already.
    fn insert(&mut self, new: Slot) -> bool {
        let name = new.node.text.name();
        match self {
            Self::Few(few) => {
                let Err(slot) = find(few, ALL, new.hash, name) else { return false };
                let mut slots = std::mem::take(few).into_vec();
                slots.insert(slot, new);
                *self = match upper_half(&mut slots) {
                    None => Self::Few(slots.into()),
                    Some(upper) => Self::Many([slots, upper].map(Chunk::new).into()),
                };
            }
            Self::Many(chunks) => {
                let (index, all) = chunk_of(chunks, new.hash, name);
                let Some(chunk) = chunks.get_mut(index) else { return false };
                let slots = Arc::make_mut(&mut chunk.slots);
                let Err(slot) = find(slots, all, new.hash, name) else { return false };
                slots.insert(slot, new);
                let upper = upper_half(slots);
                chunk.renew();
                if let Some(upper) = upper {
                    let mut all = std::mem::take(chunks).into_vec();
                    all.insert(index + 1, Chunk::new(upper));
                    *chunks = all.into();
                }
            }
        }
        true
    }

    fn remove(&mut self, hash: u32, name: &[u8]) -> Option<Arc<Node>> {
        match self {
            Self::Few(few) => {
                let slot = find(few, ALL, hash, name).ok()?;
                let mut slots = std::mem::take(few).into_vec();
                let node = slots.remove(slot).node;
                *few = slots.into();
                Some(node)
            }
            Self::Many(chunks) => {
                let (index, all) = chunk_of(chunks, hash, name);
                let chunk = chunks.get_mut(index)?;
                let slots = Arc::make_mut(&mut chunk.slots);
                let node = slots.remove(find(slots, all, hash, name).ok()?).node;
                chunk.renew();
                if chunk.slots.is_empty() {
                    let mut all = std::mem::take(chunks).into_vec();
                    all.remove(index);
                    *self = if all.is_empty() { Self::default() } else { Self::Many(all.into()) };
                }
                Some(node)
            }
        }
    }
}

/// Which of many chunks has or would have the name, and the lowest and the highest hash that it may have.
fn chunk_of(chunks: &[Chunk], hash: u32, name: &[u8]) -> (usize, (u32, u32)) {
    let above = chunks.partition_point(|chunk| match chunk.first.cmp(&hash) {
        Ordering::Equal => chunk.slots.first().is_some_and(|slot| slot.cmp(hash, name).is_le()),
        order => order.is_lt(),
    });
    let first = |index| chunks.get(index).map(|chunk: &Chunk| chunk.first);
    let ((low, high), index) = (ALL, above.saturating_sub(1));
    (index, (first(index).filter(|_| index > 0).unwrap_or(low), first(index + 1).unwrap_or(high)))
}

/// Where the name is, or would be, among slots with hashes from `low` to `high`. They are spread evenly, so it is near
/// the place that its own hash has between those: to look around there touches fewer cache lines than halving does.
fn find(slots: &[Slot], (low, high): (u32, u32), hash: u32, name: &[u8]) -> Result<usize, usize> {
    let above = u64::from(hash.saturating_sub(low)) * slots.len() as u64;
    let guess = usize::try_from(above / (u64::from(high.saturating_sub(low)) + 1)).unwrap_or(usize::MAX);
    let mut at = guess.min(slots.len());
    while at > 0 && slots.get(at - 1).is_some_and(|slot| slot.hash >= hash) {
        at -= 1;
    }
    while let Some(slot) = slots.get(at).filter(|slot| slot.hash <= hash) {
        // Rarely more than one has the hash.
        match slot.cmp(hash, name) {
            Ordering::Less => at += 1,
            Ordering::Equal => return Ok(at),
            Ordering::Greater => break,
        }
    }
    Err(at)
}

/// Takes half of a list that has become too long.
fn upper_half(slots: &mut Vec<Slot>) -> Option<Vec<Slot>> {
    (slots.len() > CHUNK).then(|| slots.split_off(CHUNK / 2))
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
        names(path).try_fold(&self.root, |node, name| node.child_named(name))
    }

    /// The nearest existing ancestor of `path`, or its node itself, and how many components its path has.
    #[must_use]
    pub fn nearest(&self, path: &str) -> (&Arc<Node>, usize) {
        let (mut node, mut depth) = (&self.root, 0);
        for name in names(path) {
            let Some(child) = node.child_named(name) else { break };
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
    pub fn write(&mut self, path: &str, value: &[u8]) -> Option<(DomId, isize)> {
        self.change(path, |node| {
            let grown = value.len().wrapping_sub(node.value().len()).cast_signed();
            node.text.set_value(value);
            (node.perms.owner(), grown)
        })
    }

    /// Replaces the permissions of an existing node. Answers the old ones.
    pub fn set_perms(&mut self, path: &str, perms: Perms) -> Option<Perms> {
        self.change(path, |node| std::mem::replace(&mut node.perms, perms))
    }

    /// Adds a node and its missing parents, which have no value, below the first `depth` names of its path, which exist.
    /// Answers the id of the topmost new node; `None` if nothing is missing.
    pub fn create(&mut self, path: &str, depth: usize, perms: &Perms, value: &[u8]) -> Option<u64> {
        let missing: Vec<&str> = components(path).skip(depth).collect();
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
        let mut parent = names(path).take(depth);
        let root = Arc::make_mut(&mut self.root);
        let parent = parent.try_fold(root, |node, name| node.child_mut(name, top))?;
        parent.insert(node);
        Some(top)
    }

    /// Takes a node and all below out of the tree. `/` stays.
    pub fn remove(&mut self, path: &str) -> Option<Arc<Node>> {
        let above = parent(path)?;
        if path == "/" || self.get(path).is_none() {
            return None;
        }
        let generation = self.next_generation();
        self.node_mut(above, generation)?.remove(name(path), generation)
    }

    /// Changes an existing node; answers what `edit` says.
    fn change<T>(&mut self, path: &str, edit: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let generation = self.next_generation();
        let node = self.node_mut(path, generation)?;
        node.changed = generation;
        Some(edit(node))
    }

    /// Copies what snapshots share on the way down.
    fn node_mut(&mut self, path: &str, generation: u64) -> Option<&mut Node> {
        let root = Arc::make_mut(&mut self.root);
        names(path).try_fold(root, |node, name| node.child_mut(name, generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Path;
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
