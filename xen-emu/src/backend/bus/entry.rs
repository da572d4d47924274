//! One device as the bus has it.

use super::Answer;
use super::busy::Todo;
use super::coming::Opened;
use crate::backend::device::{self, Connection, DeviceError, Disc, Frontend, Nodes};
use crate::backend::script::Hotplug;
use std::collections::VecDeque;
use std::time::Instant;
use xen_abi::io::xenbus::XenbusState;
use xen_domain::xenbus::Backend;
use xen_emu_api::control::Reply;
use xen_emu_api::device::Device;

/// One device.
pub(super) struct Entry {
    pub config: Device,
    /// [`Nothing`] while it is away.
    pub device: Box<dyn device::Device>,
    /// It does something beside the bus.
    pub away: bool,
    /// Nothing is left of it that a guest which begins anew would have to fear.
    pub halted: bool,
    /// What is to be done when it is back.
    pub todo: VecDeque<Todo>,
    /// What made that it stands on; goes after it.
    pub script: Option<Hotplug>,
    pub backend: Backend,
    pub listens: &'static [&'static str],
    /// The frontend's state, as seen last.
    pub state: XenbusState,
    /// What the frontend wrote, while connected.
    pub front: Option<Frontend>,
    /// The frontend has closed, and this long requests may still come.
    pub lingers: Option<Instant>,
    /// How often it was connected.
    pub connections: u64,
    /// Nodes to be written with the next state.
    pub nodes: Nodes,
    /// Why the device has failed.
    pub error: Option<DeviceError>,
    /// What is to be put in by the next [`Action::Reconfigure`]s, and who waits for it.
    pub discs: VecDeque<(Option<Disc>, Answer)>,
    /// Taken away by force; its nodes go then at the latest.
    pub abandoned: Option<Instant>,
    /// The guest's ports, since it was connected last; once disconnected, those that it still has.
    pub ports: Vec<u32>,
    /// Its nodes are gone; until then at the latest the guest has noticed.
    pub gone: Option<Instant>,
    /// What is to come in its place.
    pub next: Option<(Device, Answer)>,
    /// Who waits for it to go, and until when.
    pub leaving: Vec<(Instant, Answer)>,
}

impl Entry {
    /// One that is not offered yet.
    pub fn new(config: Device, Opened { device, script }: Opened) -> Entry {
        Entry {
            config,
            listens: device.listens(),
            device,
            away: false,
            halted: true,
            todo: VecDeque::new(),
            script,
            backend: Backend::default(),
            state: XenbusState::INITIALISING,
            front: None,
            lingers: None,
            connections: 0,
            nodes: Nodes::new(),
            error: None,
            discs: VecDeque::new(),
            abandoned: None,
            ports: Vec::new(),
            gone: None,
            next: None,
            leaving: Vec::new(),
        }
    }

    /// Answers whoever waits for it to go.
    pub fn answer(&mut self, reply: &Reply) {
        self.leaving.drain(..).for_each(|(_, answer)| answer(reply.clone()));
    }

    /// Answers whoever waits for anything of it, since it goes.
    pub fn refuse(&mut self, why: &Reply) {
        self.answer(why);
        let (discs, next) = (self.discs.drain(..), self.next.take());
        discs
            .map(|(_, answer)| answer)
            .chain(next.map(|(_, answer)| answer))
            .for_each(|answer| answer(why.clone()));
    }

    /// Why its connection is about to end, by its own word.
    pub fn failing(&self) -> Option<&DeviceError> {
        self.todo.iter().find_map(|todo| match todo {
            Todo::Fail(connection, e) if *connection == self.connections => Some(e),
            _ => None,
        })
    }

    /// Nobody waits for the guest to let go of it any longer.
    pub fn overdue(&self, now: Instant) -> bool {
        !self.away && self.abandoned.is_some_and(|until| until <= now)
    }

    /// When there is something to do for it at the latest.
    pub fn until(&self) -> Option<Instant> {
        let abandoned = self.abandoned.filter(|_| !self.away);
        self.leaving.iter().map(|(until, _)| *until).chain(abandoned).chain(self.lingers).min()
    }

    /// Whoever has waited long enough hears so.
    pub fn expire(&mut self, now: Instant) {
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
pub(super) struct Nothing;

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
