//! `xlr uptime`

use super::vcpu_list::named;
use crate::args::Args;
use crate::domains;
use crate::host::Host;
use crate::{proc, render};
use anyhow::Result;
use serde_json::json;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// `xlr uptime`
pub fn run(args: &Args) -> Result<()> {
    let guests: Vec<_> = args.words.iter().filter(|word| !domains::is_host(word)).cloned().collect();
    let mut rows = Vec::new();
    if args.words.is_empty() || guests.len() < args.words.len() {
        rows.push(("Domain-0".to_owned(), 0, whole(proc::uptime())));
    }
    if args.words.is_empty() || !guests.is_empty() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let all = named(&guests, Host::open()?.survey()?)?;
        rows.extend(all.into_iter().map(|status| {
            // One that is being made has not begun.
            let since = if status.start_time > 0.0 { now - status.start_time } else { 0.0 };
            (status.name, status.domid, whole(since))
        }));
    }
    if args.has("json") {
        let entry = |(name, domid, seconds): &(String, u16, u64)| json!({ "name": name, "domid": domid, "uptime": seconds });
        say!("{}", serde_json::to_string_pretty(&rows.iter().map(entry).collect::<Vec<_>>())?);
        return Ok(());
    }
    let short = args.has("short");
    if !short {
        say!("{:<33} {:>4} {}", "Name", "ID", "Uptime");
    }
    let clock = if short { time_of_day() } else { String::new() };
    for (name, domid, seconds) in rows {
        let span = render::span(seconds, short);
        match short {
            true => say!(" {clock} up {span}, {name} ({domid})"),
            false => say!("{name:<33} {domid:>4} {span}"),
        }
    }
    Ok(())
}

/// Local time; only date(1) knows the time zone.
fn time_of_day() -> String {
    let date = Command::new("date").arg("+%T").output();
    date.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn whole(seconds: f64) -> u64 {
    seconds.clamp(0.0, 1e15) as u64
}
