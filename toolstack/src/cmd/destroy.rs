//! `xlr destroy`: at once, and complete when it returns.

use super::first;
use crate::args::Args;
use crate::domains::{self, Domain};
use crate::failure::Failure;
use crate::host::Host;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use xen_emu_api::control::Request;

/// A process that needs longer is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// `xlr destroy`
pub fn run(args: &Args) -> Result<()> {
    let word = first(args);
    if domains::is_host(word) {
        return Err(Failure::error(1, "Not destroying domain 0: it is this host."));
    }
    let host = Host::open()?;
    let survey = host.survey()?;
    let lives = survey.living.iter().any(|domain| domains::names(word, &domain.status));
    if !lives && survey.reaped.iter().any(|domain| domains::names(word, &domain.status)) {
        return Ok(());
    }
    let mut meant = Some(survey.take(word)?);
    while let Some(domain) = meant {
        let told = end(&host, &domain)?;
        // One that has gone without a word may have made room for its successor of the same name, which is meant too.
        let mut left = if told { Vec::new() } else { host.survey()?.living };
        left.retain(|domain| domains::names(word, &domain.status));
        meant = left.pop();
    }
    Ok(())
}

/// End one domain; false when it has gone before it could be told.
fn end(host: &Host, domain: &Domain) -> Result<bool> {
    let asked = tell(domain);
    if gone_within(domain, PATIENCE) {
        return Ok(asked.is_ok());
    }
    if !end_process(domain)? {
        asked?;
        bail!("{domain}: its process does not let go of {}", domain.dir.path().display());
    }
    until(|| domain.is_dead());
    host.survey()?;
    Ok(true)
}

/// Tell it; again while it is in the making, when its socket is not there or not served yet.
fn tell(domain: &Domain) -> Result<()> {
    let mut asked = Err(anyhow::anyhow!("{domain}: its process does not answer"));
    until(|| {
        if domain.serves() {
            asked = domain.ask(&Request::Destroy).map(drop);
        }
        asked.is_ok() || domain.is_dead() || !domain.dir.path().exists()
    });
    asked
}

/// Until `condition` holds, but not for ever.
fn until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn gone_within(domain: &Domain, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while domain.dir.path().exists() {
        // A free lock: it died on the way, and is for the next survey.
        if Instant::now() >= end || domain.is_dead() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Kill the process that listens on the control socket, whom the kernel names; false when nobody does.
fn end_process(domain: &Domain) -> Result<bool> {
    let Ok(stream) = UnixStream::connect(domain.dir.control()) else { return Ok(domain.is_dead()) };
    let pid = getsockopt(&stream, PeerCredentials)?.pid();
    tell!("{domain}: its process {pid} does not answer; killed");
    kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("cannot kill process {pid}"))?;
    Ok(true)
}
