//! The store tool: `xenstore MODE ...`, or one mode by the name it is called with, `xenstore-MODE`.
//!
//! Options and output are those of the tools in Xen's xenstore-utils.
#![forbid(unsafe_code)]

mod ls;
mod modes;
mod options;
mod text;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use xenstored::client::Client;

use modes::{MODES, Mode};
use options::Options;

/// Why a run ended without success.
enum Failure {
    /// A line for stderr, behind the program's name.
    Message(String),
    /// Nothing to say: the exit status is the answer.
    Silent,
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let called = args.next().unwrap_or_default();
    let program = Path::new(&called).file_name().map_or("xenstore".into(), |name| name.to_string_lossy());
    let mut output = String::new();
    let result = run(&called, &program, args.collect(), &mut output);
    let written = std::io::stdout().write_all(output.as_bytes());
    match result {
        Ok(()) if written.is_ok() => ExitCode::SUCCESS,
        Err(Failure::Message(line)) => {
            eprintln!("{program}: {line}");
            ExitCode::FAILURE
        }
        _ => ExitCode::FAILURE,
    }
}

/// `called` is the tool as it was called, `program` its name alone.
fn run(called: &str, program: &str, args: Vec<String>, output: &mut String) -> Result<(), Failure> {
    let (mode, included, args) = match program.strip_prefix("xenstore-").and_then(find) {
        Some(mode) => (mode, "", args),
        None => {
            let names: Vec<&str> = MODES.iter().map(|mode| mode.name).collect();
            let usage = format!("Usage: {called} <mode> [-h] [...]\nmodes: {}", names.join(" "));
            let Some((name, rest)) = args.split_first() else { return Err(Failure::Message(usage)) };
            let mode = find(name).ok_or_else(|| Failure::Message(format!("unknown mode {name}")))?;
            (mode, mode.name, rest.to_vec())
        }
    };
    let usage = || {
        let space = if included.is_empty() { "" } else { " " };
        Failure::Message(format!("Usage: {called}{space}{included} {}", mode.usage))
    };
    let options = Options::parse(&args, mode.letters).map_err(Failure::Message)?;
    if options.has('h') || !(mode.accepts)(options.args.len()) {
        return Err(usage());
    }
    let mut client = Client::connect_default().map_err(|error| Failure::Message(text::chain(&error)))?;
    if !mode.transaction {
        return (mode.run)(&mut client, &options, output);
    }
    let attempt = |client: &mut Client| {
        output.clear();
        (mode.run)(client, &options, output)
    };
    client.transaction(attempt)
}

fn find(name: &str) -> Option<&'static Mode> {
    MODES.iter().find(|mode| mode.name == name)
}

impl From<xenstored::client::Error> for Failure {
    fn from(error: xenstored::client::Error) -> Self {
        Self::Message(text::chain(&error))
    }
}
