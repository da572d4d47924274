//! `xlr shutdown`, `xlr reboot`: ask the guest through control/shutdown, wait until it has heard, and where asked
//! until it is down.

use super::vigil::Vigil;
use crate::args::Args;
use crate::domains::Domain;
use crate::failure::Failure;
use crate::host::Host;
use crate::store;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use xen_emu_api::config::Action;
use xen_emu_api::control::{Request, Status};
use xenstored::client::Client;

/// As long as libxl waits for the guest to take the request.
const HEAR: Duration = Duration::from_secs(60);
/// Not a word sooner.
const IMPATIENCE: Duration = Duration::from_secs(3);
/// With `-F`: how long a guest that took the request may go on before the button is pressed as well.
const OBEY: Duration = Duration::from_secs(5);
/// From its shutdown to its end.
const CLEANUP: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(20);

/// What is asked of the guest.
struct Order {
    command: &'static str,
    doing: &'static str,
    /// What control/shutdown says.
    word: &'static str,
    feature: &'static str,
    /// For a guest that does not listen there.
    fallback: Request,
    fallback_words: &'static str,
}

/// `xlr shutdown`
pub fn shutdown(args: &Args) -> Result<()> {
    let order = Order {
        command: "shutdown",
        doing: "Shutting down",
        word: "poweroff",
        feature: "feature-poweroff",
        fallback: Request::PowerButton,
        fallback_words: "sending ACPI power button event",
    };
    carry_out(&order, args)
}

/// `xlr reboot`
pub fn reboot(args: &Args) -> Result<()> {
    let order = Order {
        command: "reboot",
        doing: "Rebooting",
        word: "reboot",
        feature: "feature-reboot",
        fallback: Request::Reset,
        fallback_words: "sending a reset",
    };
    carry_out(&order, args)
}

fn carry_out(order: &Order, args: &Args) -> Result<()> {
    let host = Host::open()?;
    let domains = targets(&host, args)?;
    if domains.is_empty() {
        return Ok(());
    }
    let waits = args.count("wait");
    let mut vigils = Vec::new();
    if waits > 0 {
        for domain in &domains {
            vigils.push(Vigil::keep(host.find(&domain.dir.domid.to_string())?, true)?);
        }
    }
    let mut store = store::connect(&host)?.with_context(|| {
        format!("no xenstored serves {}: no guest can be asked", host.xenstored.display())
    })?;
    let mut failed = false;
    let mut asked = Vec::new();
    for domain in domains {
        tell!("{} domain {}", order.doing, domain.dir.domid);
        match ask(order, &mut store, &domain, args.has("F")) {
            Ok(true) => asked.push(domain),
            Ok(false) => {}
            Err(error) => {
                tell!("{error:#}");
                failed = true;
                vigils.retain(|vigil| vigil.domain().dir.domid != domain.dir.domid);
            }
        }
    }
    failed |= !await_hearing(order, &mut store, &asked, args.has("F"))?;
    if failed {
        return Err(Failure::silent(1));
    }
    if waits > 0 {
        tell!("Waiting for {} domains", vigils.len());
        vigils.iter_mut().try_for_each(|vigil| await_end(vigil, waits))?;
    }
    Ok(())
}

fn targets(host: &Host, args: &Args) -> Result<Vec<Domain>> {
    match (args.has("all"), args.words.first()) {
        (false, None) => Err(Failure::error(1, "You must specify -a or a domain id.\n")),
        (true, Some(_)) => Err(Failure::error(1, "Either -a or a domain id, not both.\n")),
        (true, None) => {
            let mut living = host.survey()?.living;
            living.retain(|domain| domain.status.shutdown.is_none() && !domain.status.dying);
            Ok(living)
        }
        (false, Some(word)) => Ok(vec![host.find(word)?]),
    }
}

/// Put the request where the guest reads it; false when the fallback took its place.
fn ask(order: &Order, store: &mut Client, domain: &Domain, fallback: bool) -> Result<bool> {
    let Status { shutdown, paused, .. } = domain.status;
    if shutdown.is_some() {
        anyhow::bail!("{domain} has shut down already: `destroy' frees it");
    }
    if paused {
        anyhow::bail!("{domain} is paused and cannot hear: `unpause' it first");
    }
    let control = format!("/local/domain/{}/control", domain.dir.domid);
    let listens = store.read_opt(&format!("{control}/{}", order.feature))?;
    if listens.as_deref() == Some("1") {
        store.write(&format!("{control}/shutdown"), order.word)?;
        return Ok(true);
    }
    let missing = "PV control interface not available";
    if !fallback {
        let command = order.command;
        anyhow::bail!(
            "{missing}: external graceful {command} not possible.\nUse \"-F\" to fallback to ACPI power event.\n\
             {command} failed (rc=-10)"
        );
    }
    tell!("{missing}: {}.", order.fallback_words);
    domain.ask(&order.fallback)?;
    Ok(false)
}

/// Wait until every guest has taken its request; false when one did not.
fn await_hearing(order: &Order, store: &mut Client, asked: &[Domain], fallback: bool) -> Result<bool> {
    let start = Instant::now();
    let mut heard = true;
    for domain in asked {
        if !takes(order, store, domain, start)? {
            heard &= unheard(order, domain, fallback);
        } else if fallback {
            insist(order, domain);
        }
    }
    Ok(heard)
}

/// Whether the guest takes its request: it is not there any more, or the domain is not. One not taken is withdrawn.
fn takes(order: &Order, store: &mut Client, domain: &Domain, start: Instant) -> Result<bool> {
    let node = format!("/local/domain/{}/control/shutdown", domain.dir.domid);
    let mut told = false;
    while store.read_opt(&node)?.as_deref() == Some(order.word) && !domain.ends_within(STEP) {
        if !told && start.elapsed() > IMPATIENCE {
            tell!("{domain} has not acknowledged yet; waiting up to {} s", HEAR.as_secs());
            told = true;
        }
        if start.elapsed() > HEAR {
            withdraw(order, store, &node)?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// So that the guest does not obey an hour later.
fn withdraw(order: &Order, store: &mut Client, node: &str) -> Result<()> {
    store.transaction(|store| {
        if store.read_opt(node)?.as_deref() == Some(order.word) {
            store.write(node, "")?;
        }
        Ok::<(), xenstored::client::Error>(())
    })?;
    Ok(())
}

/// The guest does not listen, whatever it said; true when the fallback reached it.
fn unheard(order: &Order, domain: &Domain, fallback: bool) -> bool {
    let what =
        format!("{domain} did not acknowledge the {} request within {} s", order.command, HEAR.as_secs());
    if !fallback {
        tell!("{what}: -F asks by its power button, `destroy' ends it at once");
        return false;
    }
    tell!("{what}: {}.", order.fallback_words);
    domain.ask(&order.fallback).inspect_err(|error| tell!("{error:#}")).is_ok()
}

/// With `-F`: a guest whose kernel took the request but whose init does nothing about it gets the button too.
fn insist(order: &Order, domain: &Domain) {
    if domain.ends_within(OBEY) {
        return;
    }
    tell!("{domain} took the request and runs on: {}.", order.fallback_words);
    if let Err(error) = domain.ask(&order.fallback) {
        tell!("{error:#}");
    }
}

/// `-w`: until it has shut down and, where nothing keeps it, is gone.
fn await_end(vigil: &mut Vigil, waits: usize) -> Result<()> {
    let domid = vigil.domain().dir.domid;
    let Some(reason) = vigil.end()? else {
        tell!("Domain {domid} has been destroyed");
        return Ok(());
    };
    tell!("Domain {domid} has been shut down, reason code {reason}");
    if waits > 1 {
        vigil.gone()?;
        tell!("Domain {domid} has been destroyed");
    }
    if matches!(vigil.action(reason), Some(Action::Destroy | Action::CoredumpDestroy)) {
        vigil.cleaned(CLEANUP);
    }
    Ok(())
}
