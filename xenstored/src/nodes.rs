//! Access to nodes as requests have it: permissions, error hiding, quotas, transactions, watch events.

use std::borrow::Cow;
use std::sync::Arc;

use crate::out::Out;
use crate::path::{Name, components, parent, prefix, resolve};
use crate::perms::{Access, Perms};
use crate::quota::{Limit, node_bytes, node_size};
use crate::store::{Call, Remover, Store};
use crate::transaction::{Aspect, Sight, Step, Transaction};
use crate::tree::Node;
use crate::watch::Change;
use crate::wire::Errno;

impl Store {
    /// The path argument of a request.
    pub(crate) fn path<'a>(&self, call: &Call<'_>, arg: &'a [u8]) -> Result<Cow<'a, str>, Errno> {
        resolve(arg, call.caller.domid, self.path_max(call))
    }

    /// The argument of a request that may be a special name.
    pub(crate) fn name(&self, call: &Call<'_>, arg: &[u8]) -> Result<Name, Errno> {
        Name::parse(arg, call.caller.domid, self.path_max(call))
    }

    fn path_max(&self, call: &Call<'_>) -> Option<usize> {
        Some(self.limit(&call.caller, Limit::PathMax)).filter(|&max| max != usize::MAX)
    }

    /// The node at `path` as the request sees it.
    pub(crate) fn find<'a>(&'a self, call: &'a Call<'_>, path: &str) -> Option<Sight<'a>> {
        match &call.tx {
            Some(tx) => tx.find(&self.tree, path),
            None => self.tree.get(path).map(Sight::from),
        }
    }

    /// The nearest existing ancestor of `path`, or its node itself, and how many components its path has.
    fn nearest<'a>(&'a self, call: &'a Call<'_>, path: &str) -> (Sight<'a>, usize) {
        if let Some(tx) = &call.tx {
            return tx.nearest(&self.tree, path);
        }
        let (node, depth) = self.tree.nearest(path);
        (Sight::from(node), depth)
    }

    /// The names of a node's children, oldest first, each with a NUL.
    pub(crate) fn listing(&self, call: &Call<'_>, path: &str) -> Arc<[u8]> {
        match &call.tx {
            Some(tx) => tx.listing(&self.tree, path),
            None => self.tree.get(path).map(|node| node.listing()).unwrap_or_default(),
        }
    }

    /// In a transaction: remembers that the request looks at `path`, and at what decides if nothing is there.
    ///
    /// # Errors
    /// `ENOSPC` in a transaction that looked at too many nodes, `ENOMEM` in one that takes too much memory.
    pub(crate) fn note(&mut self, call: &mut Call<'_>, path: &str, aspect: Aspect) -> Result<(), Errno> {
        let limit = self.limit(&call.caller, Limit::TransactionNodes);
        let Some(tx) = &mut call.tx else { return Ok(()) };
        let before = tx.bytes;
        tx.note(&self.tree, path, aspect, limit)?;
        if tx.find(&self.tree, path).is_none() {
            let (_, depth) = tx.nearest(&self.tree, path);
            tx.note(&self.tree, prefix(path, depth), Aspect::Content, limit)?;
            // If this one comes it becomes the ancestor that decides.
            tx.note(&self.tree, prefix(path, depth + 1), Aspect::Content, limit)?;
        }
        let more = tx.bytes - before;
        self.check_memory(call, more)
    }

    /// The node at `path`, if the caller has the access that `may` asks for. A caller that has no such access to the
    /// nearest existing ancestor does not learn whether the node exists.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`.
    pub(crate) fn fetch<'a>(
        &'a self,
        call: &'a Call<'_>,
        path: &str,
        may: fn(Access) -> bool,
    ) -> Result<Sight<'a>, Errno> {
        let caller = &call.caller;
        match self.find(call, path) {
            Some(node) if may(node.perms.access(caller)) => Ok(node),
            Some(_) => Err(Errno::EACCES),
            None if may(self.nearest(call, path).0.perms.access(caller)) => Err(Errno::ENOENT),
            None => Err(Errno::EACCES),
        }
    }

    /// Sets the value of a node that the caller may write.
    ///
    /// # Errors
    /// As [`Store::fetch`], and what exceeds a limit.
    pub(crate) fn write_node(
        &mut self,
        call: &mut Call<'_>,
        path: &str,
        value: &[u8],
        out: &mut Out,
    ) -> Result<(), Errno> {
        let node = self.fetch(call, path, Access::write)?;
        let (id, perms) = (node.id, node.perms.clone());
        self.check_size(call, &perms, node.listing_len, value.len())?;
        let kept = if call.tx.is_some() { 0 } else { node.value.len() };
        self.check_memory(call, value.len().saturating_sub(kept))?;
        match &mut call.tx {
            Some(tx) => tx.set(path, id, value, &perms, self.tree.next_generation()),
            None => self.replace_value(path, value),
        }
        self.changed(call, path, None, [None, Some(&perms)], out);
        Ok(())
    }

    /// Creates a node and its missing parents, all or none. The caller may write the nearest existing ancestor.
    pub(crate) fn create_node(
        &mut self,
        call: &mut Call<'_>,
        path: &str,
        value: &[u8],
        out: &mut Out,
    ) -> Result<(), Errno> {
        let (nearest, depth) = self.nearest(call, path);
        let perms = nearest.perms.inherited_by(&call.caller);
        let missing: Vec<usize> = components(path).skip(depth).map(|name| name.len() + 1).collect();
        let above = nearest.listing_len + missing.first().copied().unwrap_or_default();
        self.check_size(call, nearest.perms, above, nearest.value.len())?;
        for name in missing.iter().skip(1) {
            self.check_size(call, &perms, *name, 0)?;
        }
        self.check_size(call, &perms, 0, value.len())?;
        self.check_count(call, missing.len())?;
        let bytes = missing.iter().map(|name| node_bytes(&perms, *name, 0)).sum::<usize>();
        self.check_memory(call, bytes + value.len())?;
        if call.tx.is_some() {
            self.create_later(call, (path, depth), (value, &perms))?;
        } else {
            self.insert(path, &perms, value);
        }
        if call.caller.privileged
            && let Some(domid) = self.domains.home_created(path, depth)
        {
            // Those of an earlier life that nobody has ended.
            self.dormant.remove(&domid);
        }
        self.changed(call, path, None, [None, Some(&perms)], out);
        Ok(())
    }

    fn create_later(
        &mut self,
        call: &mut Call<'_>,
        (path, depth): (&str, usize),
        node: (&[u8], &Perms),
    ) -> Result<(), Errno> {
        let limit = self.limit(&call.caller, Limit::TransactionNodes);
        let Some(tx) = &mut call.tx else { return Ok(()) };
        let missing = components(path).count() - depth;
        let ids = (0..missing).map(|_| self.tree.next_generation()).min();
        tx.create((path, depth), node, ids.unwrap_or_default(), limit)?;
        if node.1.owner() == call.caller.domid {
            tx.owned = tx.owned.saturating_add_unsigned(missing);
        }
        Ok(())
    }

    /// Removes a node and all below it; without a `call` because its owner died.
    pub(crate) fn remove_node(&mut self, call: Option<&mut Call<'_>>, path: &str, out: &mut Out) {
        let Some(call) = call else {
            if let Some(node) = self.take((true, None), path) {
                self.fire(&Change { path, removed: Some(&node), perms: [Some(&node.perms), None] }, out);
            }
            return;
        };
        let Some(perms) = self.find(call, path).map(|node| node.perms.clone()) else { return };
        let mut removed = None;
        match &mut call.tx {
            Some(tx) => {
                let caller = call.caller.domid;
                if caller != 0 {
                    tx.owned -= tx.count(&self.tree, (path, caller), self.accounts.tops_in(caller, path));
                }
                let generation = self.tree.next_generation();
                tx.remove(&self.tree, path, generation);
            }
            None => removed = self.take(call.remover(), path),
        }
        self.changed(call, path, removed.as_ref(), [Some(&perms), None], out);
    }

    /// Replaces the permissions of an existing node.
    pub(crate) fn set_node_perms(
        &mut self,
        call: &mut Call<'_>,
        path: &str,
        perms: &Perms,
        out: &mut Out,
    ) -> Result<(), Errno> {
        let Some(node) = self.find(call, path) else { return Err(Errno::ENOENT) };
        self.check_size(call, perms, node.listing_len, node.value.len())?;
        let (id, old, value) = (node.id, node.perms.clone(), node.value.to_vec());
        let more = if call.tx.is_some() { value.len() } else { 0 };
        self.check_memory(call, more + 8 * perms.entries().len().saturating_sub(old.entries().len()))?;
        match &mut call.tx {
            Some(tx) => {
                tx.set(path, id, &value, perms, self.tree.next_generation());
                let own = |perms: &Perms| isize::from(perms.owner() == call.caller.domid);
                tx.owned += own(perms) - own(&old);
            }
            None => self.replace_perms(path, perms.clone()),
        }
        self.changed(call, path, None, [Some(&old), Some(perms)], out);
        Ok(())
    }

    /// Brings a transaction's changes into the store and tells the watches.
    ///
    /// # Errors
    /// `ENOSPC` if the caller would own too many nodes.
    pub(crate) fn commit(
        &mut self,
        call: &Call<'_>,
        mut tx: Transaction,
        out: &mut Out,
    ) -> Result<(), Errno> {
        if tx.owned > 0 && !self.has_room(call, tx.owned) {
            return Err(Errno::ENOSPC);
        }
        let special = std::mem::take(&mut tx.special);
        let (steps, mut events) = tx.into_steps();
        for step in steps {
            match step {
                Step::Remove(path, event) => {
                    let node = self.take(call.remover(), &path);
                    if let Some(Some(event)) = event.and_then(|event| events.get_mut(event)) {
                        event.removed = node;
                    }
                }
                Step::Write(path, value) => self.replace_value(&path, &value),
                Step::Put(path, value, perms) => self.put(&path, &value, self.of_the_living(perms)),
            }
        }
        self.commit_special(special);
        for event in events.iter().flatten() {
            if event.path.starts_with('@') {
                self.special_changed(&event.path, &event.perms, out);
            } else {
                self.fire(&event.change(), out);
            }
        }
        Ok(())
    }

    pub(crate) fn put(&mut self, path: &str, value: &[u8], perms: Perms) {
        let Some(now) = self.tree.get(path) else { return self.insert(path, &perms, value) };
        let same = now.perms == perms;
        // A write of the same value is a change too.
        if same || now.value() != value {
            self.replace_value(path, value);
        }
        if !same {
            self.replace_perms(path, perms);
        }
    }

    /// A transaction may outlive the domain that one of its nodes is for; then the node is domain 0's.
    pub(crate) fn of_the_living(&self, perms: Perms) -> Perms {
        let owner = perms.entries().first();
        let lives = owner.is_some_and(|owner| self.domains.life(owner.perm.domid) == Some(owner.life));
        if lives { perms } else { Perms::private() }
    }

    fn insert(&mut self, path: &str, perms: &Perms, value: &[u8]) {
        let owner = perms.owner();
        let (nearest, depth) = self.tree.nearest(path);
        let above = nearest.perms.owner();
        if let Some(id) = self.tree.create(path, depth, perms, value) {
            let names = components(path).skip(depth);
            let (nodes, bytes) = names
                .fold((0, value.len()), |(n, sum), name| (n + 1, sum + node_bytes(perms, name.len(), 0)));
            self.accounts.charge(owner, above, (id, prefix(path, depth + 1)), nodes, bytes);
            self.note_created(path, depth);
        }
    }

    fn take(&mut self, by: Remover, path: &str) -> Option<Arc<Node>> {
        let node = self.tree.remove(path)?;
        self.bury(by, Arc::clone(&node));
        self.note_removed(path);
        Some(node)
    }

    fn replace_value(&mut self, path: &str, value: &[u8]) {
        if let Some((owner, grown)) = self.tree.write(path, value) {
            self.accounts.resize(owner, grown);
            self.note_changed(path);
        }
    }

    pub(crate) fn replace_perms(&mut self, path: &str, perms: Perms) {
        let Some(old) = self.tree.set_perms(path, perms) else { return };
        self.note_changed(path);
        let above = parent(path).filter(|_| path != "/").and_then(|above| self.tree.get(above));
        let above = above.map_or(0, |node| node.perms.owner());
        let Some(node) = self.tree.get(path) else { return };
        let before = node_bytes(&old, node.name().len(), node.value().len());
        if node.perms.owner() == old.owner() {
            self.accounts.resize(old.owner(), node.bytes().wrapping_sub(before).cast_signed());
        } else {
            self.accounts.owner_changed(node, path, (old.owner(), before), above);
        }
    }

    /// Tells the watches of a change, or keeps it for the end of the transaction.
    fn changed(
        &mut self,
        call: &mut Call<'_>,
        path: &str,
        removed: Option<&Arc<Node>>,
        perms: [Option<&Perms>; 2],
        out: &mut Out,
    ) {
        match &mut call.tx {
            Some(tx) => tx.event(path, perms),
            None => {
                self.fire(&Change { path, removed, perms }, out);
                self.charge_writer(call);
            }
        }
    }

    /// A guest that changes nodes while others have transactions open has to pay for it.
    pub(crate) fn charge_writer(&mut self, call: &Call<'_>) {
        if !call.caller.privileged && self.disturbs(call.conn) {
            self.pace.charge(call.caller.domid);
        }
    }

    fn check_size(&self, call: &Call<'_>, perms: &Perms, names: usize, value: usize) -> Result<(), Errno> {
        let limit = self.limit(&call.caller, Limit::NodeSize);
        let size = node_size(perms.entries().len(), names, value);
        if size > limit { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    fn check_count(&mut self, call: &Call<'_>, more: usize) -> Result<(), Errno> {
        let more = call.tx.as_ref().map_or(0, |tx| tx.owned).saturating_add_unsigned(more);
        if self.has_room(call, more) { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    /// Whether the caller may own that many nodes more.
    fn has_room(&mut self, call: &Call<'_>, more: isize) -> bool {
        let (owner, limit) = (call.caller.domid, self.limit(&call.caller, Limit::Nodes));
        let fits = |store: &Self| store.accounts.nodes(owner).saturating_add_signed(more) <= limit;
        self.fits_after_removals(call, fits)
    }
}
