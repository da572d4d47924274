//! Special names: who is told of domains that come and go, and the permissions that decide it.

use std::collections::BTreeMap;

use crate::DomId;
use crate::ops::{INTRODUCE_DOMAIN, RELEASE_DOMAIN};
use crate::out::Out;
use crate::path::Path;
use crate::perms::{Caller, Perms};
use crate::quota::Limit;
use crate::store::{Call, Store};
use crate::transaction::{Special, Transaction};
use crate::wire::{Errno, number};

impl Store {
    /// Tells the watches of a special event.
    pub(crate) fn fire_special(&self, event: &str, domid: DomId, out: &mut Out) {
        let precise = self.special.get(&format!("{event}/{domid}"));
        let perms = self.special.get(event).into_iter().chain(precise);
        self.watches.fire_special(event, domid, |watch, name| {
            let caller = self.conns.get(&watch.conn).map(|state| state.caller);
            if caller.is_some_and(|caller| perms.clone().any(|perms| perms.access(&caller).read())) {
                out.event(watch.conn, name, &watch.token);
            }
        });
    }

    /// Tells the watches of a special name that its permissions are others: those who may read by the ones before or
    /// after, as for a node.
    pub(crate) fn special_changed(&self, name: &str, perms: &[Option<Perms>], out: &mut Out) {
        self.watches.fire_exact(name, |watch| {
            let caller = self.conns.get(&watch.conn).map(|state| state.caller);
            let reads = |caller: Caller| perms.iter().flatten().any(|perms| perms.access(&caller).read());
            if caller.is_some_and(reads) {
                out.event(watch.conn, name, &watch.token);
            }
        });
    }

    /// Sets the permissions of a special name, or forgets it. `false` if there was nothing to forget.
    pub(crate) fn set_special(&mut self, name: &str, perms: Option<Perms>) -> bool {
        let changed = match perms {
            None => self.special.remove(name).is_some(),
            Some(perms) => {
                self.special.insert(name.to_owned(), perms);
                true
            }
        };
        self.special_changes += u64::from(changed);
        changed
    }

    /// The permissions of a special name as the request sees them; its transaction remembers that it has looked.
    ///
    /// # Errors
    /// As for a node: `ENOSPC` in a transaction that looked at too much, `ENOMEM` in one that takes too much memory.
    pub(crate) fn find_special(&mut self, call: &mut Call<'_>, name: &str) -> Result<Option<Perms>, Errno> {
        let limit = self.limit(&call.caller, Limit::TransactionNodes);
        let perms = self.special.get(name);
        let Some(tx) = &mut call.tx else { return Ok(perms.cloned()) };
        let before = tx.bytes;
        let Special { base, own } = tx.note_special(name, perms, limit)?;
        let found = own.as_ref().or(base.as_ref()).cloned();
        let more = tx.bytes - before;
        self.check_memory(call, more).map(|()| found)
    }

    /// Sets the permissions of a special name and tells of it, in a transaction at its end.
    pub(crate) fn set_special_perms(
        &mut self,
        call: &mut Call<'_>,
        name: &str,
        old: Option<Perms>,
        perms: Perms,
        out: &mut Out,
    ) {
        if let Some(tx) = &mut call.tx {
            tx.event(name, [old.as_ref(), Some(&perms)]);
            tx.set_special(name, perms);
        } else {
            self.set_special(name, Some(perms.clone()));
            self.special_changed(name, &[old, Some(perms)], out);
        }
    }

    /// Brings what a transaction has set over.
    pub(crate) fn commit_special(&mut self, special: BTreeMap<String, Special>) {
        for (name, Special { own, .. }) in special {
            if let Some(perms) =
                own.filter(|_| self.special.contains_key(&name) || self.names_a_domain(&name))
            {
                let perms = self.of_the_living(perms);
                self.set_special(&name, Some(perms));
            }
        }
    }

    /// The first special name at which a transaction has looked and that is another now.
    pub(crate) fn special_conflict(&self, tx: &Transaction) -> Option<Path> {
        let differs = |(name, seen): &(&String, &Special)| self.special.get(*name) != seen.base.as_ref();
        tx.special.iter().find(differs).map(|(name, _)| Path::of(name.as_str()))
    }

    /// Whether this is a special event's name for one existing domain, such as `@releaseDomain/7`.
    pub(crate) fn names_a_domain(&self, name: &str) -> bool {
        let of = [INTRODUCE_DOMAIN, RELEASE_DOMAIN].into_iter().find_map(|event| name.strip_prefix(event));
        let domid = of.and_then(|rest| number::<DomId>(rest.strip_prefix('/')?.as_bytes()).ok());
        domid.is_some_and(|domid| self.domains.get(domid).is_some())
    }
}
