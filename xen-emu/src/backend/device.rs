//! The seam between the xenbus life cycle, which is the same for all PV devices ([`super::bus`]), and a kind of
//! device, which is one folder beside this file.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use vm_memory::VolatileSlice;
use xen_domain::gnttab::Grants;
use xen_domain::mem::{Fault, Gpa, GuestMem};
use xen_emu_api::device::DiskFormat;

/// Guest memory with pieces that system calls of the host can use in place.
pub trait GuestRam: GuestMem + Send + Sync {
    /// `len` bytes at `gpa`, which lie within one page. The guest changes them at any time.
    ///
    /// # Errors
    /// No RAM there.
    fn slice(&self, gpa: Gpa, len: usize) -> Result<VolatileSlice<'_>, Fault>;
}

/// Nodes to be written below the backend's (or, where said, the frontend's) directory.
pub type Nodes = Vec<(String, String)>;

/// The frontend's directory as it was read once, when it became Initialised or Connected: paths below it and values.
#[derive(Clone, Debug, Default)]
pub struct Frontend {
    /// Path below the frontend's directory, such as `queue-0/ring-ref`, and value.
    pub nodes: BTreeMap<String, String>,
}

impl Frontend {
    /// A node's value, parsed; `None` if it is missing.
    ///
    /// # Errors
    /// It is there and makes no sense.
    pub fn get<T: FromStr>(&self, path: &str) -> Result<Option<T>, DeviceError> {
        let Some(value) = self.nodes.get(path) else { return Ok(None) };
        match value.trim().parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(DeviceError(format!("the frontend's {path} makes no sense: {value:?}"))),
        }
    }

    /// A node that has to be there.
    ///
    /// # Errors
    /// It is missing or makes no sense.
    pub fn need<T: FromStr>(&self, path: &str) -> Result<T, DeviceError> {
        self.get(path)?.ok_or_else(|| DeviceError(format!("the frontend has not written {path}")))
    }

    /// A flag node: there and not 0.
    pub fn flag(&self, path: &str) -> bool {
        self.nodes.get(path).is_some_and(|value| !matches!(value.trim(), "" | "0"))
    }
}

/// Why a device cannot go on, in one line; the bus writes it to the backend's `error` node and to the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);

/// One event channel between a frontend and us. Dropping it closes our end.
pub struct EventChannel {
    /// Eventfd that counts the guest's notifications.
    pub kick: OwnedFd,
    /// Eventfd that notifies the guest.
    pub notify: OwnedFd,
    /// Closes our end when dropped.
    pub end: Box<dyn Send + Sync>,
}

/// Where event channels come from.
pub trait Channels: Send + Sync {
    /// Binds to a port that the guest has left unbound for domain 0.
    ///
    /// # Errors
    /// It is no such port, or the host has no descriptors left.
    fn bind(&self, port: u32) -> Result<EventChannel, DeviceError>;

    /// Whether the guest still has that port, though our end may be closed.
    fn is_open(&self, _port: u32) -> bool {
        false
    }
}

/// How a device's threads say that it cannot go on.
pub type Fail = Arc<dyn Fn(DeviceError) + Send + Sync>;

/// What a device gets to connect with.
#[derive(Clone)]
pub struct Connection {
    /// The guest.
    pub domid: u16,
    /// What the frontend wrote.
    pub front: Frontend,
    /// The guest's memory.
    pub memory: Arc<dyn GuestRam>,
    /// The guest's grants.
    pub grants: Arc<dyn Grants>,
    /// Event channels.
    pub channels: Arc<dyn Channels>,
    /// A device that has to be closed from its own threads says so here; the bus closes it, writing the reason.
    pub fail: Fail,
}

/// What goes into a CD drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disc {
    /// The image, absolute.
    pub target: PathBuf,
    /// Format of the image.
    pub format: DiskFormat,
}

/// The host's end of one PV device. The bus calls these from one thread, never two at a time.
pub trait Device: Send {
    /// Nodes below the backend's directory, written before the device is offered (InitWait): features and limits.
    fn advertise(&self) -> Nodes;

    /// Nodes below the frontend's directory for the guest to read but not to write, written with
    /// [`Device::advertise`].
    fn tells(&self) -> Nodes {
        Nodes::new()
    }

    /// The frontend is ready: map its rings, start threads. Nodes to be written below the backend's directory
    /// together with Connected come back. On an error nothing is left of the attempt.
    ///
    /// # Errors
    /// The frontend has written nonsense, or the host cannot.
    fn connect(&mut self, connection: Connection) -> Result<Nodes, DeviceError>;

    /// Nodes below the frontend's directory that it may change while connected, and that [`Device::heard`] is told of.
    fn listens(&self) -> &'static [&'static str] {
        &[]
    }

    /// The frontend, which is connected, has changed one of the nodes of [`Device::listens`].
    fn heard(&mut self, _path: &str, _value: &str) {}

    /// The frontend has closed in order: answer what it had asked by then. [`Device::disconnect`] follows.
    fn finish(&mut self) {}

    /// Taken away by force: let go of the host's end at once. A frontend that still asks gets errors, where it
    /// would wait for an answer else; [`Device::disconnect`] follows later.
    fn abandon(&mut self) {
        self.disconnect();
    }

    /// The frontend is gone or closes: finish or abandon what is under way, join all threads, give back every pin
    /// and event channel. Connecting again afterwards must work. Idempotent.
    fn disconnect(&mut self);

    /// Grant references of the rings, while connected.
    fn rings(&self) -> Vec<u32>;

    /// What it has done since it was made: names and counts.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Path of a pty or socket, for lists and the store.
    fn path(&self) -> Option<String> {
        None
    }

    /// The image has another size now, or is to be made `bytes` long. The nodes that come back are written; when
    /// connected, `state` is written again with them, which makes the frontend read them.
    ///
    /// # Errors
    /// It has no size, or cannot be resized.
    fn resize(&mut self, _bytes: Option<u64>) -> Result<Nodes, DeviceError> {
        Err(DeviceError("this kind of device has no size".into()))
    }

    /// Put another disc in (`None`: none), connected or not. The nodes that come back are written as by
    /// [`Device::resize`]. On an error the old disc stays.
    ///
    /// # Errors
    /// It takes no discs, or this image cannot be used.
    fn insert(&mut self, _disc: Option<&Disc>) -> Result<Nodes, DeviceError> {
        Err(DeviceError("this kind of device takes no discs".into()))
    }
}
