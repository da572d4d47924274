//! The command line, which `xlr` gives and nobody types.

use lexopt::{Arg, Error, Parser, ValueExt};
use std::path::PathBuf;

const HELP: &str = "\
One Xen domain on Linux KVM

Usage: xen-emu --run-dir DIR [--ready-fd FD]
       xen-emu --probe

      --run-dir DIR   Run directory of the domain, with launch.json in it
      --ready-fd FD   Where to say `ok`, or in one line what went wrong
      --probe         Print what this host offers, as JSON
  -h, --help          Print help
  -V, --version       Print version";

/// What is asked for.
#[derive(Debug, PartialEq)]
pub enum Call {
    /// To be the domain of that run directory.
    Run {
        /// Holds `launch.json`.
        run_dir: PathBuf,
        /// An inherited descriptor, written to once.
        ready_fd: Option<i32>,
    },
    /// To tell what this host offers.
    Probe,
    /// Help, or the version.
    Say(&'static str),
}

/// The last of several options of one name counts.
///
/// # Errors
/// An option that there is not, a value that is missing or no number, or nothing to do.
pub fn parse(mut args: Parser) -> Result<Call, Error> {
    let (mut run_dir, mut ready_fd, mut probe) = (None, None, false);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("run-dir") => run_dir = Some(PathBuf::from(args.value()?)),
            Arg::Long("ready-fd") => ready_fd = Some(args.value()?.parse()?),
            Arg::Long("probe") => probe = true,
            Arg::Long("help") | Arg::Short('h') => return Ok(Call::Say(HELP)),
            Arg::Long("version") | Arg::Short('V') => {
                return Ok(Call::Say(concat!("xen-emu ", env!("CARGO_PKG_VERSION"))));
            }
            other => return Err(other.unexpected()),
        }
    }
    match run_dir {
        _ if probe => Ok(Call::Probe),
        Some(run_dir) => Ok(Call::Run { run_dir, ready_fd }),
        None => Err("--run-dir or --probe is missing".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_be_called() {
        let call = |args: &[&str]| parse(Parser::from_args(args)).map_err(|e| e.to_string());
        let run = |ready_fd| Ok(Call::Run { run_dir: "/run/x".into(), ready_fd });
        assert_eq!(call(&["--run-dir", "/run/x"]), run(None));
        assert_eq!(call(&["--run-dir=/run/x", "--ready-fd", "7"]), run(Some(7)));
        assert_eq!(call(&["--probe"]), Ok(Call::Probe));
        assert!(matches!(call(&["-V"]), Ok(Call::Say(text)) if text.starts_with("xen-emu ")));
        for wrong in
            [&[][..], &["--run-dir"], &["--run-dir", "/x", "--ready-fd", "x"], &["--other"], &["/run/x"]]
        {
            assert!(call(wrong).is_err(), "{wrong:?}");
        }
    }
}
