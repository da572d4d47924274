//! `xlr list`

use crate::args::Args;
use crate::domains::{self, Domain, Survey};
use crate::dry_run::Config;
use crate::failure::Failure;
use crate::host::Host;
use crate::render::{self, Row};
use crate::{cpus, json, proc};
use anyhow::Result;
use serde_json::{Value, json};

/// `xlr list`
pub fn run(args: &Args) -> Result<()> {
    let (with_host, domains) = chosen(&args.words, Host::open()?.survey()?)?;
    if args.has("json") {
        let all: Vec<_> = domains.iter().map(|domain| &domain.status).collect();
        say!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    if args.has("long") {
        return long(with_host, &domains);
    }
    let (verbose, label, pool) = (args.has("verbose"), args.has("context"), args.has("cpupool"));
    let node = args.has("numa");
    let mut header = render::LIST.to_owned();
    header += if verbose { render::LIST_VERBOSE } else { "" };
    header += if label && !verbose { "   Security Label" } else { "" };
    header += if pool { "         Cpupool" } else { "" };
    header += if node { " NODE Affinity" } else { "" };
    say!("{header}");
    let host = with_host.then(Row::host);
    for row in host.into_iter().chain(domains.iter().map(|domain| Row::guest(&domain.status))) {
        let mut line = row.line();
        line += &if verbose { row.verbose() } else { String::new() };
        line += &if label && !verbose { format!(" {:>16}", "-") } else { String::new() };
        line += &if pool { format!("{:>16}", "Pool-0") } else { String::new() };
        line += if node { " all" } else { "" };
        say!("{line}");
    }
    Ok(())
}

/// The domains that are named, or all; and whether the host is among them. One that has just been cleaned up is
/// shown this once, as crashed.
fn chosen(words: &[String], survey: Survey) -> Result<(bool, Vec<Domain>)> {
    let mut all: Vec<_> = survey.living.into_iter().chain(survey.reaped).collect();
    all.sort_by_key(|domain| domain.dir.domid);
    if words.is_empty() {
        return Ok((true, all));
    }
    for word in words.iter().filter(|word| !domains::is_host(word)) {
        if !all.iter().any(|domain| domains::names(word, &domain.status)) {
            let number = word.bytes().all(|b| b.is_ascii_digit());
            let gone = || Failure::error(1, format!("Error: Domain '{word}' does not exist."));
            return Err(if number { gone() } else { domains::unknown(word) });
        }
    }
    all.retain(|domain| words.iter().any(|word| domains::names(word, &domain.status)));
    Ok((words.iter().any(|word| domains::is_host(word)), all))
}

/// `list -l`: the configurations, in libxl's form.
fn long(with_host: bool, domains: &[Domain]) -> Result<()> {
    let mut all = Vec::new();
    if with_host {
        all.push(host_config());
    }
    for domain in domains {
        // One that has ended meanwhile has none any more.
        let Ok(config) = domain.config() else { continue };
        all.push(json::text(&Entry { domid: domain.dir.domid, config: Config::new(&config, true) })?);
    }
    let indented: Vec<_> = all.iter().map(|text| format!("    {}", text.replace('\n', "\n    "))).collect();
    // Empty objects hold an empty line, not one of blanks.
    say!("[\n{}\n]\n", indented.join(",\n").replace("\n    \n", "\n\n"));
    Ok(())
}

#[derive(serde::Serialize)]
struct Entry<'a> {
    domid: u16,
    config: Config<'a>,
}

fn host_config() -> String {
    let memory = proc::meminfo().get("MemTotal").copied().unwrap_or(0);
    let vcpus = cpus::online().map_or(1, |cpus| cpus.len());
    let config: Value = json!({
        "c_info": { "type": "pv", "name": "Domain-0" },
        "b_info": { "max_vcpus": vcpus, "max_memkb": memory, "target_memkb": memory },
    });
    json::text(&json!({ "domid": 0, "config": config })).unwrap_or_default()
}
