//! What becomes of a device by what happens to it.

use super::Command;
use super::coming::Opened;
use super::entry::Entry;
use super::nodes::{self, Place};
use super::requests::{PATIENCE, label, named};
use super::serve::Server;
use super::watch::Watched;
use crate::backend::device::{Connection, DeviceError, Disc, Frontend, Nodes};
use crate::guest::lock;
use crate::log::limited;
use std::sync::Arc;
use std::time::Instant;
use xen_abi::io::xenbus::XenbusState;
use xen_domain::xenbus::{Action, Event};
use xen_emu_api::control::Reply;
use xen_emu_api::device::{Device, DiskFormat};
use xenstored::client::Batch;

impl Server {
    /// Does the next thing that follows from what has happened to a device. What may wait is done beside.
    pub(super) fn act(&mut self, place: &Place, action: Action) {
        match action {
            Action::Advertise => self.advertise(place),
            Action::Write(state) => self.write_state(place, state),
            Action::Connect => self.connect(place),
            Action::Finish => self.beside(place, |device| device.finish(), |_, _, ()| {}),
            Action::Abandon => {
                self.beside(place, |device| device.abandon(), |server, place, ()| server.abandoned(place))
            }
            Action::Disconnect => {
                self.beside(
                    place,
                    |device| device.disconnect(),
                    |server, place, ()| server.disconnected(place),
                );
            }
            Action::WriteError => self.write_error(place),
            Action::Reconfigure => self.reconfigure(place),
            Action::Remove => self.remove(place),
        }
    }

    fn connect(&mut self, place: &Place) {
        let front = match self.talk(|store| nodes::frontend(store, place)) {
            Ok(front) => front,
            Err(e) => {
                self.failed(place, e);
                return self.next(place, Event::Failed);
            }
        };
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.connections += 1;
        let (line, whose, count) = (self.line.clone(), place.clone(), entry.connections);
        let connection = Connection {
            domid: place.domid,
            front: front.clone(),
            memory: self.wiring.memory.clone(),
            grants: self.wiring.grants.clone(),
            channels: self.wiring.channels.clone(),
            fail: Arc::new(move |e| drop(line.send(Command::Failed(whose.clone(), count, e)))),
        };
        self.beside(
            place,
            move |device| device.connect(connection),
            |server, place, connected| server.connected(place, front, connected),
        );
    }

    fn connected(&mut self, place: &Place, front: Frontend, connected: Result<Nodes, DeviceError>) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        let event = match connected {
            Ok(nodes) => {
                entry.ports = ports(&front);
                entry.front = Some(front);
                entry.nodes = nodes;
                limited!(info, "{place}: connected");
                Event::Connected
            }
            Err(e) => {
                self.failed(place, e);
                Event::Failed
            }
        };
        self.next(place, event);
    }

    fn advertise(&mut self, place: &Place) {
        if let Some(entry) = self.entries.get_mut(place) {
            entry.nodes = entry.device.advertise();
            entry.nodes.push(("hotplug-status".into(), "connected".into()));
        }
    }

    /// Our state, and with it the nodes that were kept for it.
    pub(super) fn write_state(&mut self, place: &Place, state: XenbusState) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        let back = place.back();
        let mut made = Batch::default();
        for (name, value) in &entry.nodes {
            made.write(&format!("{back}/{name}"), value.clone());
        }
        if state == XenbusState::CONNECTED {
            made.rm(&format!("{back}/error"));
        }
        made.write(&format!("{back}/state"), state.0.to_string());
        self.tell(place, |store| store.transaction(|store| store.run(&made)));
        // A store that is lost hears of them when it is back.
        if self.store.is_some()
            && let Some(entry) = self.entries.get_mut(place)
        {
            entry.nodes.clear();
        }
    }

    /// New values for a device that goes on; its frontend, if there is one, reads them when the state is written again.
    pub(super) fn update(&mut self, place: &Place, nodes: Nodes) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.nodes.extend(nodes);
        let state = entry.backend.phase.state();
        self.write_state(place, state);
    }

    fn reconfigure(&mut self, place: &Place) {
        let Some((disc, answer)) = self.entries.get_mut(place).and_then(|entry| entry.discs.pop_front())
        else {
            return self.next(place, Event::Reconfigured);
        };
        let put = disc.clone();
        self.beside(
            place,
            move |device| device.insert(put.as_ref()),
            |server, place, inserted| {
                let reply = server.inserted(place, disc, inserted);
                server.next(place, Event::Reconfigured);
                server.proceed(place);
                answer(reply);
            },
        );
    }

    fn inserted(&mut self, place: &Place, disc: Option<Disc>, inserted: Result<Nodes, DeviceError>) -> Reply {
        let Some(entry) = self.entries.get(place) else { return Reply::Ok };
        let mut nodes = match inserted {
            Ok(nodes) => nodes,
            Err(e) => return Reply::Error { message: named(e, &label(&entry.config)).0 },
        };
        let mut config = entry.config.clone();
        if let Device::Disk(disk) = &mut config {
            disk.format = disc.as_ref().map_or(DiskFormat::Raw, |disc| disc.format);
            disk.target = disc.map(|disc| disc.target);
        }
        nodes.extend(nodes::params(&config));
        self.update(place, nodes);
        self.record(place, config);
        match self.entries.get(place).and_then(Entry::failing) {
            Some(e) => Reply::Error { message: e.to_string() },
            None => Reply::Ok,
        }
    }

    /// The device cannot go on; the step that follows writes why.
    pub(super) fn failed(&mut self, place: &Place, e: DeviceError) {
        limited!(warn, "{place}: {e}");
        if let Some(entry) = self.entries.get_mut(place) {
            entry.error = Some(e);
        }
    }

    /// For the toolstack it is gone; the guest is given a while to notice.
    fn abandoned(&mut self, place: &Place) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.abandoned = Some(Instant::now() + PATIENCE);
        entry.answer(&Reply::Ok);
        lock(&self.configs).retain(|one| *one != entry.config);
        tracing::info!("{place}: taken away by force");
    }

    fn disconnected(&mut self, place: &Place) {
        if let Some(entry) = self.entries.get_mut(place) {
            entry.front = None;
            // A number that the guest has given back may be another device's next.
            entry.ports.retain(|port| self.wiring.channels.is_open(*port));
            limited!(info, "{place}: disconnected");
        }
    }

    fn write_error(&mut self, place: &Place) {
        if let Some(e) = self.entries.get_mut(place).and_then(|entry| entry.error.take()) {
            let path = place.back() + "/error";
            self.tell(place, |store| store.write(&path, &e.0));
        }
    }

    /// Removes the nodes and watches of a device.
    pub(super) fn forget(&mut self, place: &Place, listens: &'static [&'static str]) {
        self.tell(place, |store| {
            for watched in Watched::all(listens) {
                // A watch that was never made is none to end.
                match store.unwatch(&watched.path(place), &watched.token(place)) {
                    Err(e) if e.errno().is_none() => return Err(e),
                    _ => {}
                }
            }
            store.transaction(|store| nodes::remove(store, place))
        });
        if self.store.is_none() {
            self.left.push(place.clone());
        }
    }

    /// Takes up a device that was opened: its nodes, its watches, and it waits for the guest. All or nothing.
    pub(super) fn take_up(
        &mut self,
        place: Place,
        config: Device,
        opened: Opened,
    ) -> Result<(), DeviceError> {
        let (made, listens) = (nodes::made(&place, &config, &*opened.device), opened.device.listens());
        // What a script has written stays.
        let scripted = config.script().is_some();
        let taken = self.talk(|store| {
            store.transaction(|store| {
                if !scripted {
                    nodes::remove(store, &place)?;
                }
                store.run(&made)
            })?;
            Watched::all(listens)
                .try_for_each(|watched| store.watch(&watched.path(&place), &watched.token(&place)))
        });
        if let Err(e) = taken {
            drop(opened);
            self.forget(&place, listens);
            return Err(e);
        }
        lock(&self.configs).push(config.clone());
        self.entries.insert(place.clone(), Entry::new(config, opened));
        self.on(&place, Event::Start);
        Ok(())
    }

    /// Records what has become of a device's configuration.
    pub(super) fn record(&mut self, place: &Place, config: Device) {
        if let Some(entry) = self.entries.get_mut(place) {
            lock(&self.configs)
                .iter_mut()
                .filter(|one| **one == entry.config)
                .for_each(|one| *one = config.clone());
            entry.config = config;
        }
    }
}

/// The ports that a frontend has written, of whatever kind it is.
fn ports(front: &Frontend) -> Vec<u32> {
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let nodes = front.nodes.iter();
    let named = nodes.filter(|(path, _)| name(path) == "port" || name(path).starts_with("event-channel"));
    named.filter_map(|(_, value)| value.trim().parse().ok()).collect()
}
