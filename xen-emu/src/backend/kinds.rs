//! The kinds of devices: what opens the backend of each. A further kind is one folder beside this file, its
//! configuration in the API, its nodes in [`super::bus`], and one row here.

use super::blk::Blk;
use super::channel::Channel;
use super::device::{self, DeviceError};
use super::net::Vif;
use xen_emu_api::device::Device;

/// What a backend may want to know of its domain.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Domain id.
    pub domid: u16,
    /// vCPUs that exist: more queues make no sense.
    pub vcpus: u32,
}

type Opened = Result<Box<dyn device::Device>, DeviceError>;
type Open = fn(&Device, Facts) -> Option<Opened>;

/// Name in the store, and what opens a backend for a configuration of this kind.
const KINDS: &[(&str, Open)] = &[
    ("vbd", |config, facts| match config {
        Device::Disk(config) => Some(Blk::open(config, facts.vcpus).map(boxed)),
        _ => None,
    }),
    ("vif", |config, facts| match config {
        Device::Vif(config) => Some(Vif::open(facts.domid, config, facts.vcpus).map(boxed)),
        _ => None,
    }),
    ("console", |config, _| match config {
        Device::Channel(config) => Some(Channel::open(config).map(boxed)),
        _ => None,
    }),
];

fn boxed<T: device::Device + 'static>(device: T) -> Box<dyn device::Device> {
    Box::new(device)
}

/// Opens the backend of a configured device.
///
/// # Errors
/// The kind's own, in one line; nothing is left then.
pub fn open(config: &Device, facts: Facts) -> Opened {
    let kind = config.kind();
    let row = KINDS.iter().find(|(name, _)| *name == kind);
    let opened = row.and_then(|(_, open)| open(config, facts));
    opened.unwrap_or_else(|| Err(DeviceError(format!("this version has no backend of kind `{kind}`"))))
}
