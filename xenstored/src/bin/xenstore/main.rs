//! The store tool: `xenstore MODE ...`, or one mode by the name it is called with, `xenstore-MODE`.
//!
//! Options, output and exit status are those of the tools in Xen's xenstore-utils.
#![forbid(unsafe_code)]

mod control;
mod ls;
mod modes;
mod options;
mod text;

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno as Sys;
use xenstored::client::{Client, Error};

use modes::{MODES, Mode};
use options::Options;

/// Why a run ended without success.
enum Failure {
    /// A line for stderr, behind the program's name.
    Message(String),
    /// An exit status of its own, and text for stderr as it is.
    Status(u8, String),
    /// Nothing to say: the exit status is the answer.
    Silent,
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default().to_string_lossy().into_owned();
    let program = Path::new(&called).file_name().map_or("xenstore".into(), |name| name.to_string_lossy());
    let mut output = String::new();
    let args: Result<Vec<String>, _> =
        args.map(|arg| arg.into_string().map_err(|arg| no_text(&arg))).collect();
    let result = args.and_then(|args| run(&called, &program, args, &mut output));
    let written = std::io::stdout().write_all(output.as_bytes());
    match result {
        Ok(()) if written.is_ok() => return ExitCode::SUCCESS,
        Err(Failure::Message(line)) => eprintln!("{program}: {line}"),
        Err(Failure::Status(status, text)) => {
            eprintln!("{text}");
            return ExitCode::from(status);
        }
        _ => {}
    }
    ExitCode::FAILURE
}

/// Rather than a value that is another one.
fn no_text(arg: &OsStr) -> Failure {
    Failure::Message(format!("{arg:?} is not UTF-8: a byte of a value can be written as \\xNN"))
}

/// `called` is the tool as it was called, `program` its name alone.
fn run(called: &str, program: &str, args: Vec<String>, output: &mut String) -> Result<(), Failure> {
    let (mode, called, speaker, args) = match program.strip_prefix("xenstore-").and_then(find) {
        Some(mode) => (mode, called.to_owned(), called, args),
        None => {
            let mode = named(called, args.first())?;
            (mode, format!("{called} {}", mode.name), mode.name, args.into_iter().skip(1).collect())
        }
    };
    let options = Options::parse(&args, mode.letters);
    options.complaints.iter().for_each(|line| eprintln!("{speaker}: {line}"));
    if options.wrong || !(mode.accepts)(options.args.len()) {
        return Err(mode.misused(&called));
    }
    let mut client = connect(mode)?;
    if !mode.transaction {
        return (mode.run)(&mut client, &options, output);
    }
    let attempt = |client: &mut Client| {
        output.clear();
        (mode.run)(client, &options, output)
    };
    client.transaction(attempt)
}

/// The mode that the first argument names.
fn named(called: &str, name: Option<&String>) -> Result<&'static Mode, Failure> {
    let usage = format!("Usage: {called} <mode> [-h] [...]");
    match name.map(String::as_str) {
        None => Err(Failure::Message(usage)),
        Some("-h" | "--help") => {
            let names: Vec<&str> = MODES.iter().map(|mode| mode.name).collect();
            Err(Failure::Message(format!("{usage}\nmodes: {}", names.join(" "))))
        }
        Some(name) => find(name).ok_or_else(|| Failure::Message(format!("unknown mode {name}\n"))),
    }
}

/// In the words of libxenstore, and where the daemon was looked for.
fn connect(mode: &Mode) -> Result<Client, Failure> {
    Client::connect_default().map_err(|error| match error {
        Error::Connect { path, source } => {
            let errno = source.raw_os_error().map(Sys::from_raw);
            let why = errno.map_or_else(|| source.to_string(), |errno| errno.desc().to_owned());
            let line = format!("{why}: is xenstored running at {}?", path.display());
            mode.unreachable(&line)
        }
        error => error.into(),
    })
}

fn find(name: &str) -> Option<&'static Mode> {
    MODES.iter().find(|mode| mode.name == name)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Message(match error {
            Error::Store { op: "TRANSACTION_START", .. } => "couldn't start transaction".into(),
            Error::Store { op: "TRANSACTION_END", .. } => "couldn't end transaction".into(),
            error => text::chain(&error),
        })
    }
}
