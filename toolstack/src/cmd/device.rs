//! What the commands for disks, network cards and channels have in common.

use crate::args::Args;
use crate::device::{self, Placed, table};
use crate::domains::Domain;
use crate::dry_run;
use crate::failure::Failure;
use crate::host::Host;
use crate::xlcfg::Diag;
use anyhow::Result;
use serde_json::json;
use xen_emu_api::control::{DeviceStatus, Reply, Request};
use xen_emu_api::device::Device;

/// The domain's devices of one kind.
pub fn of_kind(domain: &Domain, kind: &str) -> Result<Vec<DeviceStatus>> {
    match domain.ask(&Request::Devices)? {
        Reply::Devices { devices } => Ok(devices.into_iter().filter(|d| d.device.kind() == kind).collect()),
        _ => anyhow::bail!("{domain}: an answer without devices"),
    }
}

/// `block-list` and its siblings: all domains are there, or nothing is printed.
fn list(args: &Args, kind: &str, header: &str) -> Result<()> {
    let host = Host::open()?;
    let domains = args.words.iter().map(|word| host.find(word)).collect::<Result<Vec<_>>>()?;
    let read = |domain: Domain| Ok((of_kind(&domain, kind)?, domain));
    let all = domains.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    if args.has("json") {
        let entry = |(devices, domain): &(Vec<DeviceStatus>, Domain)| json!({ "domid": domain.dir.domid, "name": domain.status.name, "devices": devices });
        say!("{}", serde_json::to_string_pretty(&all.iter().map(entry).collect::<Vec<_>>())?);
        return Ok(());
    }
    say!("{header}");
    for (devices, domain) in &all {
        devices.iter().for_each(|device| say!("{}", table::row(domain.dir.domid, device)));
    }
    Ok(())
}

/// `xlr block-list`
pub fn block_list(args: &Args) -> Result<()> {
    list(args, "vbd", table::DISKS)
}

/// `xlr network-list`
pub fn network_list(args: &Args) -> Result<()> {
    list(args, "vif", table::VIFS)
}

/// `xlr channel-list`
pub fn channel_list(args: &Args) -> Result<()> {
    list(args, "console", table::CHANNELS)
}

/// Hand a device to its domain; with `-N` print it.
pub fn attach(args: &Args, domain: &Domain, placed: Placed, present: &[DeviceStatus]) -> Result<()> {
    let Placed { device, warnings, .. } = placed;
    warnings.iter().for_each(|warning| tell!("warning: {}", warning.message));
    if let Some(clash) = present.iter().find_map(|old| device::clash(&old.device, &device)) {
        anyhow::bail!("{domain}: {clash}");
    }
    let doubts = present.iter().filter_map(|old| device::doubtful(&old.device, &device));
    doubts.for_each(|doubt| tell!("warning: {doubt}"));
    if args.globals.dry_run {
        say!("{}", dry_run::device(&device)?);
        return Ok(());
    }
    check(&device)?;
    domain.ask(&Request::Attach { device }).map(drop)
}

/// The host has what the device needs.
pub fn check(device: &Device) -> Result<()> {
    let warning = device::check_host(device).map_err(|error| Failure::error(1, error))?;
    if let Some(warning) = warning {
        tell!("warning: {warning}");
    }
    Ok(())
}

/// On the command line a column says nothing.
pub fn plain(error: &Diag) -> anyhow::Error {
    let here = *error.pos.source == *device::COMMAND_LINE;
    Failure::error(1, if here { error.message.clone() } else { error.to_string() })
}

/// Take a device away.
pub fn detach(args: &Args, domain: &Domain, device: &Device) -> Result<()> {
    let (kind, devid, force) = (device.kind().to_owned(), device.devid(), args.has("force"));
    domain.ask(&Request::Detach { kind, devid, force }).map(drop)
}
