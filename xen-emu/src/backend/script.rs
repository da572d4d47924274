//! Hotplug scripts of disks, run as libxl runs them: `add` makes a block device of whatever the target names and writes
//! it to the backend's `physical-device`, `remove` undoes that.

use super::bus::Place;
use super::device::DeviceError;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use xen_emu_api::device::{Device, DiskConfig, DiskFormat};
use xenstored::client::Client;

/// Where scripts without a folder in their name are.
pub const DIR: &str = "/etc/xen/scripts";
/// As long as libxl waits for one.
const PATIENCE: Duration = Duration::from_secs(40);

/// What a script has made. Dropping it runs the script again, with `remove`.
pub struct Hotplug {
    script: PathBuf,
    place: Place,
}

/// A disk's script; none when it has none.
pub fn of(config: &Device) -> Option<(&DiskConfig, PathBuf)> {
    let Device::Disk(disk) = config else { return None };
    Some((disk, Path::new(DIR).join(disk.script.as_ref()?)))
}

impl Hotplug {
    /// Runs a disk's script with `add`; the backend's nodes are there. Comes back with the disk as it is to be opened.
    ///
    /// # Errors
    /// It is not there, fails, does not end in time, or makes no device.
    pub fn add(
        place: &Place,
        (disk, script): (&DiskConfig, PathBuf),
        store: &mut Client,
    ) -> Result<(Hotplug, DiskConfig), DeviceError> {
        run(&script, "add", place)?;
        // From here on dropping it undoes everything.
        let hotplug = Hotplug { script, place: place.clone() };
        let mut read = |name: &str| {
            let value = store.read_opt(&format!("{}/{name}", place.back()));
            value.map_err(|e| DeviceError(format!("store: {e}")))
        };
        let path = match read("physical-device-path")? {
            Some(path) if !path.is_empty() => Some(PathBuf::from(path)),
            _ => read("physical-device")?.as_deref().and_then(device),
        };
        let target =
            path.ok_or_else(|| failed(&hotplug.script, "add", "it has written no physical-device"))?;
        let made = DiskConfig { target: Some(target), format: DiskFormat::Raw, script: None, ..disk.clone() };
        Ok((hotplug, made))
    }
}

impl Drop for Hotplug {
    fn drop(&mut self) {
        if let Err(e) = run(&self.script, "remove", &self.place) {
            tracing::warn!("{}: {e}", self.place);
        }
    }
}

/// The block device of `MAJOR:MINOR` in hexadecimal.
fn device(text: &str) -> Option<PathBuf> {
    let (major, minor) = text.trim().split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let numbers = format!("{}:{}", number(major)?, number(minor)?);
    // The kernel's own name is there without udev too; it has ! for the slash of a path.
    let known = std::fs::read_link(Path::new("/sys/dev/block").join(&numbers)).ok();
    let name =
        known.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().replace('!', "/"));
    let named = name.map(|name| Path::new("/dev").join(name)).filter(|path| path.exists());
    Some(named.unwrap_or_else(|| Path::new("/dev/block").join(&numbers)))
}

fn failed(script: &Path, action: &str, what: &str) -> DeviceError {
    DeviceError(format!("hotplug script {} {action}: {what}", script.display()))
}

fn run(script: &Path, action: &str, place: &Place) -> Result<(), DeviceError> {
    execute(script, &[action], place, &[])
}

/// Runs a hotplug script of any kind of device: `args` begin with the action, `more` are further variables of its
/// environment.
///
/// # Errors
/// It cannot be run, fails, or does not end in time; then it and what it has started are killed.
pub fn execute(
    script: &Path,
    args: &[&str],
    place: &Place,
    more: &[(&str, &str)],
) -> Result<(), DeviceError> {
    let failed = |what: String| failed(script, args.first().unwrap_or(&""), &what);
    let mut command = Command::new(script);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/").process_group(0);
    command.env("script", script).envs([("XENBUS_TYPE", place.kind), ("XENBUS_PATH", &place.seen())]);
    command.env("XENBUS_BASE_PATH", "backend").envs(more.iter().copied());
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    match wait(&mut child) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(status.to_string())),
        None => Err(failed(format!("it has not ended in {} s", PATIENCE.as_secs()))),
    }
}

/// How it ended; it is killed, with its process group, when it does not.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_devices_are_hexadecimal() {
        // No host has these.
        assert_eq!(device("fff:1f\n"), Some(PathBuf::from("/dev/block/4095:31")));
        assert_eq!(device("ffe:0"), Some(PathBuf::from("/dev/block/4094:0")));
        for odd in ["", "7", "7:", "7:x", ":", "-1:2"] {
            assert_eq!(device(odd), None, "{odd}");
        }
    }
}
