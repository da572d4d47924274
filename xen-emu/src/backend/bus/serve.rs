//! The bus's thread: what the store tells, and what becomes of devices by it.

use super::nodes::{self, Place};
use super::{Answer, Command, Line, Wiring};
use crate::backend::device::{self, Connection, DeviceError, Disc, Frontend, Nodes};
use crate::guest::lock;
use crate::log::limited;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xen_abi::io::xenbus::XenbusState;
use xen_domain::xenbus::{Action, Backend, Event};
use xen_emu_api::control::Reply;
use xen_emu_api::device::Device;
use xenstored::client::{Batch, Client, Error, WatchEvent};

/// One device.
pub(super) struct Entry {
    pub config: Device,
    pub device: Box<dyn device::Device>,
    pub backend: Backend,
    listens: &'static [&'static str],
    /// The frontend's state, as seen last.
    pub state: XenbusState,
    /// What the frontend wrote, while connected.
    pub front: Option<Frontend>,
    /// How often it was connected.
    connections: u64,
    /// Nodes to be written with the next state.
    nodes: Nodes,
    /// Why the device has failed.
    error: Option<DeviceError>,
    /// What is to be put in by the next [`Action::Reconfigure`].
    pub disc: Option<Disc>,
    /// Who waits for it to go, and until when.
    pub leaving: Vec<(Instant, Answer)>,
}

pub(super) struct Server {
    /// Until the connection is lost.
    store: Option<Client>,
    pub wiring: Wiring,
    line: Line,
    commands: Receiver<Command>,
    pub entries: BTreeMap<Place, Entry>,
    configs: Arc<Mutex<Vec<Device>>>,
    closing: bool,
}

/// What of a device is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    FrontState,
    Backend(&'static str),
    /// A node of the frontend's that the device wants to hear of.
    Front(&'static str),
}

impl Watched {
    fn all(listens: &'static [&'static str]) -> impl Iterator<Item = Watched> {
        let ours = [Watched::FrontState, Watched::Backend("state"), Watched::Backend("online")];
        ours.into_iter().chain(listens.iter().map(|name| Watched::Front(name)))
    }

    fn path(self, place: &Place) -> String {
        match self {
            Watched::FrontState => place.front() + "/state",
            Watched::Backend(name) => format!("{}/{name}", place.back()),
            Watched::Front(name) => format!("{}/{name}", place.front()),
        }
    }

    fn token(self, place: &Place) -> String {
        format!("{place} {self:?}")
    }
}

fn number(state: Option<String>) -> XenbusState {
    state.and_then(|text| text.trim().parse().ok()).map_or(XenbusState::UNKNOWN, XenbusState)
}

impl Server {
    pub(super) fn new(
        store: Client,
        wiring: Wiring,
        (line, commands): (Line, Receiver<Command>),
        configs: Arc<Mutex<Vec<Device>>>,
    ) -> Server {
        let entries = BTreeMap::new();
        Server { store: Some(store), wiring, line, commands, entries, configs, closing: false }
    }

    /// Until told to close; all devices are closed then.
    pub(super) fn run(mut self) {
        loop {
            while let Ok(command) = self.commands.try_recv() {
                self.command(command);
            }
            if self.closing {
                break;
            }
            let now = Instant::now();
            self.entries.values_mut().for_each(|entry| entry.expire(now));
            if !self.event() {
                self.wait();
            }
        }
        for (place, mut entry) in std::mem::take(&mut self.entries) {
            entry.device.disconnect();
            tracing::debug!("{place}: closed with the domain");
            entry.answer(&Reply::Error { message: "the domain is being destroyed".into() });
        }
    }

    fn command(&mut self, command: Command) {
        let gone = || Reply::Error { message: "the domain is being destroyed".into() };
        match command {
            Command::Ask(_, answer) if self.closing => answer(gone()),
            Command::Ask(request, answer) => self.ask(request, answer),
            Command::Failed(place, connection, e) => {
                let current = self.entries.get(&place).is_some_and(|entry| entry.connections == connection);
                if current {
                    self.failed(&place, e);
                    self.on(&place, Event::Failed);
                }
            }
            Command::Close => self.closing = true,
        }
    }

    fn wait(&self) {
        let mut fds = vec![PollFd::new(self.line.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.store.iter().map(|store| PollFd::new(store.as_fd(), PollFlags::POLLIN)));
        let until =
            self.entries.values().flat_map(|entry| entry.leaving.iter().map(|(until, _)| *until)).min();
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // A millisecond late rather than early.
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // Interrupted is as good as ready.
        let _ = poll(&mut fds, timeout);
        let _ = self.line.wake.read();
    }

    /// Deals with one watch event, if there is one.
    fn event(&mut self) -> bool {
        let Some(store) = &mut self.store else { return false };
        match store.next_event(Some(Duration::ZERO)) {
            Ok(Some(event)) => {
                self.watched(&event);
                true
            }
            Ok(None) => false,
            Err(e) => {
                self.lost(&e);
                false
            }
        }
    }

    fn lost(&mut self, why: &Error) {
        tracing::warn!("the store is gone, the devices go on as they are: {why}");
        self.store = None;
    }

    /// Talks to the store. What it refuses says so; a lost connection is not used again.
    pub(super) fn talk<T>(
        &mut self,
        talk: impl FnOnce(&mut Client) -> Result<T, Error>,
    ) -> Result<T, DeviceError> {
        let Some(store) = &mut self.store else { return Err(DeviceError("the store is gone".into())) };
        talk(store).map_err(|e| {
            if e.errno().is_none() {
                self.lost(&e);
            }
            DeviceError(format!("store: {e}"))
        })
    }

    /// As [`Server::talk`], where nothing can be done about an error.
    fn tell(&mut self, place: &Place, talk: impl FnOnce(&mut Client) -> Result<(), Error>) {
        if let Err(e) = self.talk(talk) {
            limited!(warn, "{place}: {e}");
        }
    }

    fn watched(&mut self, event: &WatchEvent) {
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
        if (before, state) == (XenbusState::CONNECTED, XenbusState::INITIALISED) {
            // It has begun anew, faster than we could see.
            self.on(place, Event::Frontend(XenbusState::INITIALISING));
        }
        self.on(place, Event::Frontend(state));
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
            self.on(place, Event::Force);
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

    /// Something has happened to a device.
    pub(super) fn on(&mut self, place: &Place, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let Some(entry) = self.entries.get_mut(place) else { return };
            let before = entry.backend;
            let (backend, actions) = before.step(event);
            entry.backend = backend;
            tracing::debug!("{place}: {event:?} in {:?}: {actions:?}", before.phase);
            for action in actions {
                match action {
                    Action::Advertise => self.advertise(place),
                    Action::Write(state) => self.write_state(place, state),
                    Action::Connect => next = Some(self.connect(place)),
                    Action::Disconnect => self.disconnect(place),
                    Action::WriteError => self.write_error(place),
                    Action::Reconfigure => next = Some(self.reconfigure(place)),
                    Action::Remove => return self.remove(place),
                }
            }
        }
    }

    fn connect(&mut self, place: &Place) -> Event {
        let front = match self.talk(|store| nodes::frontend(store, place)) {
            Ok(front) => front,
            Err(e) => {
                self.failed(place, e);
                return Event::Failed;
            }
        };
        let Some(entry) = self.entries.get_mut(place) else { return Event::Failed };
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
        match entry.device.connect(connection) {
            Ok(nodes) => {
                entry.front = Some(front);
                entry.nodes = nodes;
                limited!(info, "{place}: connected");
                Event::Connected
            }
            Err(e) => {
                self.failed(place, e);
                Event::Failed
            }
        }
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
        for (name, value) in entry.nodes.drain(..) {
            made.write(&format!("{back}/{name}"), value);
        }
        if state == XenbusState::CONNECTED {
            made.rm(&format!("{back}/error"));
        }
        made.write(&format!("{back}/state"), state.0.to_string());
        self.tell(place, |store| store.transaction(|store| store.run(&made)));
    }

    /// New values for a device that goes on; its frontend, if there is one, reads them when the state is written again.
    pub(super) fn update(&mut self, place: &Place, nodes: Nodes) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.nodes.extend(nodes);
        let state = entry.backend.phase.state();
        self.write_state(place, state);
    }

    fn reconfigure(&mut self, place: &Place) -> Event {
        if let Some(entry) = self.entries.get_mut(place) {
            match entry.device.insert(entry.disc.take().as_ref()) {
                Ok(nodes) => entry.nodes.extend(nodes),
                Err(e) => entry.error = Some(e),
            }
        }
        Event::Reconfigured
    }

    fn failed(&mut self, place: &Place, e: DeviceError) {
        limited!(warn, "{place}: {e}");
        if let Some(entry) = self.entries.get_mut(place) {
            entry.error = Some(e);
        }
    }

    fn disconnect(&mut self, place: &Place) {
        if let Some(entry) = self.entries.get_mut(place) {
            entry.device.disconnect();
            entry.front = None;
            limited!(info, "{place}: disconnected");
        }
    }

    fn write_error(&mut self, place: &Place) {
        if let Some(e) = self.entries.get_mut(place).and_then(|entry| entry.error.take()) {
            let path = place.back() + "/error";
            self.tell(place, |store| store.write(&path, &e.0));
        }
    }

    /// The device is gone for good.
    fn remove(&mut self, place: &Place) {
        let Some(mut entry) = self.entries.remove(place) else { return };
        entry.device.disconnect();
        let Entry { config, device, .. } = &mut entry;
        lock(&self.configs).retain(|one| one != config);
        // The image is free, and the host's end gone, when others see the nodes go.
        *device = Box::new(Nothing);
        let listens = entry.listens;
        self.forget(place, listens);
        tracing::info!("{place}: detached");
        entry.answer(&Reply::Ok);
    }

    /// Removes the nodes and watches of a device.
    fn forget(&mut self, place: &Place, listens: &'static [&'static str]) {
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
    }

    /// Takes up a device that was opened: its nodes, its watches, and it waits for the guest. All or nothing.
    pub(super) fn take_up(
        &mut self,
        place: Place,
        config: Device,
        device: Box<dyn device::Device>,
    ) -> Result<(), DeviceError> {
        let (made, listens) = (nodes::made(&place, &config, &*device), device.listens());
        let taken = self.talk(|store| {
            store.transaction(|store| {
                nodes::remove(store, &place)?;
                store.run(&made)
            })?;
            Watched::all(listens)
                .try_for_each(|watched| store.watch(&watched.path(&place), &watched.token(&place)))
        });
        if let Err(e) = taken {
            drop(device);
            self.forget(&place, listens);
            return Err(e);
        }
        lock(&self.configs).push(config.clone());
        self.entries.insert(place.clone(), Entry::new(config, device));
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

impl Entry {
    fn new(config: Device, device: Box<dyn device::Device>) -> Entry {
        Entry {
            config,
            listens: device.listens(),
            device,
            backend: Backend::default(),
            state: XenbusState::INITIALISING,
            front: None,
            connections: 0,
            nodes: Nodes::new(),
            error: None,
            disc: None,
            leaving: Vec::new(),
        }
    }

    /// Why the last thing asked of it could not be done.
    pub fn take_error(&mut self) -> Option<DeviceError> {
        self.error.take()
    }

    fn answer(&mut self, reply: &Reply) {
        self.leaving.drain(..).for_each(|(_, answer)| answer(reply.clone()));
    }

    /// Whoever has waited long enough hears so.
    fn expire(&mut self, now: Instant) {
        let (late, rest) = self.leaving.drain(..).partition(|(until, _)| *until <= now);
        self.leaving = rest;
        let message = format!(
            "the guest has not let go of {} within {} s: it goes when the guest does, or at once by force",
            super::requests::label(&self.config),
            super::requests::PATIENCE.as_secs()
        );
        let late: Vec<(Instant, Answer)> = late;
        late.into_iter().for_each(|(_, answer)| answer(Reply::Error { message: message.clone() }));
    }
}

/// Stands where a device was.
struct Nothing;

impl device::Device for Nothing {
    fn advertise(&self) -> Nodes {
        Nodes::new()
    }
    fn connect(&mut self, _: Connection) -> Result<Nodes, DeviceError> {
        Err(DeviceError("the device is gone".into()))
    }
    fn disconnect(&mut self) {}
    fn rings(&self) -> Vec<u32> {
        Vec::new()
    }
}
