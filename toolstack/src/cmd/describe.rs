//! `xlr describe`: what a domain's process knows of its parts.

use super::first;
use crate::args::Args;
use crate::failure::Failure;
use crate::host::Host;
use anyhow::Result;
use xen_emu_api::control::{Reply, Request};

/// `xlr describe`
pub fn run(args: &Args) -> Result<()> {
    let domain = Host::open()?.find(first(args))?;
    let path = args.words.get(1).cloned().unwrap_or_default();
    match domain.ask(&Request::Describe { path: path.clone() })? {
        Reply::Text { text } if text.is_empty() => {
            Err(Failure::error(1, format!("{domain}: nothing is called `{path}': {PARTS}")))
        }
        Reply::Text { text } => {
            say!("{}", text.trim_end_matches('\n'));
            Ok(())
        }
        _ => anyhow::bail!("{domain}: an answer without text"),
    }
}

const PARTS: &str = "evtchn[/PORT], gnttab, vcpu[/N], params, physmap, hypercalls, exits, machine, console, \
    devices[/KIND[/ID]] are";
