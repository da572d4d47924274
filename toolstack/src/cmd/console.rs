//! `xlr console`: the primary PV console, from the beginning of its log, or a channel.

use super::first;
use super::shown::Shown;
use super::terminal::{self, ESCAPE, Ended};
use crate::args::Args;
use crate::domains::Domain;
use crate::failure::Failure;
use crate::host::Host;
use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use xen_emu_api::device::{ChannelConfig, ChannelConnection, Device};

/// `xlr console`
pub fn run(args: &Args) -> Result<()> {
    match args.value("t") {
        None | Some("pv") => {}
        Some(other) => {
            return Err(Failure::error(
                2,
                format!("console type `{other}': a PVH guest has a PV console only, -t pv"),
            ));
        }
    }
    let number: u32 = match args.value("n") {
        None => 0,
        Some(number) => number.parse().map_err(|_| {
            Failure::error(2, format!("console number `{number}': 0 is the console, channels have theirs"))
        })?,
    };
    let escape = match args.value("e") {
        Some(text) => control(text)
            .ok_or_else(|| Failure::error(2, "escape character: one letter or ^ and one letter"))?,
        None => ESCAPE,
    };
    let host = Host::open()?;
    let domain = host.find(first(args))?;
    if terminal::attach(stream(&domain, number)?, escape, &mut Shown::default())? == Ended::Gone {
        // Its process may have died: that is said and cleaned up.
        host.survey()?;
    }
    Ok(())
}

/// The console of this number: channels have those of their devices, from 1 on.
fn stream(domain: &Domain, number: u32) -> Result<OwnedFd> {
    if number == 0 {
        return Ok(connect(domain)?.into());
    }
    let channels = super::device::of_kind(domain, "console")?;
    let meant = channels.iter().find(|channel| channel.device.devid() == number);
    let path = meant.and_then(|channel| channel.path.as_deref());
    let path = path.with_context(|| {
        format!("{domain}: it has no console {number}: `channel-list` shows those it has")
    })?;
    let failed = || format!("{domain}: console {number}: {path}");
    match meant.map(|channel| &channel.device) {
        Some(Device::Channel(ChannelConfig { connection: ChannelConnection::Pty, .. })) => {
            let tty = File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(path);
            Ok(tty.with_context(failed)?.into())
        }
        _ => Ok(UnixStream::connect(path).with_context(failed)?.into()),
    }
}

/// `^]` or one character.
fn control(text: &str) -> Option<u8> {
    match *text.as_bytes() {
        [b'^', letter] if letter.is_ascii() => Some(letter & 0x1f),
        [byte] => Some(byte),
        _ => None,
    }
}

/// How long a console may take to be there while its domain is being built; xl waits too.
const PATIENCE: Duration = Duration::from_secs(10);

/// The console's stream; awaited while the domain is in the making.
pub fn connect(domain: &Domain) -> Result<UnixStream> {
    let end = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(domain.dir.console()) {
            Err(_) if Instant::now() < end && !domain.is_dead() => {
                std::thread::sleep(Duration::from_millis(20));
            }
            stream => {
                return stream.with_context(|| format!("{domain}: its console does not answer"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn escapes() {
        for (text, byte) in [("^]", Some(0x1d)), ("^A", Some(1)), ("q", Some(b'q')), ("", None), ("ab", None)]
        {
            assert_eq!(super::control(text), byte, "{text}");
        }
    }
}
