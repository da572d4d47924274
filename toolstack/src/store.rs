//! xlr's side of the store: where it is, and starting it.

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
