//! Watching one domain until its end, and over to its next incarnation.

use crate::domains::Domain;
use crate::host::Host;
use anyhow::{Context, Result};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use xen_emu_api::config::{Action, DomainConfig};
use xen_emu_api::control::{self, Reply, Request};

/// A crash loop is slowed down to one restart a minute; a rebuild comes on top.
const REBUILD: Duration = Duration::from_secs(90);

/// Keeps watch over one domain. The word about its shutdown waits in the socket, even when the process is gone.
pub struct Vigil {
    domain: Domain,
    config: DomainConfig,
    supervised: bool,
    stream: BufReader<UnixStream>,
}

impl Vigil {
    /// Begin before anything can end the domain. `supervised`: its `on_*` actions are carried out.
    pub fn keep(domain: Domain, supervised: bool) -> Result<Self> {
        let config = domain.config()?;
        let stream = UnixStream::connect(domain.dir.control())
            .with_context(|| format!("{domain}: its process does not answer"))?;
        control::send(&stream, &Request::Wait)?;
        Ok(Vigil { domain, config, supervised, stream: BufReader::new(stream) })
    }

    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The process that is watched.
    pub fn pid(&self) -> u32 {
        self.domain.status.pid
    }

    /// Block until the domain shuts down: the reason, or `None` when it was destroyed.
    pub fn end(&mut self) -> Result<Option<u32>> {
        let mut line = String::new();
        ended(self.stream.read_line(&mut line))?;
        Ok(match serde_json::from_str(&line) {
            Ok(Reply::Shutdown { reason }) => Some(reason),
            _ => None,
        })
    }

    /// Block until the process has let go of the domain.
    pub fn gone(&mut self) -> Result<()> {
        ended(self.stream.read_to_end(&mut Vec::new()))
    }

    /// Block until the domain's directory is gone, at most for `limit`.
    pub fn cleaned(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.domain.dir.path().exists() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// What is configured for a shutdown with `reason`; `None` for one that has no action (suspend).
    pub fn action(&self, reason: u32) -> Option<Action> {
        self.config.actions.after(reason)
    }

    /// Whether a domain that has shut down with `reason` stays until somebody destroys it.
    pub fn keeps(&self, reason: u32) -> bool {
        let kept = match self.action(reason) {
            Some(action) => matches!(action, Action::Preserve | Action::RenameRestart),
            None => reason == xen_emu_api::config::reason::SUSPEND,
        };
        kept || !self.supervised
    }

    /// After an end with `reason`: the domain that takes its place, if its action makes one.
    pub fn successor(&self, host: &Host, reason: Option<u32>) -> Result<Option<Vigil>> {
        let restarts = matches!(
            reason.and_then(|reason| self.action(reason)),
            Some(Action::Restart | Action::RenameRestart | Action::CoredumpRestart | Action::SoftReset)
        );
        if !restarts || !self.supervised {
            return Ok(None);
        }
        let next = host.successor(&self.config.name, self.domain.dir.domid, REBUILD)?;
        next.map(|domain| Vigil::keep(domain, true)).transpose()
    }
}

/// A process that dies with a request unread resets the connection: that is an end like any other.
fn ended(read: io::Result<usize>) -> Result<()> {
    match read {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(()),
    }
}
