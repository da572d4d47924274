//! What may be asked of the bus.

use super::Answer;
use super::entry::Entry;
use super::nodes::Place;
use super::serve::Server;
use crate::backend::device::{DeviceError, Disc};
use std::time::{Duration, Instant};
use xen_domain::xenbus::Event;
use xen_emu_api::control::{DeviceStatus, Reply, Request};
use xen_emu_api::device::Device;

/// How long a guest may take to let go of a device.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A device for people.
pub(super) fn label(config: &Device) -> String {
    match config {
        Device::Disk(disk) => format!("disk {}", disk.vdev),
        Device::Vif(vif) => format!("vif {}", vif.devid),
        Device::Channel(channel) => format!("channel {}", channel.name),
    }
}

impl Server {
    pub(super) fn ask(&mut self, request: Request, answer: Answer) {
        let reply = match request {
            Request::Attach { device } => return self.attach(device, answer),
            Request::Detach { kind, devid, force } => match self.detach(&kind, devid, force, answer) {
                Ok(()) => return,
                Err((e, answer)) => return answer(Reply::Error { message: e.0 }),
            },
            Request::Devices => {
                Ok(Reply::Devices { devices: self.present().map(|(_, entry)| status(entry)).collect() })
            }
            Request::Resize { devid, bytes } => return self.resize(devid, bytes, answer),
            Request::Media { devid, target, format } => {
                let disc = target.map(|target| Disc { target, format });
                return self.change(devid, disc, answer);
            }
            Request::Describe { path } => Ok(Reply::Text { text: self.describe(&path) }),
            _ => Err(DeviceError("this is no request about devices".into())),
        };
        answer(reply.unwrap_or_else(|e| Reply::Error { message: e.0 }));
    }

    /// What there is to say of the devices whose names, such as `vbd/51712`, begin with `path`.
    fn describe(&self, path: &str) -> String {
        if path.is_empty() && self.entries.is_empty() {
            return "devices: none\n".into();
        }
        let meant = |place: &Place| {
            let name = format!("{}/{}", place.kind, place.devid);
            path.is_empty() || path == place.kind || path == name
        };
        let entries = self.entries.iter().filter(|(place, _)| meant(place));
        entries.map(|(place, entry)| described(place, entry)).collect()
    }

    /// Those that nobody has taken away by force.
    fn present(&self) -> impl Iterator<Item = (&Place, &Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.abandoned.is_none())
    }

    pub(super) fn find(&self, kind: &str, devid: u32) -> Result<Place, DeviceError> {
        let meant = |place: &&Place| place.kind == kind && place.devid == devid;
        let found = self.present().map(|(place, _)| place).find(meant);
        found.cloned().ok_or_else(|| DeviceError(format!("the domain has no {kind} {devid}")))
    }

    fn detach(
        &mut self,
        kind: &str,
        devid: u32,
        force: bool,
        answer: Answer,
    ) -> Result<(), (DeviceError, Answer)> {
        let place = match self.find(kind, devid) {
            Ok(place) => place,
            Err(e) => return Err((e, answer)),
        };
        let online = place.back() + "/online";
        if let Err(e) = self.talk(|store| store.write(&online, "0"))
            && !force
        {
            return Err((e, answer));
        }
        if let Some(entry) = self.entries.get_mut(&place) {
            entry.leaving.push((Instant::now() + PATIENCE, answer));
        }
        self.on(&place, if force { Event::Force } else { Event::Online(false) });
        Ok(())
    }

    fn resize(&mut self, devid: u32, bytes: Option<u64>, answer: Answer) {
        let place = match self.find("vbd", devid) {
            Ok(place) => place,
            Err(e) => return answer(Reply::Error { message: e.0 }),
        };
        if let Some(entry) = self.entries.get(&place).filter(|entry| entry.away) {
            let name = label(&entry.config);
            return answer(Reply::Error {
                message: format!("{name} is busy: its image does not answer yet"),
            });
        }
        self.beside(
            &place,
            move |device| device.resize(bytes),
            |server, place, resized| {
                let name = server.entries.get(place).map(|entry| label(&entry.config)).unwrap_or_default();
                answer(match resized {
                    Ok(nodes) => {
                        server.update(place, nodes);
                        Reply::Ok
                    }
                    Err(e) => Reply::Error { message: named(e, &name).0 },
                });
            },
        );
    }
}

/// An error says which device it is about.
pub(super) fn named(e: DeviceError, label: &str) -> DeviceError {
    // Some say it themselves, more or less.
    let said = e.0.split_once(": ").filter(|(who, _)| label.contains(who));
    DeviceError(format!("{label}: {}", said.map_or(e.0.as_str(), |(_, rest)| rest)))
}

fn status(entry: &Entry) -> DeviceStatus {
    let port = |name| entry.front.as_ref().and_then(|front| front.get(name).ok().flatten());
    DeviceStatus {
        device: entry.config.clone(),
        state: entry.state.0,
        port: port("event-channel").or_else(|| port("port")),
        rings: entry.device.rings(),
        path: entry.device.path(),
        counters: entry.device.counters().into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
    }
}

fn described(place: &Place, entry: &Entry) -> String {
    let (phase, front) = (entry.backend.phase, entry.state.0);
    let mut line = format!("devices: {place}: {}, {phase:?}, frontend {front}", label(&entry.config));
    for (name, count) in entry.device.counters() {
        line += &format!(", {name} {count}");
    }
    line + "\n"
}
