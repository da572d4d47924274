//! `xlr block-attach`, `block-detach`, `block-resize`, `cd-insert`, `cd-eject`.

use super::{device, first};
use crate::args::Args;
use crate::device::image;
use crate::device::vdev::Vdev;
use crate::domains::Domain;
use crate::dry_run;
use crate::failure::Failure;
use crate::host::Host;
use anyhow::Result;
use xen_emu_api::control::Request;
use xen_emu_api::device::{Device, DiskConfig, DiskFormat};

/// `xlr block-attach`: the words are parts of one specification, as in xl.
pub fn attach(args: &Args) -> Result<()> {
    let domain = Host::open()?.find(first(args))?;
    let placed =
        crate::device::disk_of(args.words.get(1..).unwrap_or_default()).map_err(|e| device::plain(&e))?;
    let present = device::of_kind(&domain, "vbd")?;
    device::attach(args, &domain, placed, &present)
}

/// `xlr block-detach`
pub fn detach(args: &Args) -> Result<()> {
    let domain = Host::open()?.find(first(args))?;
    let disk = connected(args, &domain)?;
    device::detach(args, &domain, &Device::Disk(disk))
}

/// `xlr block-resize`: with a size an image file is made that long first. The domain's process refuses to make it shorter.
pub fn resize(args: &Args) -> Result<()> {
    let domain = Host::open()?.find(first(args))?;
    let disk = connected(args, &domain)?;
    let bytes = args.words.get(2).map(|word| size(word)).transpose()?;
    domain.ask(&Request::Resize { devid: disk.devid, bytes }).map(drop)
}

/// `xlr cd-insert`
pub fn insert(args: &Args) -> Result<()> {
    let image = args.words.get(2).map_or("", String::as_str);
    if image.is_empty() {
        return Err(Failure::error(1, "no image named: cd-eject leaves the drive empty"));
    }
    let format = args.words.get(3).map_or(Ok(Some(DiskFormat::Raw)), |word| crate::device::format(word));
    match format.map_err(|message| Failure::error(1, message))? {
        Some(format) => change(args, Some(image), format),
        None => Err(Failure::error(1, "an image is not empty: cd-eject leaves the drive empty")),
    }
}

/// `xlr cd-eject`
pub fn eject(args: &Args) -> Result<()> {
    change(args, None, DiskFormat::Raw)
}

/// Only who names the image says its format: one that others have filled, read as qcow2 for its first bytes, would name any file
/// of the host as its backing file.
fn change(args: &Args, image: Option<&str>, format: DiskFormat) -> Result<()> {
    let domain = Host::open()?.find(first(args))?;
    let drive = connected(args, &domain)?;
    if !drive.cdrom {
        anyhow::bail!("{domain}: {} is no CD drive", drive.vdev);
    }
    let target = image.map(image::resolve);
    let filled = Device::Disk(DiskConfig { target: target.clone(), format, script: None, ..drive.clone() });
    if args.globals.dry_run {
        say!("{}", dry_run::device(&filled)?);
        return Ok(());
    }
    device::check(&filled)?;
    domain.ask(&Request::Media { devid: drive.devid, target, format }).map(drop)
}

/// The disk that the second word names.
fn connected(args: &Args, domain: &Domain) -> Result<DiskConfig> {
    let word = args.words.get(1).map_or("", String::as_str);
    let vdev = Vdev::parse(word).map_err(|message| Failure::error(1, message))?;
    let disks = device::of_kind(domain, "vbd")?.into_iter().filter_map(|status| match status.device {
        Device::Disk(disk) => Some(disk),
        _ => None,
    });
    let mut found = disks.filter(|disk| disk.devid == vdev.devid || disk.vdev == vdev.name);
    found.next().ok_or_else(|| Failure::error(1, format!("Error: Device {word} not connected.")))
}

/// `20G`, `512M`, or bytes.
fn size(word: &str) -> Result<u64> {
    let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10), ("", 0)];
    let upper = word.to_ascii_uppercase();
    let parts = units.iter().find_map(|(unit, shift)| Some((upper.strip_suffix(unit)?, shift)));
    let bytes = parts.and_then(|(digits, shift)| {
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<u64>().ok())??.checked_mul(1 << shift)
    });
    let right = "20G, 512M or bytes in multiples of 512";
    bytes
        .filter(|bytes| *bytes > 0 && bytes % 512 == 0)
        .ok_or_else(|| Failure::error(1, format!("invalid size `{word}': {right}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_sectors() {
        for (word, bytes) in
            [("512", 512), ("1k", 1024), ("512M", 512 << 20), ("20G", 20 << 30), ("2T", 2 << 40)]
        {
            assert_eq!(size(word).unwrap(), bytes, "{word}");
        }
        for word in ["", "0", "G", "-1G", "+1G", "1.5G", "513", "99999999999T", "1GB"] {
            assert!(size(word).unwrap_err().to_string().contains(&format!("`{word}'")), "{word}");
        }
    }
}
