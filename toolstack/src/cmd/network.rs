//! `xlr network-attach`, `network-detach`.

use super::{device, first};
use crate::args::Args;
use crate::device::read_mac;
use crate::failure::Failure;
use crate::host::Host;
use crate::xlcfg::XlConf;
use anyhow::Result;
use xen_emu_api::device::Device;

/// `xlr network-attach`: parameters as words of their own, as in xl, or with commas.
pub fn attach(args: &Args) -> Result<()> {
    let domain = Host::open()?.find(first(args))?;
    let present = device::of_kind(&domain, "vif")?;
    let taken: Vec<_> = present.iter().map(|status| status.device.devid()).collect();
    let words = args.words.get(1..).unwrap_or_default();
    let host = XlConf::read()?;
    host.warnings.iter().for_each(|warning| tell!("{warning}"));
    let placed = crate::device::vif_of(words, &taken, &host).map_err(|error| device::plain(&error))?;
    device::attach(args, &domain, placed, &present)
}

/// `xlr network-detach`: by number or address.
pub fn detach(args: &Args) -> Result<()> {
    let domain = Host::open()?.find(first(args))?;
    let word = args.words.get(1).map_or("", String::as_str);
    let (mac, devid) = (read_mac(word), word.parse::<u32>().ok());
    let meant = |device: &Device| match device {
        Device::Vif(vif) => Some(vif.mac) == mac || Some(vif.devid) == devid,
        _ => false,
    };
    let present = device::of_kind(&domain, "vif")?;
    let found = present.iter().map(|status| &status.device).find(|device| meant(device));
    let found = found.ok_or_else(|| Failure::error(1, format!("Unknown device {word}.")))?;
    device::detach(args, &domain, found)
}
