//! `xlr pause`, `xlr unpause`: silent and idempotent.

use super::first;
use crate::args::Args;
use crate::host::Host;
use anyhow::Result;
use xen_emu_api::control::Request;

/// `xlr pause`
pub fn pause(args: &Args) -> Result<()> {
    Host::open()?.find(first(args))?.ask(&Request::Pause).map(drop)
}

/// `xlr unpause`
pub fn unpause(args: &Args) -> Result<()> {
    Host::open()?.find(first(args))?.ask(&Request::Unpause).map(drop)
}
