//! This host: where domains live and where the store listens.

use crate::store;
use anyhow::{Context, Result};
use std::path::PathBuf;
use xen_emu_api::run_dir::RunRoot;

/// What every command starts from.
#[derive(Debug)]
pub struct Host {
    /// One directory per domain.
    pub root: RunRoot,
    /// xenstored's socket.
    pub xenstored: PathBuf,
}

impl Host {
    /// Of the calling user. Makes the run directory where it is missing.
    pub fn open() -> Result<Self> {
        let uid = nix::unistd::geteuid().as_raw();
        // The daemons do not share our current directory.
        let path = std::path::absolute(RunRoot::default_path(uid))?;
        let root =
            RunRoot::at(path).context("cannot use the run directory (XLR_RUN_DIR names another one)")?;
        let xenstored = std::path::absolute(store::socket(&root, uid))?;
        Ok(Host { root, xenstored })
    }

    /// Names of the living domains, for completion: nothing is asked, nothing is cleaned up.
    pub fn names(&self) -> Result<Vec<String>> {
        let (living, _) = self.probe()?;
        Ok(living.into_iter().map(|domain| domain.status.name).collect())
    }
}
