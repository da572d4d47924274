//! Devices: `disk=`, `vif=` and `channel=`, and the same words behind `block-attach` and its siblings.

mod channel;
mod disk;
mod disk_words;
pub mod image;
mod params;
mod rate;
pub mod table;
#[cfg(test)]
mod tests;
pub mod vdev;
mod vif;

pub use disk::format;
pub use vif::{read_mac, show_mac};

use crate::xlcfg::schema::Settings;
use crate::xlcfg::{Diag, Kind, Pos, Value, XlConf};
use params::Params;
use std::collections::HashSet;
use std::sync::Arc;
use xen_emu_api::device::{ChannelConnection, Device, VifConfig};

/// What messages call the words of a command.
pub const COMMAND_LINE: &str = "command line";

/// A device, where it stands, and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The device.
    pub device: Device,
    /// For messages about what it needs.
    pub at: Pos,
    /// What is possible but strange.
    pub warnings: Vec<Diag>,
}

/// All devices of a configuration, in the order of the keys. Nothing is looked at but the names in /dev.
pub fn all(settings: &Settings) -> Result<Vec<Placed>, Diag> {
    let disk = |value: &Value| match &value.kind {
        Kind::Text(text) => disk::parse([text.as_str()], &value.inside()),
        _ => disk::disk(&params("disk", value)?),
    };
    let mut placed = settings.list("disk")?.iter().map(disk).collect::<Result<Vec<_>, _>>()?;
    let vifs =
        settings.list("vif")?.iter().map(|value| params("vif", value)).collect::<Result<Vec<_>, _>>()?;
    placed.extend(vifs_of(&vifs, &settings.host)?);
    for (devid, value) in (1..).zip(settings.list("channel")?) {
        placed.push(channel::channel(&params("channel", value)?, devid)?);
    }
    check_unique(&mut placed)?;
    Ok(placed)
}

fn params(kind: &'static str, value: &Value) -> Result<Params, Diag> {
    match &value.kind {
        Kind::Text(text) => Ok(Params::split(kind, text, &value.inside())),
        Kind::Map(entries) => Params::map(kind, &value.pos, entries),
        _ => Err(value.pos.error(format!("a {kind} is described by a string"))),
    }
}

/// A vif's number is its place in the list, unless another one claims that.
fn vifs_of(list: &[Params], host: &XlConf) -> Result<Vec<Placed>, Diag> {
    let mut taken = HashSet::new();
    for params in list {
        taken.extend(vif::given_devid(params)?);
    }
    let mut number = |place: u32| {
        let devid = std::iter::once(place).chain(0..).find(|devid| taken.insert(*devid));
        devid.unwrap_or(place)
    };
    let one = |(place, params): (u32, &Params)| {
        let devid = if params.text("devid").is_some() { 0 } else { number(place) };
        vif::vif(params, devid, host)
    };
    (0..).zip(list).map(one).collect()
}

/// No two devices of one kind have a number in common, no two disks a name, no two channels a name or a socket.
fn check_unique(placed: &mut [Placed]) -> Result<(), Diag> {
    let mut seen: Vec<Device> = Vec::new();
    for Placed { device, at, warnings } in placed {
        for other in &seen {
            if let Some(what) = clash(other, device) {
                return Err(at.error(what));
            }
            warnings.extend(doubtful(other, device).map(|what| at.error(what)));
        }
        seen.push(device.clone());
    }
    Ok(())
}

/// Why `new` cannot stand beside `old`.
pub fn clash(old: &Device, new: &Device) -> Option<String> {
    match (old, new) {
        (Device::Disk(a), Device::Disk(b)) if a.devid == b.devid || a.vdev == b.vdev => {
            let image = a.target.as_ref().map_or_else(|| "empty".into(), |path| path.display().to_string());
            Some(format!("disk: vdev {} is taken by another disk ({image})", b.vdev))
        }
        (Device::Vif(a), Device::Vif(b)) if a.devid == b.devid => {
            Some(format!("vif: devid {} is taken by another vif ({})", b.devid, show_mac(&a.mac)))
        }
        (Device::Channel(a), Device::Channel(b)) if a.name == b.name || a.devid == b.devid => {
            Some(format!("channel: the name {} is taken by another channel", b.name))
        }
        (Device::Channel(a), Device::Channel(b)) => match &b.connection {
            ChannelConnection::Socket { path } if a.connection == b.connection => {
                Some(format!("channel: the socket {} is taken by channel {}", path.display(), a.name))
            }
            _ => None,
        },
        _ => None,
    }
}

/// What is strange about `new` beside `old`, and yet may be meant.
pub fn doubtful(old: &Device, new: &Device) -> Option<String> {
    match (old, new) {
        (Device::Vif(a), Device::Vif(b)) if a.mac == b.mac => {
            Some(format!("vif: two network cards have the address {}", show_mac(&b.mac)))
        }
        _ => None,
    }
}

/// Only this host drives devices.
fn own_backend(params: &Params) -> Result<(), Diag> {
    match params.text("backend") {
        None | Some("0" | "Domain-0") => Ok(()),
        Some(other) => {
            let why = "driver domains are not supported: leave it out";
            Err(params.error("backend", format!("backend `{other}`: {why}")))
        }
    }
}

/// Whether the host has what a device needs; a warning is what is possible but strange.
///
/// # Errors
/// One line.
pub fn check_host(device: &Device) -> Result<Option<String>, String> {
    match device {
        Device::Disk(disk) => image::check(disk),
        Device::Vif(VifConfig { script: Some(script), .. }) => image::check_script(script).map(|()| None),
        Device::Vif(_) | Device::Channel(_) => Ok(None),
    }
}

/// A disk from the words of a command.
pub fn disk_of(words: &[String]) -> Result<Placed, Diag> {
    disk::parse(words.iter().map(String::as_str), &command_line())
}

/// A vif from the words of a command: separate, with commas, or both. Its number is the lowest that `taken` has not.
pub fn vif_of(words: &[String], taken: &[u32], host: &XlConf) -> Result<Placed, Diag> {
    let params = Params::split("vif", &words.join(","), &command_line());
    let devid = (0..).find(|devid| !taken.contains(devid)).unwrap_or_default();
    vif::vif(&params, devid, host)
}

/// A channel from the words of a command. Its number is the lowest from 1 on that `taken` has not.
pub fn channel_of(words: &[String], taken: &[u32]) -> Result<Placed, Diag> {
    let params = Params::split("channel", &words.join(","), &command_line());
    let devid = (1..).find(|devid| !taken.contains(devid)).unwrap_or(1);
    channel::channel(&params, devid)
}

fn command_line() -> Pos {
    Pos { source: Arc::from(COMMAND_LINE), line: 1, column: 1 }
}
