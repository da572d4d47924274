//! Devices that come and go: opening an image, closing it, or running a script takes as long as the host likes, so a
//! thread of its own does that and the bus goes on with the others.

use super::entry::{Entry, Nothing};
use super::nodes::{self, Place};
use super::requests::{PATIENCE, label, named};
use super::serve::Server;
use super::{Answer, Command, Connect, Open};
use crate::backend::device::{self, DeviceError, Disc};
use crate::backend::script::{self, Hotplug};
use crate::guest::lock;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Instant;
use xen_domain::xenbus::Event;
use xen_emu_api::control::Reply;
use xen_emu_api::device::{Device, DiskConfig};
use xenstored::client::Client;

/// A device that was opened, and the script that made what it stands on, which goes last.
pub(super) struct Opened {
    pub device: Box<dyn device::Device>,
    pub script: Option<Hotplug>,
}

/// One that is being opened, and who waits for it.
pub(super) struct Coming {
    config: Device,
    answer: Answer,
}

impl Coming {
    /// It does not come any more.
    pub fn refuse(self, why: &Reply) {
        (self.answer)(why.clone());
    }
}

/// Something to be carried out.
pub(super) type Work = Box<dyn FnOnce() + Send>;

/// A thread beside the bus, that carries out what it is sent: should there be none, nothing is lost with it.
pub(super) fn beside(name: &str) -> Result<Sender<Work>, DeviceError> {
    let (work, todo) = mpsc::channel::<Work>();
    let body = move || todo.into_iter().for_each(|work| work());
    let started = thread::Builder::new().name(name.into()).spawn(body);
    started.map(|_| work).map_err(|e| DeviceError(format!("no thread: {e}")))
}

impl Server {
    /// Attaches a device, now or when the one in its place that was taken away by force is gone. The answer comes when its backend waits for the guest, or has failed.
    pub(super) fn attach(&mut self, config: Device, answer: Answer) {
        let (place, name) = (Place::of(self.wiring.domid, &config), label(&config));
        let leaves = self.entries.get_mut(&place).filter(|entry| entry.abandoned.is_some());
        if let Some(entry) = leaves.or(self.going.get_mut(&place)).filter(|entry| entry.next.is_none()) {
            entry.next = Some((config, answer));
            return;
        }
        let what = match self.entries.get(&place).or(self.going.get(&place)) {
            Some(entry) if entry.backend.online => "exists already",
            Some(_) => "is still being detached",
            None if self.coming.contains_key(&place) => "is being attached already",
            None => {
                self.coming.insert(place.clone(), Coming { config: config.clone(), answer });
                if let Err(e) = self.open(&place, config) {
                    self.opened(&place, Err(e));
                }
                return;
            }
        };
        answer(Reply::Error { message: format!("{name} {what}") });
    }

    fn open(&mut self, place: &Place, config: Device) -> Result<(), DeviceError> {
        if config.script().is_some() {
            self.talk(|store| nodes::prepare(store, place, &config))?;
        }
        let (open, connect) = (self.wiring.open.clone(), self.wiring.connect.clone());
        let (line, place) = (self.line.clone(), place.clone());
        let opening = move || {
            let opened = opened(&*open, &*connect, &place, &config);
            line.send(Command::Opened(place, opened));
        };
        beside("opening").map(|thread| drop(thread.send(Box::new(opening))))
    }

    /// A device has been opened, or not.
    pub(super) fn opened(&mut self, place: &Place, opened: Result<Opened, DeviceError>) {
        let Some(Coming { config, answer }) = self.coming.remove(place) else { return };
        let (name, scripted) = (label(&config), config.script().is_some());
        let taken = opened.and_then(|opened| self.take_up(place.clone(), config, opened));
        answer(match taken {
            Ok(()) => {
                tracing::info!("{name}: attached");
                Reply::Ok
            }
            Err(e) => {
                if scripted {
                    self.tell(place, |store| store.transaction(|store| nodes::remove(store, place)));
                }
                Reply::Error { message: named(e, &name).0 }
            }
        });
    }

    /// The device is gone for good; its nodes go when the host's end is gone.
    pub(super) fn remove(&mut self, place: &Place) {
        let Some(mut entry) = self.entries.remove(place) else { return };
        lock(&self.configs).retain(|one| *one != entry.config);
        let device = std::mem::replace(&mut entry.device, Box::new(Nothing));
        let mut opened = Opened { device, script: entry.script.take() };
        let gone = Reply::Error { message: format!("{} is gone", label(&entry.config)) };
        entry.discs.drain(..).for_each(|(_, answer)| answer(gone.clone()));
        self.going.insert(place.clone(), entry);
        let (line, whose) = (self.line.clone(), place.clone());
        let Ok(thread) = beside("closing") else {
            drop(opened);
            return self.closed(place);
        };
        drop(thread.send(Box::new(move || {
            opened.device.disconnect();
            drop(opened);
            line.send(Command::Closed(whose));
        })));
    }

    /// The image is free and the host's end gone when others see the nodes go.
    pub(super) fn closed(&mut self, place: &Place) {
        let Some(listens) = self.going.get(place).map(|entry| entry.listens) else { return };
        self.forget(place, listens);
        tracing::info!("{place}: detached");
        if let Some(entry) = self.going.get_mut(place) {
            entry.answer(&Reply::Ok);
            // One that has said nothing yet may be about to write into the nodes.
            let patience = if entry.ports.is_empty() { self.wiring.grace } else { PATIENCE };
            entry.gone = Some(Instant::now() + patience);
        }
    }

    /// Another device in its place would be taken for the old one by a guest that has not noticed yet: Linux closes its
    /// ports when it does. Where it had closed them before, nothing shows it.
    pub(super) fn settle(&mut self, now: Instant) {
        let channels = &self.wiring.channels;
        let noticed = |entry: &Entry| {
            !entry.ports.is_empty() && !entry.ports.iter().any(|port| channels.is_open(*port))
        };
        let settled = |entry: &Entry| entry.gone.is_some_and(|until| until <= now || noticed(entry));
        let places: Vec<_> = self.going.iter().filter(|(_, entry)| settled(entry)).collect();
        let places: Vec<_> = places.into_iter().map(|(place, _)| place.clone()).collect();
        for mut entry in places.iter().filter_map(|place| self.going.remove(place)).collect::<Vec<_>>() {
            entry.next.take().into_iter().for_each(|(config, answer)| self.attach(config, answer));
        }
    }

    /// Another disc: it is opened once beside the bus, so that what takes its time is over when the drive opens it.
    pub(super) fn change(&mut self, devid: u32, disc: Option<Disc>, answer: Answer) {
        let place = match self.find("vbd", devid) {
            Ok(place) => place,
            Err(e) => return answer(Reply::Error { message: e.0 }),
        };
        let Some(Entry { config: Device::Disk(drive), .. }) = self.entries.get(&place) else { return };
        let Some(Disc { target, format }) = disc.clone().filter(|_| drive.cdrom) else {
            return self.changed(&place, disc, answer, Ok(()));
        };
        let tried = DiskConfig { target: Some(target), format, script: None, ..drive.clone() };
        let (open, line) = (self.wiring.open.clone(), self.line.clone());
        let thread = match beside("opening") {
            Ok(thread) => thread,
            Err(e) => return self.changed(&place, disc, answer, Err(e)),
        };
        drop(thread.send(Box::new(move || {
            let tried = open(&Device::Disk(tried)).map(drop);
            line.send(Command::Tried(place, disc, answer, tried));
        })));
    }

    /// The disc can be opened, or not.
    pub(super) fn changed(
        &mut self,
        place: &Place,
        disc: Option<Disc>,
        answer: Answer,
        tried: Result<(), DeviceError>,
    ) {
        let Some(entry) = self.entries.get_mut(place) else {
            return answer(Reply::Error { message: format!("{place}: the drive is gone") });
        };
        if let Err(e) = tried {
            return answer(Reply::Error { message: named(e, &label(&entry.config)).0 });
        }
        entry.discs.push_back((disc, answer));
        self.on(place, Event::Reconfigure);
    }
}

/// Looks at a disk before the domain's devices are attached, as its script makes it: that is run for this alone, and what
/// it has made and its nodes are gone afterwards.
///
/// # Errors
/// The script's.
pub fn with_script<T>(
    store: &mut Client,
    domid: u16,
    disk: &DiskConfig,
    look: impl FnOnce(&DiskConfig) -> T,
) -> Result<T, DeviceError> {
    let config = Device::Disk(disk.clone());
    let Some(scripted) = script::of(&config) else { return Ok(look(disk)) };
    let place = Place::of(domid, &config);
    let failed = |e| DeviceError(format!("store: {e}"));
    nodes::prepare(store, &place, &config).map_err(failed)?;
    let done = Hotplug::add(&place, scripted, store).map(|(_script, made)| look(&made));
    store.transaction(|store| nodes::remove(store, &place)).map_err(failed)?;
    done
}

fn opened(open: &Open, connect: &Connect, place: &Place, config: &Device) -> Result<Opened, DeviceError> {
    let Some(disk) = script::of(config) else { return Ok(Opened { device: open(config)?, script: None }) };
    let mut store = connect().map_err(|e| DeviceError(format!("store: {e}")))?;
    let (script, made) = Hotplug::add(place, disk, &mut store)?;
    Ok(Opened { device: open(&Device::Disk(made))?, script: Some(script) })
}
