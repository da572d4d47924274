//! `xlr trigger`: the buttons of the machine.

use super::first;
use crate::args::Args;
use crate::failure::Failure;
use crate::host::Host;
use anyhow::Result;
use xen_emu_api::control::Request;

/// `xlr trigger`
pub fn run(args: &Args) -> Result<()> {
    let vcpu = match args.words.get(2) {
        Some(word) => {
            word.parse().map_err(|_| Failure::error(1, format!("Invalid vcpu `{word}': a number from 0")))?
        }
        None => 0,
    };
    let request = match args.words.get(1).map_or("", String::as_str) {
        "power" => Request::PowerButton,
        "reset" => Request::Reset,
        "nmi" => Request::Nmi { vcpu },
        other @ ("init" | "sleep" | "s3resume") => {
            return Err(Failure::error(
                1,
                format!("trigger `{other}' is not supported: nmi, reset and power are"),
            ));
        }
        other => {
            return Err(Failure::error(1, format!("Invalid trigger `{other}': nmi, reset and power exist")));
        }
    };
    Host::open()?.find(first(args))?.ask(&request).map(drop)
}
