//! The grants that the guest has mapped into its physmap, its own and other domains', by handle.

use std::collections::BTreeMap;

use xen_abi::{Domid, Gref};

use crate::mem::Gfn;
use crate::peer::Foreign;

/// Mappings a guest may have: each needs a memory slot of the machine, of which it has some 32,000.
const MAX_MAPPINGS: usize = 8192;

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub gref: Gref,
    pub write: bool,
    /// Where it is mapped.
    pub at: Gfn,
    /// What is mapped there; of another domain's page nothing is known but where it is.
    pub frame: Gfn,
    /// Whose page it is, if it is another domain's.
    pub foreign: Option<(Domid, Foreign)>,
}

/// The mappings.
#[derive(Debug, Default)]
pub(crate) struct Maptrack {
    by_handle: Vec<Option<Mapping>>,
    free: Vec<u32>,
    at: BTreeMap<Gfn, u32>,
}

impl Maptrack {
    /// The handle that the next mapping gets; `None` when there are too many.
    pub(crate) fn next(&self) -> Option<u32> {
        let fresh = u32::try_from(self.by_handle.len()).ok();
        let fresh = fresh.filter(|_| self.by_handle.len() < MAX_MAPPINGS);
        self.free.last().copied().or(fresh)
    }

    /// Notes a mapping by the handle that [`Maptrack::next`] told.
    pub(crate) fn insert(&mut self, handle: u32, mapping: Mapping) {
        match self.by_handle.get_mut(handle as usize) {
            Some(slot) => {
                self.free.pop();
                *slot = Some(mapping);
            }
            None => self.by_handle.push(Some(mapping)),
        }
        self.at.insert(mapping.at, handle);
    }

    pub(crate) fn get(&self, handle: u32) -> Option<Mapping> {
        self.by_handle.get(handle as usize).copied().flatten()
    }

    pub(crate) fn remove(&mut self, handle: u32) {
        let Some(mapping) = self.by_handle.get_mut(handle as usize).and_then(Option::take) else { return };
        self.at.remove(&mapping.at);
        self.free.push(handle);
    }

    /// All mappings, which are gone then.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Mapping> + use<> {
        std::mem::take(self).by_handle.into_iter().flatten()
    }

    /// Whether something is mapped at this frame.
    pub(crate) fn is_at(&self, gfn: Gfn) -> bool {
        self.at.contains_key(&gfn)
    }

    /// Whether another domain's page is mapped at this frame.
    pub(crate) fn is_foreign(&self, gfn: Gfn) -> bool {
        let mapping = self.at.get(&gfn).and_then(|&handle| self.get(handle));
        mapping.is_some_and(|mapping| mapping.foreign.is_some())
    }

    pub(crate) fn len(&self) -> usize {
        self.at.len()
    }
}
