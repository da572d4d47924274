//! Devices in libxl's JSON.

use crate::device::show_mac;
use serde::Serialize;
use serde_json::{Map, Value, json};
use xen_emu_api::device::{
    ChannelConfig, ChannelConnection, Device, DiskConfig, DiskFormat, VifAttach, VifConfig,
};

/// `libxl_device_disk`
#[derive(Debug, Serialize)]
pub struct Disk<'a> {
    pdev_path: String,
    vdev: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'a str>,
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    script: Option<&'a str>,
    #[serde(skip_serializing_if = "is_zero")]
    removable: u8,
    #[serde(skip_serializing_if = "is_zero")]
    readwrite: u8,
    #[serde(skip_serializing_if = "is_zero")]
    is_cdrom: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    discard_enable: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted: Option<&'static str>,
}

/// `libxl_device_nic`
#[derive(Debug, Serialize)]
pub struct Nic<'a> {
    devid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    mac: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ifname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    script: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nictype: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_bytes_per_interval: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_interval_usecs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gatewaydev: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted: Option<&'static str>,
}

/// `libxl_device_channel`
#[derive(Debug, Serialize)]
pub struct Channel<'a> {
    /// libxl counts them from 0; its console is another kind of device.
    devid: u32,
    name: &'a str,
    /// `connection.pty` or `connection.socket`.
    #[serde(flatten)]
    connection: Map<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(number: &u8) -> bool {
    *number == 0
}

impl<'a> Disk<'a> {
    /// Of a disk as configured.
    pub fn new(disk: &'a DiskConfig) -> Self {
        let format = match (&disk.target, disk.format) {
            (None, _) => "empty",
            (_, DiskFormat::Raw) => "raw",
            (_, DiskFormat::Qcow2) => "qcow2",
        };
        Disk {
            pdev_path: disk
                .target
                .as_ref()
                .map_or_else(String::new, |path| path.to_string_lossy().into_owned()),
            vdev: &disk.vdev,
            backend: disk.backendtype.as_deref(),
            format,
            script: disk.script.as_deref(),
            removable: disk.removable.into(),
            readwrite: disk.writable.into(),
            is_cdrom: disk.cdrom.into(),
            discard_enable: match (disk.discard, disk.writable) {
                (false, true) => Some("False"),
                (true, false) => Some("True"),
                _ => None,
            },
            trusted: (!disk.trusted).then_some("False"),
        }
    }
}

impl<'a> Nic<'a> {
    /// Of a vif as configured; `built` adds what libxl decides when it builds it.
    pub fn new(vif: &'a VifConfig, built: bool) -> Self {
        let bridge = match &vif.attach {
            VifAttach::Bridge { bridge, .. } => Some(bridge.as_str()),
            VifAttach::Tap | VifAttach::User { .. } => None,
        };
        Nic {
            devid: vif.devid,
            mtu: vif.mtu,
            mac: show_mac(&vif.mac),
            ip: vif.ip.join(" "),
            bridge,
            ifname: vif.ifname.as_deref(),
            script: vif.script.as_deref(),
            nictype: built.then_some("vif"),
            rate_bytes_per_interval: vif.rate.map(|rate| rate.bytes),
            rate_interval_usecs: vif.rate.map(|rate| rate.interval_us),
            gatewaydev: vif.gatewaydev.as_deref(),
            vlan: vif.vlan.as_deref(),
            trusted: (!vif.trusted).then_some("False"),
        }
    }
}

impl<'a> Channel<'a> {
    /// Of a channel as configured.
    pub fn new(channel: &'a ChannelConfig) -> Self {
        let (key, value) = match &channel.connection {
            ChannelConnection::Pty => ("connection.pty", json!({})),
            ChannelConnection::Socket { path } => ("connection.socket", json!({ "path": path })),
        };
        let connection = Map::from_iter([(key.to_owned(), value)]);
        Channel { devid: channel.devid.saturating_sub(1), name: &channel.name, connection }
    }
}

/// One device: its name in xl's words and its JSON.
pub fn one(device: &Device) -> serde_json::Result<String> {
    Ok(match device {
        Device::Disk(disk) => format!("disk: {}", crate::json::text(&Disk::new(disk))?),
        Device::Vif(vif) => format!("vif: {}", crate::json::text(&Nic::new(vif, false))?),
        Device::Channel(channel) => format!("channel: {}", crate::json::text(&Channel::new(channel))?),
    })
}
