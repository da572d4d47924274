//! What xl 4.20 and its man pages say, and what nobody thought of.

mod disks;
mod others;
mod strange;
mod vifs;

use super::*;
use crate::xlcfg;
use std::path::PathBuf;
use xen_emu_api::device::{DiskCache, DiskConfig, DiskFormat};

fn placed(text: &str) -> Result<Vec<Placed>, Diag> {
    placed_from("g.cfg", text)
}

fn placed_from(name: &str, text: &str) -> Result<Vec<Placed>, Diag> {
    all(&Settings::new(xlcfg::read(name, text)?)?)
}

fn error(text: &str) -> String {
    match placed(text) {
        Ok(found) => panic!("{text}: {found:?}"),
        Err(error) => error.to_string(),
    }
}

fn disk(spec: &str) -> DiskConfig {
    match placed(&format!("disk=['{spec}']")).map(|mut list| list.remove(0).device) {
        Ok(Device::Disk(disk)) => disk,
        other => panic!("{spec}: {other:?}"),
    }
}

fn vif(spec: &str) -> VifConfig {
    match placed(&format!("vif=['{spec}']")).map(|mut list| list.remove(0).device) {
        Ok(Device::Vif(vif)) => vif,
        other => panic!("{spec}: {other:?}"),
    }
}

fn plain_disk(target: &str, vdev: &str, devid: u32) -> DiskConfig {
    DiskConfig {
        vdev: vdev.into(),
        devid,
        target: Some(target.into()),
        format: DiskFormat::Raw,
        writable: true,
        cdrom: false,
        removable: false,
        discard: true,
        cache: DiskCache::None,
        sector_size: None,
        persistent: true,
        force: false,
        script: None,
        backendtype: None,
        trusted: true,
    }
}

fn drive(target: Option<&str>, vdev: &str, devid: u32) -> DiskConfig {
    let target = target.map(PathBuf::from);
    DiskConfig {
        target,
        writable: false,
        discard: false,
        cdrom: true,
        removable: true,
        ..plain_disk("", vdev, devid)
    }
}
