//! `xlr dmesg`: there is no hypervisor whose log could be read; every domain's process has its own.

use crate::args::Args;
use crate::host::Host;
use anyhow::Result;
use xen_emu_api::control::{Reply, Request};

/// `xlr dmesg`
pub fn run(args: &Args) -> Result<()> {
    let survey = Host::open()?.survey()?;
    let domains = match args.words.first() {
        Some(word) => vec![survey.take(word)?],
        None => survey.living,
    };
    let several = domains.len() > 1;
    for domain in domains {
        if several {
            say!("{domain}:");
        }
        if let Reply::Text { text } = domain.ask(&Request::Dmesg)? {
            say!("{}", text.trim_end_matches('\n'));
        }
    }
    Ok(())
}
