//! xlr: what xl is to Xen. Called by the name `xl` it behaves the same.
#![forbid(unsafe_code)]

/// A line on stdout; a reader that went away is no error.
macro_rules! say {
    ($($what:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($what)*)));
    }};
}

/// A line on stderr, in one piece.
macro_rules! tell {
    ($($what:tt)*) => {{
        let line = format!("{}\n", format_args!($($what)*));
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }};
}

mod args;
mod bootloader;
mod cmd;
mod commands;
mod complete;
mod config;
mod cpus;
mod device;
mod domains;
mod dry_run;
mod failure;
mod help;
mod host;
mod json;
mod proc;
mod pvshim;
mod render;
mod spawn;
mod store;
mod xlcfg;

use args::Globals;
use failure::Failure;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_else(|| "xlr".into());
    let program = program.rsplit('/').next().unwrap_or("xlr").to_owned();
    let outcome = run(program, words.collect());
    let _ = std::io::stdout().flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            if !message.is_empty() {
                tell!("{message}");
            }
            ExitCode::from(error.downcast_ref::<Failure>().map_or(1, |failure| failure.status))
        }
    }
}

/// Dispatch: global options, then the command and its own.
fn run(program: String, words: Vec<String>) -> anyhow::Result<()> {
    let (globals, mut rest) = Globals::parse(program, &words)?;
    if globals.version {
        return help::version(&globals);
    }
    if rest.is_empty() || globals.help {
        help::overview(&globals, false);
        return if globals.help { Ok(()) } else { Err(Failure::silent(1)) };
    }
    let name = rest.remove(0);
    if name == complete::HOOK {
        return complete::candidates(&rest);
    }
    let command = commands::find(&name)?;
    if globals.dry_run && !command.dry_run {
        return Err(Failure::error(1, "command does not implement -N (dryrun) option"));
    }
    let Some(args) = args::parse(command, &globals, &rest)? else {
        help::usage(command, &globals);
        return Ok(());
    };
    (command.run)(&args)
}
