//! The bus's thread: commands, the store's connection, and sleeping between.

use super::again::PAUSE;
use super::busy::Todo;
use super::coming::{Coming, beside};
use super::entry::{Entry, Nothing};
use super::nodes::Place;
use super::renew::Halt;
use super::requests::PATIENCE;
use super::{Command, Line, Wiring};
use crate::backend::device::{Device, DeviceError};
use crate::log::limited;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xen_domain::xenbus::Event;
use xen_emu_api::control::Reply;
use xen_emu_api::device::Device as Config;
use xenstored::client::{Client, Error};

/// How often it is looked whether a guest has noticed that a device is gone.
const SETTLING: Duration = Duration::from_millis(20);

pub(super) struct Server {
    /// Until the connection is lost.
    pub store: Option<Client>,
    /// When a lost one is looked for.
    pub again: Instant,
    pub wiring: Wiring,
    pub line: Line,
    commands: Receiver<Command>,
    pub entries: BTreeMap<Place, Entry>,
    /// Devices that are being opened, and those whose host's end is going.
    pub coming: BTreeMap<Place, Coming>,
    pub going: BTreeMap<Place, Entry>,
    /// Devices that are gone, whose nodes a lost store may have still.
    pub left: Vec<Place>,
    pub configs: Arc<Mutex<Vec<Config>>>,
    pub halt: Halt,
    closing: bool,
}

impl Server {
    pub(super) fn new(
        store: Client,
        wiring: Wiring,
        (line, commands): (Line, Receiver<Command>),
        configs: Arc<Mutex<Vec<Config>>>,
    ) -> Server {
        Server {
            store: Some(store),
            again: Instant::now(),
            wiring,
            line,
            commands,
            entries: BTreeMap::new(),
            coming: BTreeMap::new(),
            going: BTreeMap::new(),
            left: Vec::new(),
            configs,
            halt: Halt::No,
            closing: false,
        }
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
            self.look_for_store(now);
            self.settle(now);
            self.end_lingering(now);
            self.entries.values_mut().for_each(|entry| entry.expire(now));
            let late = self.entries.iter().filter(|(_, entry)| entry.overdue(now));
            let gone: Vec<_> = late.map(|(place, _)| place.clone()).collect();
            gone.iter().for_each(|place| self.on(place, Event::Removed));
            if !self.event() {
                self.wait();
            }
        }
        let gone = Reply::Error { message: "the domain is being destroyed".into() };
        for (place, mut entry) in std::mem::take(&mut self.entries) {
            let device = std::mem::replace(&mut entry.device, Box::new(Nothing));
            let here = !entry.away;
            self.going.insert(place.clone(), entry);
            if here {
                self.close(place, device);
            }
        }
        self.going.values_mut().for_each(|entry| entry.refuse(&gone));
        std::mem::take(&mut self.coming).into_values().for_each(|coming| coming.refuse(&gone));
        self.await_going();
    }

    /// The host's end of a device goes with the domain.
    pub(super) fn close(&mut self, place: Place, mut device: Box<dyn Device>) {
        let script = self.going.get_mut(&place).and_then(|entry| entry.script.take());
        let (line, whose) = (self.line.clone(), place);
        let closing = move || {
            device.disconnect();
            drop((device, script));
            line.send(Command::Closed(whose));
        };
        match beside("closing") {
            Ok(thread) => drop(thread.send(Box::new(closing))),
            Err(_) => closing(),
        }
    }

    /// Images that others close are free, and scripts done, when the domain is gone: if the host does not take too long.
    fn await_going(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.going.values().any(|entry| entry.gone.is_none()) {
            let left = until.saturating_duration_since(Instant::now());
            match self.commands.recv_timeout(left) {
                Ok(command) => self.command(command),
                Err(_) => return,
            }
        }
    }

    fn command(&mut self, command: Command) {
        let gone = || Reply::Error { message: "the domain is being destroyed".into() };
        match command {
            Command::Ask(_, answer) if self.closing => answer(gone()),
            Command::Ask(request, answer) => self.ask(request, answer),
            Command::Failed(place, connection, e) => self.todo(&place, Todo::Fail(connection, e)),
            Command::Back(place, device, after) => self.back(&place, device, after),
            Command::Opened(place, opened) => self.opened(&place, opened),
            Command::Closed(place) if self.closing => drop(self.going.remove(&place)),
            Command::Closed(place) => self.closed(&place),
            Command::Tried(_, _, answer, _) if self.closing => answer(gone()),
            Command::Tried(place, disc, answer, tried) => self.changed(&place, disc, answer, tried),
            Command::Halt(told) => self.halt(told),
            Command::Offer(told) => {
                let _ = told.send(self.offer());
            }
            Command::Close => self.closing = true,
        }
    }

    fn wait(&self) {
        let mut fds = vec![PollFd::new(self.line.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.store.iter().map(|store| PollFd::new(store.as_fd(), PollFlags::POLLIN)));
        let again = self.store.is_none().then_some(self.again);
        let settling = self.going.values().any(|entry| entry.gone.is_some());
        let soon = settling.then(|| Instant::now() + SETTLING);
        let until = self.entries.values().filter_map(Entry::until).chain(again).chain(soon).min();
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
        if self.store.take().is_some() {
            tracing::warn!("the store is gone, the devices go on as they are: {why}");
            self.again = Instant::now() + PAUSE;
        }
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
    pub(super) fn tell(&mut self, place: &Place, talk: impl FnOnce(&mut Client) -> Result<(), Error>) {
        if let Err(e) = self.talk(talk) {
            limited!(warn, "{place}: {e}");
        }
    }
}
