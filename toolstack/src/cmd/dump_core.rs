//! `xlr dump-core`: a core of a guest, for `crash`, `gdb` and `drgn`.

use super::first;
use crate::args::Args;
use crate::host::Host;
use anyhow::{Context, Result};
use std::path::absolute;
use xen_emu_api::control::Request;
use xen_emu_api::run_dir::core_path;

/// `xlr dump-core`
pub fn run(args: &Args) -> Result<()> {
    let domain = Host::open()?.find(first(args))?;
    let path = match args.words.get(1) {
        Some(file) => absolute(file).with_context(|| file.clone())?,
        None => core_path(&domain.status.name),
    };
    domain.ask(&Request::DumpCore { path }).map(drop)
}
