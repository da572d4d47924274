//! `disk=`: xl-disk-configuration(5), and `cache=`, `sector-size=` and `persistent-grants=`.

use super::disk_words::Words;
use super::params::{Form, Params};
use super::vdev::Vdev;
use super::{Placed, image};
use crate::xlcfg::{Diag, Pos};
use xen_emu_api::device::{Device, DiskCache, DiskConfig, DiskFormat};

/// Every parameter.
pub const KEYS: &[(&str, Form)] = &[
    ("target", Form::Value),
    ("format", Form::Value),
    ("vdev", Form::Value),
    ("access", Form::Value),
    ("devtype", Form::Value),
    ("cdrom", Form::Flag),
    ("backend", Form::Value),
    ("backendtype", Form::Value),
    ("script", Form::Value),
    ("direct-io-safe", Form::Flag),
    ("discard", Form::Flag),
    ("no-discard", Form::Flag),
    ("trusted", Form::Flag),
    ("untrusted", Form::Flag),
    ("specification", Form::Value),
    ("grant_usage", Form::Value),
    ("cache", Form::Value),
    ("sector-size", Form::Value),
    ("persistent-grants", Form::Value),
    ("colo", Form::Flag),
    ("colo-host", Form::Value),
    ("colo-port", Form::Value),
    ("colo-export", Form::Value),
    ("active-disk", Form::Value),
    ("hidden-disk", Form::Value),
];

/// What the guest may do, and whether a lock of another domain is passed over.
const ACCESS: &[(&str, (bool, bool))] = &[
    ("rw", (true, false)),
    ("w", (true, false)),
    ("ro", (false, false)),
    ("r", (false, false)),
    ("w!", (true, true)),
    ("rw!", (true, true)),
    ("!", (true, true)),
    ("r!", (false, true)),
    ("ro!", (false, true)),
];

/// With what xl takes, so that a message can say more than `unknown`. `None` = an empty drive.
const FORMATS: &[(&str, Option<DiskFormat>)] =
    &[("raw", Some(DiskFormat::Raw)), ("qcow2", Some(DiskFormat::Qcow2)), ("empty", None)];

/// Formats that others know.
const FOREIGN: &[&str] = &["vhd", "vhdx", "vdi", "vmdk", "qed", "qcow"];

const BACKENDS: &[(&str, &str)] = &[("phy", "phy"), ("qdisk", "qdisk"), ("tap", "tap")];

const CACHES: &[(&str, DiskCache)] = &[
    ("none", DiskCache::None),
    ("writeback", DiskCache::Writeback),
    ("writethrough", DiskCache::Writethrough),
    ("unsafe", DiskCache::Unsafe),
];

/// libxl's default script: what it does is done without it.
const BLOCK_SCRIPT: &str = "block";

const EXAMPLE: &str = "'/srv/disk.img,raw,xvda,rw'";

/// Is `word` the name of a format, be it one that is refused?
pub fn names_format(word: &str) -> bool {
    FORMATS.iter().any(|(name, _)| *name == word) || FOREIGN.contains(&word)
}

/// From one or more strings that describe one disk.
pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>, at: &Pos) -> Result<Placed, Diag> {
    let mut words = Words::new(at.clone());
    for text in texts {
        words.read(text, at)?;
    }
    disk(&words.into_params())
}

/// From its parameters.
pub fn disk(params: &Params) -> Result<Placed, Diag> {
    params.check(KEYS)?;
    refuse(params)?;
    let format = params.text("format").map_or(Ok(Some(DiskFormat::Raw)), format);
    let format = format.map_err(|message| params.error("format", message))?;
    let vdev = match params.text("vdev") {
        Some(text) => Vdev::parse(text).map_err(|message| params.error("vdev", message))?,
        None => return Err(params.error("", format!("no vdev specified; a disk is {EXAMPLE}"))),
    };
    let cdrom = params.is_set("cdrom")
        || params.choice("devtype", &[("cdrom", true), ("disk", false)])? == Some(true);
    let (writable, force) = params.choice("access", ACCESS)?.unwrap_or((true, false));
    let own = |script: &&str| script.rsplit('/').next() != Some(BLOCK_SCRIPT);
    let script = params.text("script").filter(own).map(str::to_owned);
    let target = match params.text("target") {
        Some(_) if format.is_none() => {
            return Err(params.error("target", "an empty drive has no target: leave it out"));
        }
        Some(target) if script.is_some() => Some(target.into()),
        Some(target) => Some(image::resolve(target)),
        None if cdrom => None,
        None => {
            return Err(
                params.error("", format!("no target specified for {}; a disk is {EXAMPLE}", vdev.name))
            );
        }
    };
    let config = DiskConfig {
        vdev: vdev.name,
        devid: vdev.devid,
        target,
        format: format.unwrap_or(DiskFormat::Raw),
        writable: writable && !cdrom,
        cdrom,
        removable: cdrom,
        // As libxl has it: what is not written to is not discarded either, unless that is said.
        discard: params.is_set("discard") || (writable && !cdrom && !params.is_set("no-discard")),
        cache: params.choice("cache", CACHES)?.unwrap_or_default(),
        sector_size: params.choice("sector-size", &[("512", 512), ("4096", 4096)])?,
        persistent: params.choice("persistent-grants", &[("0", false), ("1", true)])?.unwrap_or(true),
        force,
        script,
        backendtype: params.choice("backendtype", BACKENDS)?.map(str::to_owned),
        trusted: !params.is_set("untrusted"),
    };
    let at = params.pos(if config.target.is_some() { "target" } else { "vdev" }).clone();
    Ok(Placed { device: Device::Disk(config), at, warnings: Vec::new() })
}

/// What cannot be done.
fn refuse(params: &Params) -> Result<(), Diag> {
    let colo = ["colo", "colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk"];
    if let Some(key) = colo.into_iter().find(|key| params.has(key)) {
        return Err(params.error(key, format!("`{key}`: COLO replication is not supported")));
    }
    if params.is_set("discard") && params.is_set("no-discard") {
        return Err(params.error("no-discard", "either discard or no-discard"));
    }
    if params.is_set("trusted") && params.is_set("untrusted") {
        return Err(params.error("untrusted", "either trusted or untrusted"));
    }
    super::own_backend(params)?;
    match params.text("specification") {
        None | Some("xen") => {}
        Some(other) => {
            return Err(params.error("specification", format!("`{other}` disks are not supported: xen are")));
        }
    }
    match params.text("grant_usage") {
        None | Some("1") => Ok(()),
        Some(_) => Err(params.error("grant_usage", "a Xen disk always uses grants: leave grant_usage out")),
    }
}

/// A format by its name; `None` = an empty drive.
///
/// # Errors
/// What would be right.
pub fn format(text: &str) -> Result<Option<DiskFormat>, String> {
    Err(match FORMATS.iter().find(|(name, _)| *name == text) {
        Some(&(_, format)) => return Ok(format),
        None if FOREIGN.contains(&text) => {
            format!("{text} images are not supported: qemu-img convert -O qcow2 makes one that is")
        }
        None if Vdev::parse(text).is_ok() => {
            format!(
                "`{text}` stands where the format belongs; a disk is {EXAMPLE}, and an empty format means raw"
            )
        }
        None => format!("unknown format `{text}`: raw and qcow2 are known"),
    })
}
