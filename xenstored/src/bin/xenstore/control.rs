//! `xenstore control`: a command to the daemon. Its arguments are the daemon's, so none is an option of the tool.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno as Sys;
use xenstored::client::{Client, Error};
use xenstored::wire::Errno;

use crate::Failure;
use crate::options::Options;
use crate::text::chain;

/// Exit status: the call makes no sense.
pub const MISUSED: u8 = 2;
/// Exit status: the daemon refused.
const REFUSED: u8 = 3;
/// Seconds a live update may wait for open transactions unless told.
const TIMEOUT: u32 = 60;

/// Sends the command and prints the answer.
pub fn control(client: &mut Client, options: &Options, output: &mut String) -> Result<(), Failure> {
    let args: Vec<&str> = options.args.iter().map(String::as_str).collect();
    match args.as_slice() {
        // Single steps, as the daemon knows them, are passed on.
        ["live-update", rest @ ..] if !matches!(rest.first(), Some(&("-a" | "-s"))) => {
            live_update(client, rest)
        }
        command => {
            let text = client.control(command).map_err(|error| refused(client, &error))?;
            if !text.is_empty() {
                output.push_str(&text);
                output.push('\n');
            }
            Ok(())
        }
    }
}

fn failed(status: u8, text: String) -> Failure {
    Failure::Status(status, text)
}

/// What there is instead, if the daemon does not know the command.
fn refused(client: &mut Client, error: &Error) -> Failure {
    match error.errno() {
        Some(Errno::EINVAL) => {
            let help = client.control(&["help"]).unwrap_or_default();
            failed(REFUSED, format!("Command not supported. Valid commands are:\n{help}"))
        }
        Some(errno) => failed(REFUSED, format!("Error {} when trying to execute command.", number(errno))),
        None => failed(REFUSED, chain(error)),
    }
}

/// The system's number of an error.
fn number(errno: Errno) -> i32 {
    (1..=133).find(|&number| format!("{:?}", Sys::from_raw(number)) == errno.name()).unwrap_or(0)
}

/// What `live-update` is told.
#[derive(Debug, PartialEq, Eq)]
struct Update<'a> {
    binary: &'a str,
    command_line: Option<&'a str>,
    version: Option<&'a str>,
    timeout: u32,
    force: bool,
}

/// The last of several files counts, and `-f` may stand before it.
fn parse<'a>(args: &[&'a str]) -> Result<Update<'a>, String> {
    let mut update = Update { binary: "", command_line: None, version: None, timeout: TIMEOUT, force: false };
    let mut rest = args.iter().copied();
    while let Some(arg) = rest.next() {
        match arg {
            "-c" => update.command_line = Some(rest.next().ok_or("Missing command line value")?),
            "-t" => update.timeout = seconds(rest.next().ok_or("Missing timeout value")?)?,
            "-v" => update.version = Some(rest.next().ok_or("Missing version value")?),
            "-F" => update.force = true,
            file => update.binary = file,
        }
    }
    if update.binary.is_empty() { Err("Missing binary specification".into()) } else { Ok(update) }
}

fn seconds(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("Invalid timeout value '{text}': not a number of seconds"))
}

/// Hands over binary and command line, then starts the update again and again while the daemon is busy.
fn live_update(client: &mut Client, args: &[&str]) -> Result<(), Failure> {
    let update = parse(args).map_err(|line| failed(MISUSED, line))?;
    step(client, &["-f", update.binary])
        .map_err(|why| failed(REFUSED, format!("Setting update binary failed:\n{why}")))?;
    if let Some(line) = update.command_line {
        step(client, &["-c", line])
            .map_err(|why| failed(REFUSED, format!("Setting update binary failed:\n{why}")))?;
    }
    if let Some(version) = update.version {
        step(client, &["-v", version])
            .map_err(|why| failed(REFUSED, format!("Setting stream version failed:\n{why}")))?;
    }
    let timeout = update.timeout.to_string();
    let start: &[&str] = if update.force { &["-s", "-t", &timeout, "-F"] } else { &["-s", "-t", &timeout] };
    let deadline = Instant::now() + Duration::from_secs(update.timeout.into());
    let mut outcome = Err("BUSY".to_owned());
    while outcome.as_ref().is_err_and(|why| why == "BUSY") && Instant::now() < deadline {
        outcome = step(client, start);
        if outcome.as_ref().is_err_and(|why| why == "BUSY") {
            sleep(Duration::from_secs(1));
        }
    }
    outcome.map_err(|why| {
        // The daemon forgets what it was handed; that it cannot say so changes nothing.
        let _ = step(client, &["-a"]);
        failed(REFUSED, format!("Starting live update failed:\n{why}"))
    })
}

/// One step; anything but `OK` is why it failed.
fn step(client: &mut Client, args: &[&str]) -> Result<(), String> {
    match client.control(&[&["live-update"], args].concat()) {
        Ok(text) if text == "OK" => Ok(()),
        Ok(text) => Err(text),
        Err(error) => Err(error.errno().map_or_else(|| chain(&error), |errno| errno.text().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_systems_numbers() {
        let all = [(Errno::EPERM, 1), (Errno::EACCES, 13), (Errno::ENOSYS, 38), (Errno::EISCONN, 106)];
        assert!(all.iter().all(|(errno, wanted)| number(*errno) == *wanted));
    }

    #[test]
    fn a_live_updates_arguments() {
        let plain = Update { binary: "/b", command_line: None, version: None, timeout: 60, force: false };
        assert_eq!(parse(&["/b"]), Ok(plain));
        let all =
            Update { binary: "/c", command_line: Some("x y"), version: Some("2"), timeout: 7, force: true };
        assert_eq!(parse(&["-f", "/b", "-c", "x y", "-v", "2", "-F", "-t", "7", "/c"]), Ok(all));
        for (args, line) in [
            (&["-F"][..], "Missing binary specification"),
            (&["/b", "-t"], "Missing timeout value"),
            (&["-c"], "Missing command line value"),
            (&["/b", "-t", "x"], "Invalid timeout value 'x': not a number of seconds"),
            (&["/b", "-t", "-1"], "Invalid timeout value '-1': not a number of seconds"),
        ] {
            assert_eq!(parse(args), Err(line.into()));
        }
    }
}
