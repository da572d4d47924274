//! `xlr vcpu-list`

use crate::args::Args;
use crate::domains::{self, Survey};
use crate::host::Host;
use crate::{cpus, render};
use anyhow::Result;
use serde_json::json;
use xen_emu_api::control::Status;

/// `xlr vcpu-list`
pub fn run(args: &Args) -> Result<()> {
    let all = named(&args.words, Host::open()?.survey()?)?;
    if args.has("json") {
        let entry =
            |status: &Status| json!({ "domid": status.domid, "name": status.name, "vcpus": status.vcpus });
        say!("{}", serde_json::to_string_pretty(&all.iter().map(entry).collect::<Vec<_>>())?);
        return Ok(());
    }
    let host = cpus::online()?;
    say!("{}", render::VCPUS);
    for status in &all {
        for vcpu in &status.vcpus {
            say!("{}", render::vcpu(status, vcpu, &host));
        }
    }
    Ok(())
}

/// The living domains that are named, or all.
pub fn named(words: &[String], survey: Survey) -> Result<Vec<Status>> {
    let all: Vec<_> = survey.living.into_iter().map(|domain| domain.status).collect();
    let known = |word: &&String| all.iter().any(|status| domains::names(word, status));
    if let Some(word) = words.iter().find(|word| !known(word)) {
        return Err(domains::unknown(word));
    }
    let wanted = |status: &Status| words.is_empty() || words.iter().any(|word| domains::names(word, status));
    Ok(all.into_iter().filter(wanted).collect())
}
