//! A map from paths to values that finds what it has for a path and for all above it in one pass over the path.
//!
//! The hash of a path is made name by name, so the hashes of all its beginnings cost no more than its own.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use hashbrown::HashTable;

/// Secrets: a guest cannot choose names or paths that share a hash.
static KEYS: LazyLock<[u64; 3]> = LazyLock::new(|| {
    let random = RandomState::new();
    // Odd, so that no multiplication by one of them loses bits.
    [0, 1, 2].map(|n: u64| random.hash_one(n) | 1)
});

/// A path or one above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix<'a> {
    /// The hash of `path`.
    pub(crate) hash: u64,
    /// From the root on; `/` for the root.
    pub(crate) path: &'a str,
    /// Its last name, empty for the root.
    pub(crate) name: &'a str,
    /// [`hash_name`] of that.
    pub(crate) name_hash: u32,
}

/// `/` and all the others down to `path` itself, which is absolute.
pub(crate) fn prefixes(path: &str) -> impl Iterator<Item = Prefix<'_>> {
    let keys = *KEYS;
    let [_, start, step] = keys;
    let root = Prefix { hash: start, path: "/", name: "", name_hash: 0 };
    let (mut hash, mut end) = (start, 0);
    let below = std::iter::from_fn(move || {
        let rest = path.get(end + 1..).filter(|rest| !rest.is_empty())?;
        let name = rest.get(..name_len(rest.as_bytes()))?;
        let name_hash = wide_hash(name.as_bytes(), keys);
        hash = fold(hash ^ name_hash, step);
        end += 1 + name.len();
        Some(Prefix { hash, path: path.get(..end)?, name, name_hash: narrow(name_hash) })
    });
    std::iter::once(root).chain(below)
}

/// The hash of the last of [`prefixes`].
fn hash(path: &str) -> u64 {
    let keys = *KEYS;
    let [_, start, step] = keys;
    let mut hash = start;
    let mut rest = path.as_bytes().get(1..).unwrap_or_default();
    while !rest.is_empty() {
        let (name, others) = rest.split_at(name_len(rest));
        hash = fold(hash ^ wide_hash(name, keys), step);
        rest = others.get(1..).unwrap_or_default();
    }
    hash
}

fn name_len(rest: &[u8]) -> usize {
    rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len())
}

/// The hash by which a directory finds a child.
pub(crate) fn hash_name(name: &[u8]) -> u32 {
    narrow(wide_hash(name, *KEYS))
}

/// The high half: the low one of a product depends on low bits only.
fn narrow(hash: u64) -> u32 {
    u32::try_from(hash >> 32).unwrap_or_default()
}

#[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Folded multiplications over pieces of 16 bytes, of which most names have one.
#[inline]
fn wide_hash(name: &[u8], [one, two, three]: [u64; 3]) -> u64 {
    let piece = |hash: u64, piece: &[u8]| {
        let high = match piece.last_chunk::<8>() {
            Some(word) if piece.len() > 8 => u64::from_le_bytes(*word),
            _ => 0,
        };
        fold(first_word(piece) ^ two ^ hash, high ^ three)
    };
    let start = one ^ name.len() as u64;
    if name.len() <= 16 { piece(start, name) } else { name.chunks(16).fold(start, piece) }
}

/// The first eight bytes, or all there are, some of them twice: the length is hashed too.
fn first_word(bytes: &[u8]) -> u64 {
    let half = |half: &[u8; 4]| u64::from(u32::from_le_bytes(*half));
    match (bytes.first_chunk::<8>(), bytes.first_chunk::<4>(), bytes.last_chunk::<4>(), bytes) {
        (Some(word), ..) => u64::from_le_bytes(*word),
        (_, Some(first), Some(last), _) => half(first) | half(last) << 32,
        (.., &[a, b, c]) => u64::from_le_bytes([a, b, c, 0, 0, 0, 0, 0]),
        (.., &[a, b]) => u64::from_le_bytes([a, b, 0, 0, 0, 0, 0, 0]),
        (.., &[a]) => a.into(),
        _ => 0,
    }
}

#[derive(Clone, Debug)]
struct Entry<V> {
    hash: u64,
    path: Arc<str>,
    value: V,
}

/// More than one request adds.
const SOON: usize = 2048;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct PathMap<V> {
    entries: Vec<Entry<V>>,
    /// Where they are.
    table: HashTable<usize>,
    /// The one that was asked for last is often asked for again: its path is compared before it is hashed.
    last: usize,
}

impl<V> Default for PathMap<V> {
    fn default() -> Self {
        Self { entries: Vec::new(), table: HashTable::new(), last: 0 }
    }
}

impl<V> PathMap<V> {
    pub(crate) fn get(&self, path: &str) -> Option<&V> {
        let index = if self.entries.is_empty() { None } else { self.index(path) };
        index.and_then(|index| self.entries.get(index)).map(|entry| &entry.value)
    }

    /// What there is for one of [`prefixes`].
    pub(crate) fn at(&self, prefix: &Prefix<'_>) -> Option<&V> {
        let index = if self.entries.is_empty() { None } else { self.find(prefix.hash, prefix.path) };
        index.and_then(|index| self.entries.get(index)).map(|entry| &entry.value)
    }

    fn index(&self, path: &str) -> Option<usize> {
        let last = self.entries.get(self.last).filter(|entry| *entry.path == *path);
        if last.is_some() { Some(self.last) } else { self.find(hash(path), path) }
    }

    fn find(&self, hash: u64, path: &str) -> Option<usize> {
        let is = |index: &usize| is(&self.entries, *index, hash, path);
        self.table.find(hash, is).copied()
    }

    pub(crate) fn get_mut(&mut self, path: &str) -> Option<&mut V> {
        self.last = self.index(path)?;
        self.entries.get_mut(self.last).map(|entry| &mut entry.value)
    }

    /// The value of a path, and whether it was made just now.
    pub(crate) fn get_or_insert(&mut self, path: &str, make: impl FnOnce() -> V) -> (&mut V, bool) {
        let last = self.entries.get(self.last).is_some_and(|entry| *entry.path == *path);
        let hash = if last { 0 } else { hash(path) };
        let found = if last { Some(self.last) } else { self.find(hash, path) };
        self.last = found.unwrap_or(self.entries.len());
        if found.is_none() {
            let entries = &self.entries;
            let hash_of = |index: &usize| entries.get(*index).map_or(0, |entry| entry.hash);
            self.table.insert_unique(hash, self.last, hash_of);
            self.entries.push(Entry { hash, path: path.into(), value: make() });
        }
        (&mut self.entries[self.last].value, found.is_none())
    }

    pub(crate) fn remove(&mut self, path: &str) -> Option<V> {
        let hash = hash(path);
        let Self { entries, table, .. } = self;
        let (index, _) = table.find_entry(hash, |index| is(entries, *index, hash, path)).ok()?.remove();
        let entry = entries.swap_remove(index);
        // Another one has its place now.
        if let Some(moved) = entries.get(index)
            && let Some(place) = table.find_mut(moved.hash, |other| *other == entries.len())
        {
            *place = index;
        }
        Some(entry.value)
    }

    /// Bytes that it takes anew when it has to grow, if that may be soon.
    pub(crate) fn growth(&self) -> usize {
        let (len, capacity) = (self.entries.len() + SOON, self.entries.capacity());
        if len > capacity { 2 * capacity * (size_of::<Entry<V>>() + 2 * size_of::<usize>()) } else { 0 }
    }

    /// Gives back the room of those that are gone.
    pub(crate) fn shrink(&mut self) {
        let Self { entries, table, .. } = self;
        entries.shrink_to_fit();
        table.shrink_to_fit(|index| entries.get(*index).map_or(0, |entry| entry.hash));
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// In no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &V)> {
        self.entries.iter().map(|entry| (&entry.path, &entry.value))
    }

    /// In no order.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = (Arc<str>, V)> {
        self.entries.into_iter().map(|entry| (entry.path, entry.value))
    }

    /// In no order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&Arc<str>, &mut V)> {
        self.entries.iter_mut().map(|entry| (&entry.path, &mut entry.value))
    }
}

fn is<V>(entries: &[Entry<V>], index: usize, hash: u64, path: &str) -> bool {
    entries.get(index).is_some_and(|entry| entry.hash == hash && *entry.path == *path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_by_its_own_prefixes() {
        let mut map = PathMap::default();
        for path in ["/", "/a", "/a/b", "/ab", "@releaseDomain", "/a/bcdefghijklmnopqrstuvwxyz-0123456789/c"]
        {
            assert_eq!(map.get_or_insert(path, || path.len()), (&mut path.len(), true));
            assert_eq!(map.get_or_insert(path, || 0), (&mut path.len(), false));
        }
        let path = "/a/bcdefghijklmnopqrstuvwxyz-0123456789/c";
        let found: Vec<_> = prefixes(path).map(|prefix| (prefix.path, map.at(&prefix).copied())).collect();
        let middle = "/a/bcdefghijklmnopqrstuvwxyz-0123456789";
        assert_eq!(found, [("/", Some(1)), ("/a", Some(2)), (middle, None), (path, Some(path.len()))]);
        assert!(prefixes(path).skip(1).all(|prefix| prefix.name_hash == hash_name(prefix.name.as_bytes())));
        assert!(prefixes(path).all(|prefix| prefix.hash == hash(prefix.path)));
        assert_eq!(map.remove("/a"), Some(2));
        assert_eq!((map.get("/a"), map.get("/a/b"), map.len()), (None, Some(&4), 5));
    }
}
