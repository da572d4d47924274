//! `script=`: a hotplug script as libxl runs it.

use crate::backend::bus::Place;
use crate::backend::device::DeviceError;
use crate::backend::script::{self, DIR};
use std::path::{Path, PathBuf};
use xen_emu_api::device::VifConfig;

/// A vif's script.
pub struct Script {
    path: PathBuf,
    place: Place,
    vif: String,
    gatewaydev: String,
}

impl Script {
    /// The script of a vif with this interface; none when `vif-bridge` is asked for without VLANs and not installed, as what it does is built in.
    ///
    /// # Errors
    /// There is no such script.
    pub fn find(
        script: &str,
        domid: u16,
        config: &VifConfig,
        vif: &str,
    ) -> Result<Option<Script>, DeviceError> {
        let path = Path::new(DIR).join(script);
        if path.is_file() {
            let place = Place { domid, kind: "vif", devid: config.devid };
            let gatewaydev = config.gatewaydev.clone().unwrap_or_default();
            return Ok(Some(Script { path, place, vif: vif.to_owned(), gatewaydev }));
        }
        match script {
            "vif-bridge" if config.vlan.is_none() => Ok(None),
            _ => Err(DeviceError(format!("hotplug script {} does not exist", path.display()))),
        }
    }

    /// Runs it with `online` or `offline`.
    ///
    /// # Errors
    /// It cannot be run, fails, or does not end in time.
    pub fn run(&self, action: &str) -> Result<(), DeviceError> {
        let more = [("vif", self.vif.as_str()), ("netdev", &self.gatewaydev)];
        script::execute(&self.path, &[action, "type_if=vif"], &self.place, &more)
    }
}
