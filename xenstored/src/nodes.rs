//! Access to nodes as requests have it: permissions, error hiding, quotas, transactions, watch events.

use std::sync::Arc;

use crate::DomId;
use crate::out::Out;
use crate::path::{Name, Path};
use crate::perms::{Access, Perms};
use crate::quota::{Limit, node_size};
use crate::store::{Call, Store};
use crate::transaction::{Aspect, Step, Transaction};
use crate::tree::{Node, Tree};
use crate::watch::Change;
use crate::wire::Errno;

impl Store {
    /// The path argument of a request.
    pub(crate) fn path(&self, call: &Call<'_>, arg: &[u8]) -> Result<Path, Errno> {
        Path::parse(arg, call.caller.domid, self.path_max(call))
    }

    /// The argument of a request that may be a special name.
    pub(crate) fn name(&self, call: &Call<'_>, arg: &[u8]) -> Result<Name, Errno> {
        Name::parse(arg, call.caller.domid, self.path_max(call))
    }

    fn path_max(&self, call: &Call<'_>) -> Option<usize> {
        Some(self.limit(&call.caller, Limit::PathMax)).filter(|&max| max != usize::MAX)
    }

    /// The tree a request works on.
    pub(crate) fn view<'a>(&'a self, call: &'a Call<'_>) -> &'a Tree {
        call.tx.as_ref().map_or(&self.tree, |tx| &tx.view)
    }

    /// The node at `path`, if the caller has the access that `may` asks for. A caller that has no such access to the
    /// nearest existing ancestor does not learn whether the node exists.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, `ENOSPC` in a transaction that looked at too many nodes.
    pub(crate) fn fetch<'a>(
        &'a self,
        call: &'a mut Call<'_>,
        path: &Path,
        may: fn(Access) -> bool,
        aspect: Aspect,
    ) -> Result<&'a Arc<Node>, Errno> {
        if call.tx.is_some() {
            self.note(call, path, aspect)?;
        }
        let caller = call.caller;
        let tree = self.view(call);
        match tree.get(path) {
            Some(node) if may(node.perms.access(&caller)) => Ok(node),
            Some(_) => Err(Errno::EACCES),
            None if may(tree.nearest(path).0.perms.access(&caller)) => Err(Errno::ENOENT),
            None => Err(Errno::EACCES),
        }
    }

    fn note(&self, call: &mut Call<'_>, path: &Path, aspect: Aspect) -> Result<(), Errno> {
        let limit = self.limit(&call.caller, Limit::TransactionNodes);
        let Some(tx) = &mut call.tx else { return Ok(()) };
        tx.note(path, aspect, limit)?;
        if tx.view.get(path).is_none() {
            let (_, depth) = tx.view.nearest(path);
            tx.note(&path.prefix(depth), Aspect::Content, limit)?;
            // If this one comes it becomes the ancestor that decides.
            tx.note(&path.prefix(depth + 1), Aspect::Content, limit)?;
        }
        Ok(())
    }

    /// Sets the value of an existing node.
    pub(crate) fn write_node(
        &mut self,
        call: &mut Call<'_>,
        path: &Path,
        value: &[u8],
        out: &mut Out,
    ) -> Result<(), Errno> {
        let Some(node) = self.view(call).get(path) else { return Err(Errno::ENOENT) };
        self.check_size(call, &node.perms, node.listing_len(), value.len())?;
        let perms = node.perms.clone();
        match &mut call.tx {
            Some(tx) => {
                tx.view.write(path, value);
                tx.touch(path);
            }
            None => drop(self.tree.write(path, value)),
        }
        self.changed(call, path, None, [None, Some(perms)], out);
        Ok(())
    }

    /// Creates a node and its missing parents, all or none. The caller may write the nearest existing ancestor.
    pub(crate) fn create_node(
        &mut self,
        call: &mut Call<'_>,
        path: &Path,
        value: &[u8],
        out: &mut Out,
    ) -> Result<(), Errno> {
        let (nearest, depth) = self.view(call).nearest(path);
        let perms = nearest.perms.inherited_by(&call.caller);
        let missing: Vec<Path> = (depth + 1..=path.components().count()).map(|n| path.prefix(n)).collect();
        let listed = |name: Option<&Path>| name.map_or(0, |path| path.name().len() + 1);
        let above = nearest.listing_len() + listed(missing.first());
        self.check_size(call, &nearest.perms, above, nearest.value.len())?;
        for index in 0..missing.len() {
            let last = index + 1 == missing.len();
            self.check_size(
                call,
                &perms,
                listed(missing.get(index + 1)),
                if last { value.len() } else { 0 },
            )?;
        }
        self.check_count(call, missing.len())?;
        for parent in &missing {
            self.note(call, parent, Aspect::Content)?;
        }
        for parent in &missing {
            let value = if parent == path { value } else { b"" };
            self.put_new(call, parent, &perms, value);
        }
        self.changed(call, path, None, [None, Some(perms)], out);
        Ok(())
    }

    fn put_new(&mut self, call: &mut Call<'_>, path: &Path, perms: &Perms, value: &[u8]) {
        match &mut call.tx {
            Some(tx) => {
                tx.view.create(path, perms.clone(), value);
                tx.touch(path);
                *tx.owned.entry(perms.owner()).or_default() += 1;
            }
            None => self.insert(path, perms.clone(), value),
        }
        if call.caller.privileged {
            self.domains.home_created(path);
        }
    }

    /// Removes a node and all below it; without a `call` because its owner died.
    pub(crate) fn remove_node(&mut self, call: Option<&mut Call<'_>>, path: &Path, out: &mut Out) {
        let Some(call) = call else {
            let Some(node) = self.take(path) else { return };
            return self
                .fire(&self.change(&self.tree, path, Some(&node), [Some(node.perms.clone()), None]), out);
        };
        let removed = match &mut call.tx {
            Some(tx) => {
                tx.touch(path);
                let removed = tx.view.remove(path);
                count_removed(tx, removed.as_ref(), call.caller.domid);
                removed
            }
            None => self.take(path),
        };
        if let Some(node) = removed {
            self.changed(call, path, Some(&node), [Some(node.perms.clone()), None], out);
        }
    }

    /// Replaces the permissions of an existing node.
    pub(crate) fn set_node_perms(
        &mut self,
        call: &mut Call<'_>,
        path: &Path,
        perms: &Perms,
        out: &mut Out,
    ) -> Result<(), Errno> {
        let Some(node) = self.view(call).get(path) else { return Err(Errno::ENOENT) };
        self.check_size(call, perms, node.listing_len(), node.value.len())?;
        let old = node.perms.clone();
        match &mut call.tx {
            Some(tx) => {
                tx.view.set_perms(path, perms.clone());
                tx.touch(path);
                *tx.owned.entry(old.owner()).or_default() -= 1;
                *tx.owned.entry(perms.owner()).or_default() += 1;
            }
            None => self.replace_perms(path, perms.clone()),
        }
        self.changed(call, path, None, [Some(old), Some(perms.clone())], out);
        Ok(())
    }

    /// Brings a transaction's changes into the store and tells the watches.
    ///
    /// # Errors
    /// `EAGAIN` on conflict, `ENOSPC` if the caller would own too many nodes, or what spoiled it earlier.
    pub(crate) fn commit(
        &mut self,
        caller: DomId,
        quota: usize,
        tx: &Transaction,
        out: &mut Out,
    ) -> Result<(), Errno> {
        if let Some(errno) = tx.failed {
            return Err(errno);
        }
        if tx.conflicts(&self.tree) {
            return Err(Errno::EAGAIN);
        }
        let more = tx.owned.get(&caller).copied().unwrap_or(0);
        if more > 0 && !self.has_room(caller, more, quota) {
            return Err(Errno::ENOSPC);
        }
        for step in tx.steps() {
            match step {
                Step::Remove(path) => drop(self.take(path)),
                Step::Put(path, node) => self.put(path, node),
            }
        }
        for change in &tx.events {
            self.fire(change, out);
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, node: &Node) {
        match self.tree.get(path) {
            None => self.insert(path, node.perms.clone(), &node.value),
            Some(now) => {
                let (value, perms) = (now.value != node.value, now.perms != node.perms);
                // A write of the same value is a change too.
                if value || !perms {
                    self.tree.write(path, &node.value);
                }
                if perms {
                    self.replace_perms(path, node.perms.clone());
                }
            }
        }
    }

    fn insert(&mut self, path: &Path, perms: Perms, value: &[u8]) {
        let owner = perms.owner();
        let above = self.parent_owner(path);
        if let Some(id) = self.tree.create(path, perms, value) {
            self.accounts.charge(owner, above, id, path);
        }
    }

    fn take(&mut self, path: &Path) -> Option<Arc<Node>> {
        let node = self.tree.remove(path)?;
        self.bury(Arc::clone(&node));
        Some(node)
    }

    pub(crate) fn replace_perms(&mut self, path: &Path, perms: Perms) {
        let Some(old) = self.tree.get(path).map(|node| node.perms.owner()) else { return };
        let above = self.parent_owner(path);
        self.tree.set_perms(path, perms);
        if let Some(node) = self.tree.get(path).filter(|node| node.perms.owner() != old) {
            self.accounts.owner_changed(node, path, old, above);
        }
    }

    /// The owner of the node above; domain 0 above the root.
    fn parent_owner(&self, path: &Path) -> DomId {
        let parent = path.parent().and_then(|parent| self.tree.get(&parent).map(|node| node.perms.owner()));
        parent.unwrap_or(0)
    }

    /// Tells the watches of a change, or keeps it for the end of the transaction.
    fn changed(
        &self,
        call: &mut Call<'_>,
        path: &Path,
        removed: Option<&Arc<Node>>,
        perms: [Option<Perms>; 2],
        out: &mut Out,
    ) {
        let change = self.change(self.view(call), path, removed, perms);
        match &mut call.tx {
            Some(tx) => tx.event(change),
            None => self.fire(&change, out),
        }
    }

    fn change(
        &self,
        tree: &Tree,
        path: &Path,
        removed: Option<&Arc<Node>>,
        [before, after]: [Option<Perms>; 2],
    ) -> Change {
        let above = path.parent().and_then(|parent| tree.get(&parent).map(|node| node.perms.clone()));
        Change { path: path.clone(), removed: removed.cloned(), perms: [before, after, above] }
    }

    fn check_size(&self, call: &Call<'_>, perms: &Perms, names: usize, value: usize) -> Result<(), Errno> {
        let limit = self.limit(&call.caller, Limit::NodeSize);
        let size = node_size(perms.entries().len(), names, value);
        if size >= limit { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    fn check_count(&mut self, call: &Call<'_>, more: usize) -> Result<(), Errno> {
        let limit = self.limit(&call.caller, Limit::Nodes);
        let own = call.tx.as_ref().and_then(|tx| tx.owned.get(&call.caller.domid)).copied().unwrap_or(0);
        let more = own.saturating_add_unsigned(more);
        if self.has_room(call.caller.domid, more, limit) { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    /// Whether a domain may own that many nodes more. Removed nodes that are still counted are counted off first.
    fn has_room(&mut self, owner: DomId, more: isize, limit: usize) -> bool {
        let fits = |store: &Self| store.accounts.nodes(owner).saturating_add_signed(more) <= limit;
        fits(self) || {
            while self.tidy(1024) {}
            fits(self)
        }
    }
}

/// Counts off what a removal in a transaction gives back to the caller, who may create that many again.
fn count_removed(tx: &mut Transaction, removed: Option<&Arc<Node>>, caller: DomId) {
    let mut rest: Vec<&Arc<Node>> = removed.into_iter().filter(|_| caller != 0).collect();
    let mut own = 0;
    while let Some(node) = rest.pop() {
        own += isize::from(node.perms.owner() == caller);
        rest.extend(node.children());
    }
    *tx.owned.entry(caller).or_default() -= own;
}
