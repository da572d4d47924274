//! What is done for a domain as a whole, by its process or by whoever cleans up after that.

use super::{Batch, Client, Result};
use crate::DomId;
use crate::wire::Errno;

/// Where backends have their nodes: kind, then domid of the frontend.
const BACKENDS: &str = "/local/domain/0/backend";

impl Client {
    /// Removes all nodes of the domain and lets the store forget it. What is missing already is fine.
    ///
    /// # Errors
    /// `EACCES` from a guest, [`Error::Io`](super::Error::Io) and the like.
    pub fn forget_domain(&mut self, domid: DomId, uuid: &str) -> Result<()> {
        self.transaction(|store| -> Result<()> {
            store.remove_domain_nodes(domid, uuid)?;
            let mut empty = Batch::default();
            for kind in store.backends()? {
                let kind = format!("{BACKENDS}/{kind}");
                if store.children(&kind)?.is_empty() {
                    empty.rm(&kind);
                }
            }
            store.run(&empty)
        })?;
        match self.release(domid) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            released => released,
        }
    }

    /// Removes every node of the domain but the parents, for use in a transaction. `/vm/UUID` stays while another
    /// domain refers to it, as one does that follows this one.
    ///
    /// # Errors
    /// As [`Client::forget_domain`].
    pub fn remove_domain_nodes(&mut self, domid: DomId, uuid: &str) -> Result<()> {
        let (mut gone, vm) = (Batch::default(), format!("/vm/{uuid}"));
        self.backends()?.iter().for_each(|kind| gone.rm(&format!("{BACKENDS}/{kind}/{domid}")));
        gone.rm(&format!("/libxl/{domid}"));
        gone.rm(&format!("/local/domain/{domid}"));
        let own = domid.to_string();
        let mut in_use = false;
        for other in self.children("/local/domain")?.iter().filter(|&other| *other != own) {
            in_use |= self.read_opt(&format!("/local/domain/{other}/vm"))?.as_deref() == Some(&vm);
        }
        if !in_use {
            gone.rm(&vm);
        }
        self.run(&gone)
    }

    fn backends(&mut self) -> Result<Vec<String>> {
        self.children(BACKENDS)
    }

    /// As [`Client::directory`], but a node that is missing has none.
    fn children(&mut self, path: &str) -> Result<Vec<String>> {
        match self.directory(path) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
            names => names,
        }
    }
}
