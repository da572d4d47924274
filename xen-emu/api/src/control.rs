//! The control protocol: JSON lines on `control.sock` in a domain's run directory. One request, one reply;
//! [`Request::Wait`] is answered when the domain shuts down, and the connection closes when it is gone.

use crate::config::DomainConfig;
use crate::device::{Device, DiskFormat};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What may be asked of a domain's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// State, times, memory. Answered with [`Reply::Status`].
    Status,
    /// Its configuration as built. Answered with [`Reply::Config`].
    Config,
    /// Stop all vCPUs; idempotent.
    Pause,
    /// Let all vCPUs run; idempotent.
    Unpause,
    /// End the domain at once.
    Destroy,
    /// Press the power button. An error when the guest cannot hear it.
    PowerButton,
    /// Non-maskable interrupt to one vCPU.
    Nmi {
        /// Xen vcpu_id.
        vcpu: u32,
    },
    /// As if the guest had asked for a reboot.
    Reset,
    /// Answered with [`Reply::Shutdown`] as soon as the domain has shut down.
    Wait,
    /// The process's own log and the guest's console_io output, newest last. Answered with [`Reply::Text`].
    Dmesg,
    /// Add a PV device; undone as a whole if it fails. Answered when its backend waits for the guest.
    Attach {
        /// The device; its id is free.
        device: Device,
    },
    /// Take a PV device away. Answered when the guest has let go, or with an error after a while.
    Detach {
        /// `vbd`, `vif`, `console`.
        kind: String,
        /// Its id.
        devid: u32,
        /// Do not wait for the guest.
        force: bool,
    },
    /// Every PV device with its state. Answered with [`Reply::Devices`].
    Devices,
    /// Make a raw disk's new size known to the guest, after making its file `bytes` long if that is given.
    Resize {
        /// Xen's virtual device number.
        devid: u32,
        /// New size.
        bytes: Option<u64>,
    },
    /// Put a disc into a CD drive, or take it out.
    Media {
        /// Xen's virtual device number.
        devid: u32,
        /// The image, absolute; none = empty.
        target: Option<PathBuf>,
        /// Format of the image.
        format: DiskFormat,
    },
    /// Write an ELF core of the guest, which stands still meanwhile. Answered when it is there.
    DumpCore {
        /// The file, absolute.
        path: PathBuf,
    },
    /// A tree of the process's state. Answered with [`Reply::Text`].
    Describe {
        /// Empty, or a path such as `evtchn/12` or `devices/vbd/51712`.
        path: String,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done.
    Ok,
    /// Refused, with the reason in one line.
    Error {
        /// What is wrong and what would be right.
        message: String,
    },
    /// For [`Request::Status`].
    Status(Box<Status>),
    /// For [`Request::Config`].
    Config(Box<DomainConfig>),
    /// For [`Request::Wait`].
    Shutdown {
        /// Xen's SHUTDOWN_* code.
        reason: u32,
    },
    /// For [`Request::Devices`].
    Devices {
        /// In the order of kind and id.
        devices: Vec<DeviceStatus>,
    },
    /// For [`Request::Dmesg`] and [`Request::Describe`].
    Text {
        /// Lines.
        text: String,
    },
}

/// A PV device as `xlr block-list`, `network-list` and `channel-list` show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// What was configured.
    pub device: Device,
    /// The frontend's XenbusState.
    pub state: u32,
    /// The guest's event channel port; none while not connected, or when a vif has two per queue.
    pub port: Option<u32>,
    /// Grant references of the rings: one for a disk or a channel, TX and RX for a vif.
    pub rings: Vec<u32>,
    /// Path of a channel's pty or socket.
    pub path: Option<String>,
    /// What the backend has done since it was made, by name.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
}

/// A domain as `xlr list` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Domain id.
    pub domid: u16,
    /// Name.
    pub name: String,
    /// UUID.
    pub uuid: String,
    /// The domain's process.
    pub pid: u32,
    /// All vCPUs are stopped by `pause`.
    pub paused: bool,
    /// SHUTDOWN_* code once the guest has shut down.
    pub shutdown: Option<u32>,
    /// The process is tearing down.
    pub dying: bool,
    /// RAM the guest has now, KiB (after ballooning).
    pub memory_kib: u64,
    /// RAM the guest may have, KiB.
    pub max_memory_kib: u64,
    /// Unix time of the build, seconds with fraction.
    pub start_time: f64,
    /// `kernel` (KVM_XEN) or `portable`.
    pub backend: String,
    /// Path of the console pty.
    pub tty: Option<String>,
    /// Every vCPU that exists.
    pub vcpus: Vec<VcpuStatus>,
}

/// One vCPU as `xlr vcpu-list` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuStatus {
    /// Xen vcpu_id.
    pub id: u32,
    /// Has been brought up by the guest.
    pub online: bool,
    /// Uses a host CPU right now (its thread is running, not sleeping).
    pub running: bool,
    /// Host CPU it was last seen on.
    pub cpu: Option<u32>,
    /// Time used by its thread, nanoseconds.
    pub time_ns: u64,
    /// Host CPUs it may use; empty = all.
    pub affinity: Vec<usize>,
}

impl Status {
    /// CPU time of all vCPUs, nanoseconds.
    pub fn time_ns(&self) -> u64 {
        self.vcpus.iter().map(|v| v.time_ns).sum()
    }
}

/// Write one message as a JSON line.
pub fn send<T: Serialize>(mut to: impl Write, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// A connection to a domain's process.
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connect to `control.sock` at `path`. Requests are answered within 10 s, those that wait for a guest or open
    /// images within 60 s, or end with a timeout error; [`Request::Wait`] and [`Request::DumpCore`] take as long as they take.
    pub fn open(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Ask and await the reply. [`Reply::Error`] comes back as an [`io::Error`] with its message.
    pub fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        let limit = match request {
            Request::Wait | Request::DumpCore { .. } => None,
            Request::Attach { .. } | Request::Detach { .. } | Request::Media { .. } => Some(60),
            _ => Some(10),
        };
        let limit = limit.map(Duration::from_secs);
        self.stream.get_ref().set_read_timeout(limit)?;
        send(self.stream.get_ref(), request)?;
        match self.receive()? {
            Some(Reply::Error { message }) => Err(io::Error::other(message)),
            Some(reply) => Ok(reply),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The next message; `None` when the domain's process is gone.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }

    /// Block until the process has closed its end, that is, until it is gone.
    pub fn wait_gone(&mut self) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(None)?;
        while self.stream.read_line(&mut String::new())? != 0 {}
        Ok(())
    }
}
