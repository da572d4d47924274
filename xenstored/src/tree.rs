//! The tree of nodes: persistent, so that keeping a snapshot costs one reference.
//!
//! Nodes that no snapshot shares are changed in place; shared ones are copied on the way down. Children are kept in
//! sorted chunks, so that a copy of a large directory copies one chunk and the references to the others. Every change
//! has a number, the generation, from one counter. Nothing here recurses: paths may be 1500 levels deep.

use std::sync::{Arc, OnceLock};

use crate::path::Path;
use crate::perms::Perms;

/// Children per chunk at most; a full one is split in halves.
const CHUNK: usize = 64;

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    name: Box<str>,
    /// Generation of its creation: an identity, and the order among its siblings.
    pub id: u64,
    /// Generation of the last change of value or permissions.
    pub changed: u64,
    /// Generation of the last change of the set of children.
    pub listed: u64,
    /// The value.
    pub value: Box<[u8]>,
    /// The permissions.
    pub perms: Perms,
    children: Children,
}

impl Node {
    fn new(name: &str, id: u64, perms: Perms, value: &[u8]) -> Self {
        let children = Children::default();
        Self { name: name.into(), id, changed: id, listed: id, value: value.into(), perms, children }
    }

    /// A child by name.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Arc<Self>> {
        let (chunk, slot) = self.children.find(name);
        self.children.chunks().get(chunk)?.get(slot.ok()?)
    }

    /// All children, sorted by name.
    pub fn children(&self) -> impl Iterator<Item = &Arc<Self>> {
        self.children.chunks().iter().flat_map(|chunk| chunk.iter())
    }

    /// The last component of the path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of the children, oldest first, each with a NUL: the payload of DIRECTORY.
    #[must_use]
    pub fn listing(&self) -> &[u8] {
        let Some(dir) = &self.children.0 else { return &[] };
        dir.listing.get_or_init(|| {
            let mut children: Vec<&Arc<Self>> = self.children().collect();
            children.sort_by_key(|child| child.id);
            children.iter().flat_map(|child| child.name.bytes().chain([0])).collect()
        })
    }

    /// Bytes of [`Node::listing`], without making it.
    #[must_use]
    pub fn listing_len(&self) -> usize {
        self.children.0.as_ref().map_or(0, |dir| dir.listing_len)
    }

    fn child_mut(&mut self, name: &str) -> Option<&mut Self> {
        let (chunk, slot) = self.children.find(name);
        let dir = self.children.0.as_mut()?;
        let chunk = Arc::make_mut(dir.chunks.get_mut(chunk)?);
        chunk.get_mut(slot.ok()?).map(Arc::make_mut)
    }

    /// Takes a removed node apart: its children, for whoever has to visit them all.
    pub(crate) fn into_children(self) -> Vec<Arc<Self>> {
        self.children().cloned().collect()
    }
}

#[derive(Debug, Default)]
struct Children(Option<Box<Dir>>);

#[derive(Debug, Default)]
struct Dir {
    chunks: Vec<Arc<Vec<Arc<Node>>>>,
    listing_len: usize,
    listing: OnceLock<Box<[u8]>>,
}

impl Clone for Children {
    fn clone(&self) -> Self {
        Self(self.0.as_ref().map(|dir| {
            let chunks = dir.chunks.clone();
            Box::new(Dir { chunks, listing_len: dir.listing_len, listing: OnceLock::new() })
        }))
    }
}

impl Children {
    fn chunks(&self) -> &[Arc<Vec<Arc<Node>>>] {
        self.0.as_ref().map_or(&[], |dir| &dir.chunks)
    }

    /// The chunk that has or would have the name, and the slot in it or where it would go.
    fn find(&self, name: &str) -> (usize, Result<usize, usize>) {
        let first_above =
            self.chunks().partition_point(|chunk| chunk.first().is_some_and(|first| &*first.name <= name));
        let index = first_above.saturating_sub(1);
        let slot = self
            .chunks()
            .get(index)
            .map_or(Err(0), |chunk| chunk.binary_search_by(|child| (*child.name).cmp(name)));
        (index, slot)
    }

    fn insert(&mut self, node: Arc<Node>) {
        let (index, slot) = self.find(&node.name);
        let Err(slot) = slot else { return };
        let dir = self.0.get_or_insert_default();
        dir.listing_len += node.name.len() + 1;
        dir.listing = OnceLock::new();
        let Some(chunk) = dir.chunks.get_mut(index) else {
            dir.chunks.push(Arc::new(vec![node]));
            return;
        };
        let chunk = Arc::make_mut(chunk);
        chunk.insert(slot, node);
        if chunk.len() > CHUNK {
            let upper = chunk.split_off(CHUNK / 2);
            dir.chunks.insert(index + 1, Arc::new(upper));
        }
    }

    fn remove(&mut self, name: &str) -> Option<Arc<Node>> {
        let (index, slot) = self.find(name);
        let slot = slot.ok()?;
        let dir = self.0.as_mut()?;
        let chunk = Arc::make_mut(dir.chunks.get_mut(index)?);
        let node = chunk.remove(slot);
        dir.listing_len -= node.name.len() + 1;
        dir.listing = OnceLock::new();
        if chunk.is_empty() {
            dir.chunks.remove(index);
        }
        if dir.chunks.is_empty() {
            self.0 = None;
        }
        Some(node)
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
    pub fn get(&self, path: &Path) -> Option<&Arc<Node>> {
        path.components().try_fold(&self.root, |node, name| node.child(name))
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

    /// Takes the nodes out of a tree that is thrown away.
    #[must_use]
    pub fn into_root(self) -> Arc<Node> {
        self.root
    }

    /// Whether nothing changed between two trees, of which one was cloned from the other.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }

    /// Replaces the value of an existing node; `false` if there is none.
    pub fn write(&mut self, path: &Path, value: &[u8]) -> bool {
        self.change(path, |node| node.value = value.into())
    }

    /// Replaces the permissions of an existing node; `false` if there is none.
    pub fn set_perms(&mut self, path: &Path, perms: Perms) -> bool {
        self.change(path, |node| node.perms = perms)
    }

    /// Adds a node below an existing one. Answers its id; `None` without a parent, or if it exists.
    pub fn create(&mut self, path: &Path, perms: Perms, value: &[u8]) -> Option<u64> {
        let parent = self.get(&path.parent()?)?;
        if parent.child(path.name()).is_some() {
            return None;
        }
        self.generation += 1;
        let id = self.generation;
        let parent = self.node_mut(&path.parent()?)?;
        parent.children.insert(Arc::new(Node::new(path.name(), id, perms, value)));
        parent.listed = id;
        Some(id)
    }

    /// Takes a node and all below out of the tree. `/` stays.
    pub fn remove(&mut self, path: &Path) -> Option<Arc<Node>> {
        self.get(path)?;
        self.generation += 1;
        let generation = self.generation;
        let parent = self.node_mut(&path.parent()?)?;
        parent.listed = generation;
        parent.children.remove(path.name())
    }

    fn change(&mut self, path: &Path, edit: impl FnOnce(&mut Node)) -> bool {
        if self.get(path).is_none() {
            return false;
        }
        self.generation += 1;
        let generation = self.generation;
        self.node_mut(path).is_some_and(|node| {
            edit(node);
            node.changed = generation;
            true
        })
    }

    /// Copies what snapshots share on the way down. Callers look first whether the node exists.
    fn node_mut(&mut self, path: &Path) -> Option<&mut Node> {
        path.components().try_fold(Arc::make_mut(&mut self.root), |node, name| node.child_mut(name))
    }
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
        tree.create(&path("/a"), Perms::private(), b"1").unwrap();
        let before = Arc::as_ptr(tree.get(&path("/a")).unwrap());
        assert!(tree.write(&path("/a"), b"2"));
        assert_eq!(Arc::as_ptr(tree.get(&path("/a")).unwrap()), before);
        let snapshot = tree.clone();
        assert!(snapshot.same(&tree));
        assert!(tree.write(&path("/a"), b"3"));
        assert!(!snapshot.same(&tree));
        assert_eq!(&*snapshot.get(&path("/a")).unwrap().value, b"2");
        assert_eq!(&*tree.get(&path("/a")).unwrap().value, b"3");
    }

    #[test]
    fn s6_listing_is_oldest_first() {
        let mut tree = Tree::default();
        for name in ["/b", "/a", "/c10", "/c2"] {
            tree.create(&path(name), Perms::private(), b"").unwrap();
        }
        tree.remove(&path("/a"));
        tree.create(&path("/a"), Perms::private(), b"").unwrap();
        assert_eq!(tree.root().listing(), b"b\0c10\0c2\0a\0");
        assert_eq!(tree.root().listing_len(), 11);
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
                        let new = tree.create(&node, Perms::private(), b"").is_some();
                        prop_assert_eq!(new, model.insert(node, ()).is_none());
                    }
                }
            }
            snapshots.push((tree, model));
            for (tree, model) in &snapshots {
                let names: Vec<String> = tree.root().children().map(|n| format!("/{}", n.name())).collect();
                prop_assert!(names.iter().map(String::as_str).eq(model.keys().map(|path| &**path)));
                prop_assert_eq!(tree.root().listing().len(), tree.root().listing_len());
            }
        }
    }
}
