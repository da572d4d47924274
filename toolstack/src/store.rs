//! xlr's side of the store: starting it, and forgetting a domain whose process cannot do it any more.

use crate::host::Host;
use crate::spawn;
use anyhow::{Context, Result, bail};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use xen_emu_api::run_dir::RunRoot;
use xenstored::client::{self, Client, Error};

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
    match Client::connect(&host.xenstored) {
        Ok(mut client) => {
            client.set_timeout(Some(ANSWER));
            Ok(Some(client))
        }
        Err(Error::Connect { source, .. })
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Talk to the store, starting it first where none runs. Call under the run directory's lock.
pub fn ensure(host: &Host) -> Result<Client> {
    if let Some(client) = connect(host)? {
        return Ok(client);
    }
    if let Some(dir) = host.xenstored.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let log = host.root.path().join("xenstored.log");
    let path = ("XENSTORED_PATH", host.xenstored.as_os_str());
    // A group of its own: ^C and the end of the terminal are not meant for it.
    let mut daemon = spawn::detached("xenstored", &log, &[path], |command| {
        command.process_group(0);
    })?;
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

/// Remove every node of a dead domain, as its own process would have done.
pub fn forget(store: &mut Client, domid: u16, uuid: &str) -> client::Result<()> {
    // The ring's end has told the store already, mostly.
    let _ = store.release(domid);
    for kind in store.directory("/local/domain/0/backend").unwrap_or_default() {
        remove(store, &format!("/local/domain/0/backend/{kind}/{domid}"))?;
    }
    remove(store, &format!("/libxl/{domid}"))?;
    remove(store, &format!("/local/domain/{domid}"))?;
    // A restarted domain has the same UUID.
    match store.read_opt(&format!("/vm/{uuid}/name")) {
        Ok(Some(_)) if !in_use(store, uuid)? => remove(store, &format!("/vm/{uuid}")),
        _ => Ok(()),
    }
}

fn in_use(store: &mut Client, uuid: &str) -> client::Result<bool> {
    let vm = format!("/vm/{uuid}");
    for domid in store.directory("/local/domain").unwrap_or_default() {
        if store.read_opt(&format!("/local/domain/{domid}/vm"))?.as_deref() == Some(&vm) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn remove(store: &mut Client, path: &str) -> client::Result<()> {
    match store.rm(path) {
        Err(error) if error.errno() == Some(xenstored::wire::Errno::ENOENT) => Ok(()),
        other => other,
    }
}
