//! What the store tells of devices: the frontend's state, and what others write to our own directory.

use super::entry::Entry;
use super::nodes::Place;
use super::serve::Server;
use std::time::{Duration, Instant};
use xen_abi::io::xenbus::XenbusState;
use xen_domain::xenbus::{Backend, Event};
use xenstored::client::WatchEvent;

/// How long requests are taken from a frontend that has closed. Linux writes that while other processors of the guest may still put
/// some on the ring, and its disk does not go before they are answered.
const LINGER: Duration = Duration::from_millis(100);

/// What of a device is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    FrontState,
    Backend(&'static str),
    /// A node of the frontend's that the device wants to hear of.
    Front(&'static str),
}

impl Watched {
    /// Those of a device.
    pub fn all(listens: &'static [&'static str]) -> impl Iterator<Item = Watched> {
        let ours = [Watched::FrontState, Watched::Backend("state"), Watched::Backend("online")];
        ours.into_iter().chain(listens.iter().map(|name| Watched::Front(name)))
    }

    /// The node.
    pub fn path(self, place: &Place) -> String {
        match self {
            Watched::FrontState => place.front() + "/state",
            Watched::Backend(name) => format!("{}/{name}", place.back()),
            Watched::Front(name) => format!("{}/{name}", place.front()),
        }
    }

    /// Unique among the devices of a domain.
    pub fn token(self, place: &Place) -> String {
        format!("{place} {self:?}")
    }
}

fn number(state: Option<String>) -> XenbusState {
    state.and_then(|text| text.trim().parse().ok()).map_or(XenbusState::UNKNOWN, XenbusState)
}

impl Server {
    /// A watch has fired.
    pub(super) fn watched(&mut self, event: &WatchEvent) {
        let Some((place, watched)) = self.entries.iter().find_map(|(place, entry)| {
            let found = Watched::all(entry.listens).find(|watched| watched.token(place) == event.token)?;
            Some((place.clone(), found))
        }) else {
            // Of a device that is gone.
            return;
        };
        if let Watched::Backend(_) = watched {
            return self.look_at_backend(&place);
        }
        let path = watched.path(&place);
        let Ok(value) = self.talk(|store| store.read_opt(&path)) else { return };
        match watched {
            Watched::Front(name) => self.heard(&place, name, &value.unwrap_or_default()),
            _ => self.frontend(&place, number(value)),
        }
    }

    fn heard(&mut self, place: &Place, name: &str, value: &str) {
        if let Some(entry) = self.entries.get_mut(place).filter(|entry| entry.front.is_some()) {
            entry.device.heard(name, value);
        }
    }

    fn frontend(&mut self, place: &Place, state: XenbusState) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        let before = std::mem::replace(&mut entry.state, state);
        if state == XenbusState::CLOSED && entry.backend.phase.is_live() {
            entry.lingers.get_or_insert_with(|| Instant::now() + LINGER);
            return;
        }
        entry.lingers = None;
        if (before, state) == (XenbusState::CONNECTED, XenbusState::INITIALISED) {
            // It has begun anew, faster than we could see.
            self.on(place, Event::Frontend(XenbusState::INITIALISING));
        }
        self.on(place, Event::Frontend(state));
    }

    /// Devices whose frontends closed long enough ago.
    pub(super) fn end_lingering(&mut self, now: Instant) {
        let late = |entry: &Entry| entry.lingers.is_some_and(|until| until <= now);
        let ended: Vec<_> =
            self.entries.iter().filter(|(_, entry)| late(entry)).map(|(p, _)| p.clone()).collect();
        for place in ended {
            if let Some(entry) = self.entries.get_mut(&place) {
                entry.lingers = None;
            }
            self.on(&place, Event::Frontend(XenbusState::CLOSED));
        }
    }

    /// Others may write to our directory, as libxl does to have a device closed.
    fn look_at_backend(&mut self, place: &Place) {
        let back = place.back();
        let read = self.talk(|store| {
            Ok((store.read_opt(&format!("{back}/state"))?, store.read_opt(&format!("{back}/online"))?))
        });
        let Ok((state, online)) = read else { return };
        let Some(Backend { phase, online: stays }) = self.entries.get(place).map(|entry| entry.backend)
        else {
            return;
        };
        if state.is_none() {
            tracing::info!("{place}: somebody has removed its nodes");
            self.on(place, Event::Removed);
            return;
        }
        let state = number(state);
        if state != phase.state() {
            tracing::info!("{place}: somebody has set its state to {}", state.0);
        }
        let stay = online.as_deref() != Some("0");
        if stay != stays {
            self.on(place, Event::Online(stay));
        }
    }
}
