//! `pvshim=` and its siblings: PV guests, which KVM cannot run, in a Xen that can be a PVH guest.

use crate::config::absolute;
use crate::xlcfg::schema::Settings;
use anyhow::Result;
use std::ffi::OsStr;
use std::path::PathBuf;
use xen_emu_api::config::PvShim;

/// libxl's default.
const CMDLINE: &str = "pv-shim console=xen,pv";
/// Where Xen's own installation has it.
const FOLDERS: [&str; 2] = ["/usr/lib/xen/boot", "/usr/local/lib/xen/boot"];

/// The newest of Debian's packages of Xen, or Xen's own.
fn installed() -> Option<PathBuf> {
    let libraries = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut packaged: Vec<_> =
        libraries.filter_map(|entry| Some((version(&entry.file_name())?, entry.path()))).collect();
    packaged.sort_unstable_by(|a, b| b.cmp(a));
    let packaged = packaged.into_iter().map(|(_, path)| path.join("boot"));
    let folders = packaged.chain(FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join("xen-shim")).find(|path| path.is_file())
}

/// Of `xen-4.20`.
fn version(folder: &OsStr) -> Option<(u32, u32)> {
    let (major, minor) = folder.to_str()?.strip_prefix("xen-")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The shim that is wanted; `None` without `pvshim=1`.
pub fn configured(settings: &Settings) -> Result<Option<PvShim>> {
    if settings.flag("pvshim")? != Some(true) {
        return Ok(None);
    }
    let path = match settings.text("pvshim_path")? {
        Some(path) => absolute(path)?,
        None => installed().ok_or_else(|| {
            settings.error(
                "pvshim",
                "there is no xen-shim on this host: Debian's package xen-utils-4.20 (12: xen-utils-4.17) has one, \
                 pvshim_path = \"/PATH\" names another",
            )
        })?,
    };
    let line = settings.text("pvshim_cmdline")?.unwrap_or(CMDLINE);
    let extra = settings.text("pvshim_extra")?.unwrap_or_default();
    Ok(Some(PvShim { path, cmdline: format!("{line} {extra}").trim().to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xlcfg::read;

    fn parsed(text: &str) -> Result<Option<PvShim>> {
        configured(&Settings::new(read("g", text)?)?)
    }

    #[test]
    fn newer_versions_are_greater() {
        let version = |name: &str| version(OsStr::new(name));
        assert!(version("xen-4.20") > version("xen-4.9"));
        assert_eq!((version("xen-4.17"), version("xen"), version("xenial-4.2")), (Some((4, 17)), None, None));
    }

    #[test]
    fn a_shim_and_its_command_line() {
        let shim = |cmdline: &str| Some(PvShim { path: "/shim".into(), cmdline: cmdline.into() });
        for (text, expected) in [
            ("pvshim_path='/shim'", None),
            ("pvshim=0; pvshim_path='/shim'", None),
            ("pvshim=1; pvshim_path='/shim'", shim("pv-shim console=xen,pv")),
            (
                "pvshim=1; pvshim_path='/shim'; pvshim_extra='loglvl=all'",
                shim("pv-shim console=xen,pv loglvl=all"),
            ),
            ("pvshim=1; pvshim_path='/shim'; pvshim_cmdline='pv-shim'", shim("pv-shim")),
        ] {
            assert_eq!(parsed(text).unwrap(), expected, "{text}");
        }
    }
}
