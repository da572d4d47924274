//! xlr's side of the store: where it is, and starting it.

use crate::host::Host;
use crate::spawn;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use xen_emu_api::run_dir::RunRoot;
use xenstored::client::{self, Autostart, Client};

/// A store that does not answer for so long is broken.
const ANSWER: Duration = Duration::from_secs(10);

/// `XENSTORED_PATH`, else the system's socket for root, else one in the user's run directory.
pub fn socket(root: &RunRoot, uid: u32) -> PathBuf {
    let named = ["XENSTORED_PATH", "XENSTORED_RUNDIR"]
        .iter()
        .any(|n| std::env::var_os(n).is_some_and(|v| !v.is_empty()));
    if named || uid == 0 { client::default_path() } else { root.path().join("xenstored/socket") }
}

/// Talk to the running store; `None` when none runs.
pub fn connect(host: &Host) -> Result<Option<Client>> {
    let mut client = autostart(host).connect()?;
    client.iter_mut().for_each(|client| client.set_timeout(Some(ANSWER)));
    Ok(client)
}

fn autostart(host: &Host) -> Autostart {
    Autostart::new(&host.xenstored, host.root.path())
}

/// Talk to the running store, or to the one that takes the place of one that was killed. `None` when none is meant to
/// run. Call under the run directory's lock.
pub fn revive(host: &Host) -> Result<Option<Client>> {
    match connect(host)? {
        None if autostart(host).was_not_told_to_end() => ensure(host).map(Some),
        client => Ok(client),
    }
}

/// The store forgets a domain whose process is gone, with all that was written for it. Call under the run directory's lock.
pub fn forget(host: &Host, domid: u16, uuid: &str) -> Result<()> {
    match revive(host)? {
        Some(mut store) => Ok(store.forget_domain(domid, uuid)?),
        None => Ok(()),
    }
}

/// Talk to the store, starting it first where none runs. Call under the run directory's lock.
pub fn ensure(host: &Host) -> Result<Client> {
    if let Some(client) = connect(host)? {
        return Ok(client);
    }
    let (autostart, log) = (autostart(host), autostart(host).log());
    let mut daemon =
        autostart.start().context("cannot start xenstored: it belongs beside xlr or into PATH")?;
    let limit = Instant::now() + ANSWER;
    loop {
        if let Some(client) = connect(host)? {
            return Ok(client);
        }
        if let Some(status) = daemon.try_wait()? {
            bail!("xenstored ended ({status}): {}", spawn::last_line(&log));
        }
        if Instant::now() > limit {
            bail!("xenstored does not serve {}; see {}", host.xenstored.display(), log.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
