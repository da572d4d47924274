//! `script=`: a hotplug script as libxl runs it.

use crate::backend::device::DeviceError;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where scripts without a folder in their name are.
const DIR: &str = "/etc/xen/scripts";
/// As long as libxl waits for one.
const PATIENCE: Duration = Duration::from_secs(40);

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
        let failed =
            |what: String| DeviceError(format!("hotplug script {} {action}: {what}", self.path.display()));
        let mut command = Command::new(&self.path);
        command.args([action, "type_if=vif"]).stdin(Stdio::null()).current_dir("/").process_group(0);
        command.envs([
            ("script", self.path.display().to_string()),
            ("XENBUS_TYPE", "vif".to_owned()),
            ("XENBUS_PATH", format!("/local/domain/0/backend/vif/{}/{}", self.domid, self.devid)),
            ("XENBUS_BASE_PATH", "backend".to_owned()),
            ("vif", self.vif.clone()),
        ]);
        let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
        match wait(&mut child, PATIENCE) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(failed(status.to_string())),
            None => Err(failed(format!("has not ended in {} s", PATIENCE.as_secs()))),
        }
    }
}

/// How it ended; it is killed when it does not.
fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}
