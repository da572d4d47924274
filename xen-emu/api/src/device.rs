//! The PV devices of a domain, after all parsing: what `disk=`, `vif=` and `channel=` become.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One PV device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Device {
    /// `disk=`; the store calls it `vbd`.
    Disk(DiskConfig),
    /// `vif=`
    Vif(VifConfig),
    /// `channel=`; the store calls it `console`, with a device id from 1 on.
    Channel(ChannelConfig),
}

impl Device {
    /// The name of its kind in the store: `vbd`, `vif`, `console`.
    pub fn kind(&self) -> &'static str {
        match self {
            Device::Disk(_) => "vbd",
            Device::Vif(_) => "vif",
            Device::Channel(_) => "console",
        }
    }

    /// Its hotplug script.
    pub fn script(&self) -> Option<&str> {
        match self {
            Device::Disk(disk) => disk.script.as_deref(),
            Device::Vif(vif) => vif.script.as_deref(),
            Device::Channel(_) => None,
        }
    }

    /// Its number among those of its kind.
    pub fn devid(&self) -> u32 {
        match self {
            Device::Disk(disk) => disk.devid,
            Device::Vif(vif) => vif.devid,
            Device::Channel(channel) => channel.devid,
        }
    }
}

/// Format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// The file or block device is the disk.
    Raw,
    /// qcow2, with its backing files.
    Qcow2,
}

/// How writes reach the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskCache {
    /// O_DIRECT where the image's file system can, else as `Writeback`.
    #[default]
    None,
    /// Through the host's page cache; a flush of the guest reaches the disk.
    Writeback,
    /// Every write reaches the disk before it is answered.
    Writethrough,
    /// Flushes are answered without being done: the image is lost with the host's power.
    Unsafe,
}

/// One `disk=` entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// As the guest sees it, canonical: `xvda`, `xvda1`, `hdc`.
    pub vdev: String,
    /// Xen's virtual device number of `vdev` (51712 for `xvda`).
    pub devid: u32,
    /// The image, absolute; none = a CD drive without a disc.
    pub target: Option<PathBuf>,
    /// Format of the image.
    pub format: DiskFormat,
    /// The guest may write.
    pub writable: bool,
    /// A CD-ROM drive.
    pub cdrom: bool,
    /// The guest may take it out.
    pub removable: bool,
    /// Discard is offered.
    pub discard: bool,
    /// How writes reach the image.
    pub cache: DiskCache,
    /// Logical sector size, 512 or 4096; none = what the image has.
    pub sector_size: Option<u32>,
    /// Persistent grants are offered.
    pub persistent: bool,
    /// No lock is taken: another domain may have the image open for writing (`w!`).
    pub force: bool,
    /// Hotplug script to run, if one was given.
    pub script: Option<String>,
    /// `backendtype` as written, for the store: `phy`, `qdisk`, `tap`.
    pub backendtype: Option<String>,
    /// The frontend may trust the backend; else it copies all data through pages of its own.
    #[serde(default = "yes")]
    pub trusted: bool,
}

fn yes() -> bool {
    true
}

/// What a vif is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "kebab-case")]
pub enum VifAttach {
    /// A TAP interface that is a port of this bridge.
    Bridge {
        /// The bridge's name.
        bridge: String,
        /// Make the bridge if it is missing.
        create: bool,
    },
    /// A TAP interface and nothing else.
    Tap,
    /// User-mode networking by passt, without root.
    User {
        /// Ports of the host that lead into the guest.
        forwards: Vec<Forward>,
        /// The guest reaches the host's own 127.0.0.1 at its gateway's address.
        #[serde(default)]
        map_gw: bool,
    },
}

/// `hostfwd=tcp:[ADDR:]HOSTPORT:GUESTPORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// UDP instead of TCP.
    pub udp: bool,
    /// Address of the host to listen at; none = all.
    pub address: Option<std::net::IpAddr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

/// `rate=`: so many bytes in each interval, from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Credit per interval, bytes.
    pub bytes: u64,
    /// Length of an interval, microseconds.
    pub interval_us: u32,
}

/// One `vif=` entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VifConfig {
    /// 0 for the first.
    pub devid: u32,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// What it is attached to.
    pub attach: VifAttach,
    /// Name of the TAP interface; none = `vifDOMID.DEVID`.
    pub ifname: Option<String>,
    /// MTU told to the guest; none = what the bridge has, else 1500.
    pub mtu: Option<u16>,
    /// Limit of what the guest sends.
    pub rate: Option<Rate>,
    /// Hotplug script to run, if one was given.
    pub script: Option<String>,
    /// The host's interface that the script is to route through.
    pub gatewaydev: Option<String>,
    /// Addresses, for the script and the store.
    pub ip: Vec<String>,
    /// VLANs, for the script: one untagged or a list, in its own syntax.
    #[serde(default)]
    pub vlan: Option<String>,
    /// Most queues offered; none = one per vCPU.
    pub queues: Option<u32>,
    /// The frontend may trust the backend.
    pub trusted: bool,
}

/// Where a channel comes out on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "connection", rename_all = "kebab-case")]
pub enum ChannelConnection {
    /// A pty; its path is in the store.
    Pty,
    /// A listening Unix socket.
    Socket {
        /// Its path.
        path: PathBuf,
    },
}

/// One `channel=` entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelConfig {
    /// From 1 on: 0 is the primary console.
    pub devid: u32,
    /// How the guest finds it (`org.qemu.guest_agent.0`).
    pub name: String,
    /// Where it comes out.
    pub connection: ChannelConnection,
}
