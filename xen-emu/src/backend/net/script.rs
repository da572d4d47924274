//! `script=`: a hotplug script as libxl runs it.

use crate::backend::device::DeviceError;
use crate::backend::script::{self, DIR};
use std::path::{Path, PathBuf};

/// A vif's script.
pub struct Script {
    path: PathBuf,
    domid: u16,
    devid: u32,
    vif: String,
}

impl Script {
    /// The script of a vif; none when `vif-bridge` is asked for and not installed, as what it does is built in.
    ///
    /// # Errors
    /// There is no such script.
    pub fn find(script: &str, domid: u16, devid: u32, vif: &str) -> Result<Option<Script>, DeviceError> {
        let path = Path::new(DIR).join(script);
        if path.is_file() {
            return Ok(Some(Script { path, domid, devid, vif: vif.to_owned() }));
        }
        match script {
            "vif-bridge" => Ok(None),
            _ => Err(DeviceError(format!("hotplug script {} does not exist", path.display()))),
        }
    }

    /// Runs it with `online` or `offline`.
    ///
    /// # Errors
    /// It cannot be run, fails, or does not end in time.
    pub fn run(&self, action: &str) -> Result<(), DeviceError> {
        let backend = format!("/local/domain/0/backend/vif/{}/{}", self.domid, self.devid);
        script::execute(&self.path, &[action, "type_if=vif"], "vif", &backend, Some(("vif", &self.vif)))
    }
}
