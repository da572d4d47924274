//! A store that was lost: it is looked for again, and told what it does not know any more.

use super::entry::Entry;
use super::nodes::{self, Place};
use super::serve::Server;
use super::watch::Watched;
use crate::backend::device::DeviceError;
use std::time::{Duration, Instant};
use xenstored::client::Batch;

/// How often.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

impl Server {
    /// Looks for a lost store, when it is time to.
    pub(super) fn look_for_store(&mut self, now: Instant) {
        if self.store.is_some() || now < self.again {
            return;
        }
        self.again = now + PAUSE;
        let Ok(store) = (self.wiring.connect)() else { return };
        self.store = Some(store);
        match self.resume() {
            Ok(()) => tracing::info!("the store is back"),
            Err(e) => {
                tracing::debug!("{e}");
                self.store = None;
            }
        }
    }

    /// All devices are in the store as they are, and watched.
    fn resume(&mut self) -> Result<(), DeviceError> {
        let home = format!("/local/domain/{}", self.wiring.domid);
        // An empty store hears of the domain first, from who introduces it, and then of its devices.
        if self.talk(|store| store.read_opt(&home))?.is_none() {
            return Err(DeviceError("the store does not know the domain".into()));
        }
        if self.entries.values().any(|entry| entry.away) {
            return Err(DeviceError("a device is away that would say what it offers".into()));
        }
        self.clear_up()?;
        for place in self.entries.keys().cloned().collect::<Vec<_>>() {
            let state = place.back() + "/state";
            let known = self.talk(|store| store.read_opt(&state))?.is_some();
            let Some(entry) = self.entries.get_mut(&place) else { continue };
            let (told, listens) = (told(&place, entry, known), entry.listens);
            self.talk(|store| {
                store.transaction(|store| store.run(&told))?;
                Watched::all(listens)
                    .try_for_each(|watched| store.watch(&watched.path(&place), &watched.token(&place)))
            })?;
            if let Some(entry) = self.entries.get_mut(&place) {
                entry.nodes.clear();
            }
        }
        Ok(())
    }

    /// Removes the nodes of devices that went while the store was away.
    fn clear_up(&mut self) -> Result<(), DeviceError> {
        while let Some(place) = self.left.last().cloned() {
            if !self.entries.contains_key(&place) && !self.coming.contains_key(&place) {
                self.talk(|store| store.transaction(|store| nodes::remove(store, &place)))?;
            }
            self.left.pop();
        }
        Ok(())
    }
}

/// What a store that has kept the device's nodes is told, or one that has not.
fn told(place: &Place, entry: &mut Entry, known: bool) -> Batch {
    let (front, back) = (place.front(), place.back());
    let mut told = if known { Batch::default() } else { nodes::made(place, &entry.config, &*entry.device) };
    if !known {
        let offered =
            entry.device.advertise().into_iter().chain(entry.device.resize(None).unwrap_or_default());
        offered.for_each(|(name, value)| told.write(&format!("{back}/{name}"), value));
        for (name, value) in entry.front.iter().flat_map(|front| &front.nodes) {
            told.write(&format!("{front}/{name}"), value.clone());
        }
        told.write(&format!("{front}/state"), entry.state.0.to_string());
        told.write(&format!("{back}/online"), u8::from(entry.backend.online).to_string());
    }
    for (name, value) in &entry.nodes {
        told.write(&format!("{back}/{name}"), value.clone());
    }
    told.write(&format!("{back}/state"), entry.backend.phase.state().0.to_string());
    told
}
