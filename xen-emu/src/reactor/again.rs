//! The store is gone: it is looked for beside the loop, and used again when it is back.

use super::{Reactor, Source};
use crate::store_again::{self, Again, StoreRing};
use calloop::Interest;
use calloop::ping::Ping;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use tracing::{info, warn};

/// Whoever looks for the store.
pub(super) struct LostStore {
    ring: Arc<StoreRing>,
    stop: Arc<AtomicBool>,
    /// Pinged when it is found.
    back: Ping,
    looking: Option<JoinHandle<Option<Again>>>,
}

impl LostStore {
    pub(super) fn new(ring: StoreRing, back: Ping) -> LostStore {
        LostStore { ring: Arc::new(ring), stop: Arc::default(), back, looking: None }
    }

    /// What the store has the domain by.
    pub(super) fn ring(&self) -> Arc<StoreRing> {
        self.ring.clone()
    }

    /// The domain ends: it must not be introduced again.
    pub(super) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.take();
    }

    fn take(&mut self) -> Option<Again> {
        self.looking.take()?.join().unwrap_or_default()
    }
}

impl Reactor {
    pub(super) fn store_is_gone(&mut self, why: &dyn std::fmt::Display) {
        warn!("the store is gone, the domain runs on without: {why}");
        self.store = None;
        self.forget(Source::Store);
        self.look_for_store();
    }

    /// Unless somebody does, or the domain ends.
    pub(super) fn look_for_store(&mut self) {
        let lost = &mut self.lost;
        if lost.looking.is_some() || lost.stop.load(Ordering::Relaxed) {
            return;
        }
        let (launch, ring, stop, back) =
            (self.launch.clone(), lost.ring.clone(), lost.stop.clone(), lost.back.clone());
        let look = move || {
            let again = store_again::wait(&launch, &ring, &stop);
            back.ping();
            again
        };
        match std::thread::Builder::new().name("store".into()).spawn(look) {
            Ok(thread) => lost.looking = Some(thread),
            Err(e) => warn!("the store is not looked for: {e}"),
        }
    }

    pub(super) fn store_is_back(&mut self) {
        let Some(Again { client, life_line }) = self.lost.take() else { return };
        info!("the store is back");
        self.forget(Source::Store);
        let watched = client.as_fd().try_clone_to_owned().map_err(anyhow::Error::from);
        if let Err(e) = watched.and_then(|fd| self.watch(fd, Interest::READ, Source::Store)) {
            warn!("nobody will notice when the store goes: {e:#}");
        }
        self.store = Some(client);
        let Some(line) = life_line else { return };
        let said = line.set_nonblocking(true);
        self.life_line = line;
        // It was told to a store that may not remember.
        let said = said.and_then(|()| self.shutdown.map_or(Ok(()), |_| self.life_line.write_all(b"s")));
        if let Err(e) = said {
            warn!("the store does not hear of the shutdown: {e}");
        }
    }
}
