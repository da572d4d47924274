//! The nodes of a device as libxl writes them: three directories, the frontend's, the backend's and libxl's copy.

use crate::backend::device;
use crate::backend::script::DIR;
use crate::xenbus_setup::Rights;
use std::path::Path;
use xen_emu_api::device::{
    ChannelConfig, ChannelConnection, Device, DiskConfig, DiskFormat, VifAttach, VifConfig,
};
use xenstored::client::{Batch, Client, Result};
use xenstored::wire::Errno;

/// Where the nodes of one device are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The guest.
    pub domid: u16,
    /// `vbd`, `vif`, `console`.
    pub kind: &'static str,
    /// Number of the device.
    pub devid: u32,
}

impl Place {
    /// Of a configured device.
    pub fn of(domid: u16, config: &Device) -> Place {
        Place { domid, kind: config.kind(), devid: config.devid() }
    }

    /// The frontend's directory.
    pub fn front(&self) -> String {
        format!("/local/domain/{}/device/{}/{}", self.domid, self.kind, self.devid)
    }

    /// The backend's directory.
    pub fn back(&self) -> String {
        format!("/local/domain/0/backend/{}/{}/{}", self.kind, self.domid, self.devid)
    }

    /// The backend's directory as seen from domain 0's: so hotplug scripts know it.
    pub fn seen(&self) -> String {
        format!("backend/{}/{}/{}", self.kind, self.domid, self.devid)
    }

    /// libxl's copy.
    fn copy(&self) -> String {
        format!("/libxl/{}/device/{}/{}", self.domid, self.kind, self.devid)
    }

    /// What has been made for the device above its three directories, innermost first.
    fn parents(&self) -> [String; 4] {
        let Place { domid, kind, .. } = self;
        [
            format!("/local/domain/{domid}/device/{kind}"),
            format!("/local/domain/0/backend/{kind}/{domid}"),
            format!("/local/domain/0/backend/{kind}"),
            format!("/libxl/{domid}/device/{kind}"),
        ]
    }
}

impl std::fmt::Display for Place {
    /// `vbd 51712`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.devid)
    }
}

type Table = Vec<(&'static str, String)>;

/// What a kind of device has beyond what all have.
#[derive(Default)]
struct Layout {
    /// Below the frontend's directory, the guest's.
    front: Table,
    /// Below the frontend's directory, for the guest to read.
    told: Table,
    /// Below the backend's directory.
    back: Table,
}

fn flag(on: bool) -> String {
    u8::from(on).to_string()
}

/// Whole path of a hotplug script. libxl writes its default ones too, which here nothing runs: what they do is built in.
fn script(name: &str) -> String {
    Path::new(DIR).join(name).display().to_string()
}

fn disk(disk: &DiskConfig) -> Layout {
    let device_type = if disk.cdrom { "cdrom" } else { "disk" }.to_owned();
    let (kind, prefix) = match disk.format {
        DiskFormat::Raw => ("phy", ""),
        DiskFormat::Qcow2 => ("qdisk", "qcow2:"),
    };
    let target = disk.target.as_ref().map(|path| path.display().to_string());
    let mut back = vec![
        ("params", prefix.to_owned() + &target.unwrap_or_default()),
        ("removable", flag(disk.removable)),
        ("bootable", "1".into()),
        ("dev", disk.vdev.clone()),
        ("type", disk.backendtype.clone().unwrap_or_else(|| kind.into())),
        ("mode", if disk.writable { "w" } else { "r" }.into()),
        ("device-type", device_type.clone()),
        ("discard-enable", flag(disk.discard)),
        ("specification", "xen".into()),
    ];
    let scripted = disk.script.as_deref().or((disk.format == DiskFormat::Raw).then_some("block"));
    back.extend(scripted.map(|name| ("script", script(name))));
    let front = vec![
        ("virtual-device", disk.devid.to_string()),
        ("device-type", device_type),
        ("trusted", flag(disk.trusted)),
    ];
    Layout { front, back, ..Layout::default() }
}

/// Where the disc of a drive comes from.
pub fn params(config: &Device) -> device::Nodes {
    let Device::Disk(config) = config else { return Vec::new() };
    let params = disk(config).back.into_iter().filter(|(name, _)| *name == "params");
    params.map(|(name, value)| (name.to_owned(), value)).collect()
}

fn vif(vif: &VifConfig) -> Layout {
    let mac = vif.mac.map(|byte| format!("{byte:02x}")).join(":");
    let handle = vif.devid.to_string();
    let mut back = vec![
        ("mac", mac.clone()),
        ("handle", handle.clone()),
        ("type", "vif".into()),
        ("hotplug-status", String::new()),
    ];
    if let VifAttach::Bridge { bridge, .. } = &vif.attach {
        back.push(("bridge", bridge.clone()));
    }
    let bridged = matches!(vif.attach, VifAttach::Bridge { .. });
    let scripted = vif.script.as_deref().or(bridged.then_some("vif-bridge"));
    back.extend(scripted.map(|name| ("script", script(name))));
    back.extend(vif.vlan.clone().map(|vlan| ("vlan", vlan)));
    back.extend(vif.gatewaydev.clone().map(|dev| ("gatewaydev", dev)));
    back.extend(vif.ifname.clone().map(|name| ("vifname", name)));
    back.extend((!vif.ip.is_empty()).then(|| ("ip", vif.ip.join(" "))));
    back.extend(vif.rate.map(|rate| ("rate", format!("{},{}", rate.bytes, rate.interval_us))));
    let front = vec![("handle", handle), ("mac", mac), ("trusted", flag(vif.trusted))];
    let told = vec![("mtu", vif.mtu.unwrap_or(1500).to_string())];
    Layout { front, told, back }
}

fn channel(channel: &ChannelConfig, path: Option<String>) -> Layout {
    let name = channel.name.clone();
    let (connection, output) = match channel.connection {
        ChannelConnection::Pty => ("pty", "pty".to_owned()),
        ChannelConnection::Socket { .. } => ("socket", format!("chardev:libxl-channel{}", channel.devid)),
    };
    let (tty, socket) = match channel.connection {
        ChannelConnection::Pty => (path.unwrap_or_default(), None),
        ChannelConnection::Socket { .. } => (String::new(), path),
    };
    let mut back =
        vec![("protocol", "vt100".into()), ("name", name.clone()), ("connection", connection.into())];
    back.extend(socket.map(|path| ("path", path)));
    let told = vec![
        ("limit", "1048576".to_owned()),
        ("type", "ioemu".into()),
        ("output", output),
        ("tty", tty),
        ("name", name),
    ];
    Layout { front: vec![("protocol", "vt100".into())], told, back }
}

fn layout(config: &Device, path: Option<String>) -> Layout {
    match config {
        Device::Disk(config) => disk(config),
        Device::Vif(config) => vif(config),
        Device::Channel(config) => channel(config, path),
    }
}

/// Everything a new device has before it is offered.
pub fn made(place: &Place, config: &Device, device: &dyn device::Device) -> Batch {
    let Layout { front, told, back } = layout(config, device.path());
    let (f, b, copy) = (place.front(), place.back(), place.copy());
    let mut made = Batch::default();
    let mut write = |path: &str, value: &str, rights: Rights| {
        made.write(path, value);
        if let Some(perms) = rights.perms(place.domid) {
            made.set_perms(path, &perms);
        }
    };
    write(&f, "", Rights::Frontend);
    write(&b, "", Rights::GuestReads);
    let front_all = [("backend", b.as_str()), ("backend-id", "0"), ("state", "1")];
    let front = front.iter().map(|(name, value)| (*name, value.as_str()));
    for (name, value) in front_all.into_iter().chain(front) {
        write(&format!("{f}/{name}"), value, Rights::Inherited);
    }
    let more = device.tells();
    let told = told.iter().map(|(name, value)| (*name, value.as_str()));
    let more = more.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in told.chain(more) {
        write(&format!("{f}/{name}"), value, Rights::GuestReads);
    }
    write(&format!("{copy}/backend"), &b, Rights::Inherited);
    for (name, value) in behind(place, back) {
        write(&format!("{b}/{name}"), &value, Rights::Inherited);
        write(&format!("{copy}/{name}"), &value, Rights::Inherited);
    }
    write(&format!("{b}/hotplug-status"), "connected", Rights::Inherited);
    made
}

/// What all backends have, and what this one has besides.
fn behind(place: &Place, back: Table) -> impl Iterator<Item = (&'static str, String)> {
    let all = [
        ("frontend", place.front()),
        ("frontend-id", place.domid.to_string()),
        ("online", "1".into()),
        ("state", "1".into()),
    ];
    all.into_iter().chain(back)
}

/// Makes what a hotplug script finds, the backend's directory alone: the guest sees nothing of it before the device is there.
///
/// # Errors
/// The store's.
pub fn prepare(store: &mut Client, place: &Place, config: &Device) -> Result<()> {
    let (dir, mut made) = (place.back(), Batch::default());
    made.write(&dir, "");
    if let Some(perms) = Rights::GuestReads.perms(place.domid) {
        made.set_perms(&dir, &perms);
    }
    for (name, value) in behind(place, layout(config, None).back) {
        made.write(&format!("{dir}/{name}"), value);
    }
    store.transaction(|store| {
        remove(store, place)?;
        store.run(&made)
    })
}

/// Removes everything of the device, and what is empty then. For use in a transaction.
///
/// # Errors
/// The store's.
pub fn remove(store: &mut Client, place: &Place) -> Result<()> {
    let mut gone = Batch::default();
    [place.front(), place.back(), place.copy()].iter().for_each(|path| gone.rm(path));
    store.run(&gone)?;
    for parent in place.parents() {
        match store.directory(&parent) {
            Ok(names) if names.is_empty() => store.rm(&parent)?,
            Err(e) if e.errno() != Some(Errno::ENOENT) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Most nodes that are read of a frontend's directory.
const FRONT_NODES: usize = 1024;
/// How deep they lie: `queue-N/NAME`.
const FRONT_DEPTH: usize = 2;

/// The frontend's directory.
///
/// # Errors
/// The store's.
pub fn frontend(store: &mut Client, place: &Place) -> Result<device::Frontend> {
    let base = place.front();
    let mut front = device::Frontend::default();
    let mut todo = vec![(String::new(), 0)];
    while let Some((dir, depth)) = todo.pop() {
        let names = match store.directory(&format!("{base}{dir}")) {
            Err(e) if e.errno() == Some(Errno::ENOENT) => continue,
            names => names?,
        };
        for name in names {
            let path = format!("{dir}/{name}");
            let Some(value) = store.read_opt(&format!("{base}{path}"))? else { continue };
            if front.nodes.len() >= FRONT_NODES {
                return Ok(front);
            }
            front.nodes.insert(path.trim_start_matches('/').to_owned(), value);
            if depth + 1 < FRONT_DEPTH && name.starts_with("queue-") {
                todo.push((path, depth + 1));
            }
        }
    }
    Ok(front)
}
