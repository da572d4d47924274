//! A store that went away and came back: the domain is introduced to it again.
//!
//! A store with a state folder has the domain's nodes and watches still; to one without, the nodes that a new domain
//! finds are announced again (the devices' by the bus, which waits for the domain's). What the guest asked meanwhile
//! waits in its ring, which nobody touches. A store that xlr started and that was killed is started again from here.

use crate::xenbus_setup::{self, Facts};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use xen_emu_api::config::Launch;
use xenstored::client::{Autostart, Client, Result};

/// Between two looks for the store.
const RETRY: Duration = Duration::from_millis(250);
/// How long one that was started may take to serve.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a store needs to serve the domain's ring.
#[derive(Debug)]
pub struct StoreRing {
    /// The ring's page.
    pub page: OwnedFd,
    /// Guest to store.
    pub kick: OwnedFd,
    /// Store to guest.
    pub notify: OwnedFd,
    /// What the nodes say.
    pub facts: Facts,
}

/// A connection to the store that came back.
#[derive(Debug)]
pub struct Again {
    /// It.
    pub client: Client,
    /// The new life line; none if the domain was introduced still.
    pub life_line: Option<UnixStream>,
}

/// One attempt.
///
/// # Errors
/// There is no store yet, or what it says.
pub fn attach(launch: &Launch, ring: &StoreRing) -> Result<Again> {
    let mut client = xenbus_setup::connect(launch)?;
    if client.is_introduced(launch.domid)? {
        return Ok(Again { client, life_line: None });
    }
    if client.read_opt(&format!("/local/domain/{}/domid", launch.domid))?.is_none() {
        xenbus_setup::setup(&mut client, launch, &ring.facts)?;
    }
    let (page, kick, notify) = (ring.page.as_fd(), ring.kick.as_fd(), ring.notify.as_fd());
    let line = xenbus_setup::introduce(&mut client, launch.domid, &ring.facts, page, kick, notify)?;
    Ok(Again { client, life_line: Some(line) })
}

/// Until it succeeds; `None` when told to stop.
pub fn wait(launch: &Launch, ring: &StoreRing, stop: &AtomicBool) -> Option<Again> {
    while !stop.load(Ordering::Relaxed) {
        match attach(launch, ring) {
            Ok(again) => return Some(again),
            Err(e) => tracing::debug!("the store is not back yet: {e}"),
        }
        start_again(launch);
        std::thread::sleep(RETRY);
    }
    None
}

/// One that xlr had started and that was killed: by the lock of the run directory one process does it for all domains.
/// A store that somebody else runs is theirs to start.
fn start_again(launch: &Launch) {
    let daemon = Autostart::new(&launch.xenstored, &launch.run_root);
    match daemon.again(&launch.run_root.join("lock"), PATIENCE) {
        Ok(true) => tracing::info!("the store was killed and is started again"),
        Ok(false) => {}
        Err(e) => crate::log::limited!(warn, "the store cannot be started again: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestStore, launch};
    use nix::sys::eventfd::EventFd;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn ring() -> StoreRing {
        let facts = Facts {
            console_gfn: 1,
            console_port: 2,
            store_gfn: 3,
            store_port: 1,
            tty: None,
            start_time: 1.0,
        };
        let eventfd = || EventFd::new().unwrap().into();
        let page = memfd_create(c"ring", MFdFlags::empty()).unwrap();
        StoreRing { page, kick: eventfd(), notify: eventfd(), facts }
    }

    #[test]
    fn an_empty_store_is_told_all_and_a_full_one_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = TestStore::start(dir.path());
        let (mut launch, ring) = (launch(5), ring());
        launch.xenstored = store.path.clone();
        let again = attach(&launch, &ring).unwrap();
        assert!(again.life_line.is_some());
        assert_eq!(store.get("/local/domain/5/name").as_deref(), Some("guest"));
        assert!(store.client().is_introduced(5).unwrap());
        // The store was not away, only the connection.
        store.client().write("/local/domain/5/name", "other").unwrap();
        assert!(attach(&launch, &ring).unwrap().life_line.is_none());
        assert_eq!(store.get("/local/domain/5/name").as_deref(), Some("other"));
    }

    #[test]
    fn it_is_waited_for_until_told_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let mut launch = launch(5);
        launch.xenstored = dir.path().join("store.sock");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&launch, &ring(), &stop));
            let store = TestStore::start(dir.path());
            assert!(waiting.join().unwrap().is_some());
            assert!(store.client().is_introduced(5).unwrap());
        });
        launch.xenstored = dir.path().join("nowhere");
        stop.store(true, Ordering::Relaxed);
        assert!(wait(&launch, &ring(), &stop).is_none());
    }
}
