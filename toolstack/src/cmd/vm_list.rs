//! `xlr vm-list`

use crate::args::Args;
use crate::host::Host;
use crate::render;
use anyhow::Result;
use serde_json::json;
use uuid::Uuid;

/// `xlr vm-list`
pub fn run(args: &Args) -> Result<()> {
    let survey = Host::open()?.survey()?;
    if args.has("json") {
        let entry = |status: &xen_emu_api::control::Status| json!({ "uuid": status.uuid, "domid": status.domid, "name": status.name });
        let all: Vec<_> = survey.living.iter().map(|domain| entry(&domain.status)).collect();
        say!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    say!("{}", render::VMS);
    say!("{}  {}    {:<30}", Uuid::nil(), 0, "Domain-0");
    for domain in &survey.living {
        say!("{}  {}    {:<30}", domain.status.uuid, domain.dir.domid, domain.status.name);
    }
    Ok(())
}
