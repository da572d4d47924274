//! `xlr console`: the primary PV console, from the beginning of its log.

use super::first;
use super::shown::Shown;
use super::terminal::{self, ESCAPE, Ended};
use crate::args::Args;
use crate::domains::Domain;
use crate::failure::Failure;
use crate::host::Host;
use anyhow::{Context, Result};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

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
    if args.value("n").is_some_and(|number| number.parse() != Ok(0u32)) {
        return Err(Failure::error(2, "console number: a guest has one console, -n 0"));
    }
    let escape = match args.value("e") {
        Some(text) => control(text)
            .ok_or_else(|| Failure::error(2, "escape character: one letter or ^ and one letter"))?,
        None => ESCAPE,
    };
    let host = Host::open()?;
    let domain = host.find(first(args))?;
    if terminal::attach(connect(&domain)?, escape, &mut Shown::default())? == Ended::Gone {
        // Its process may have died: that is said and cleaned up.
        host.survey()?;
    }
    Ok(())
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
