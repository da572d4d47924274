//! `xlr channel-attach`, `channel-detach`.

use super::{device, first};
use crate::args::Args;
use crate::failure::Failure;
use crate::host::Host;
use anyhow::Result;
use xen_emu_api::device::Device;

/// `xlr channel-attach`: parameters as words of their own or with commas.
pub fn attach(args: &Args) -> Result<()> {
    let domain = Host::open()?.find(first(args))?;
    let present = device::of_kind(&domain, "console")?;
    let taken: Vec<_> = present.iter().map(|status| status.device.devid()).collect();
    let words = args.words.get(1..).unwrap_or_default();
    let placed = crate::device::channel_of(words, &taken).map_err(|error| device::plain(&error))?;
    device::attach(args, &domain, placed, &present)
}

/// `xlr channel-detach`: by name, or by its index in `channel-list`.
pub fn detach(args: &Args) -> Result<()> {
    let domain = Host::open()?.find(first(args))?;
    let word = args.words.get(1).map_or("", String::as_str);
    let index = word.parse::<u32>().ok();
    let present = device::of_kind(&domain, "console")?;
    let devices = || present.iter().map(|status| &status.device);
    let named = |device: &&Device| matches!(device, Device::Channel(channel) if channel.name == word);
    let numbered = |device: &&Device| index.is_some() && device.devid().checked_sub(1) == index;
    let found = devices().find(named).or_else(|| devices().find(numbered));
    let found = found.ok_or_else(|| Failure::error(1, format!("Error: Channel {word} not connected.")))?;
    device::detach(args, &domain, found)
}
