//! What the tool can do, as a table.

use std::io::Write;

use xenstored::client::{Client, Error};
use xenstored::wire::{Errno, MsgType};

use crate::Failure;
use crate::control::{MISUSED, control};
use crate::ls::ls;
use crate::options::{Options, leading_number};
use crate::text::{escape, unescape};

/// One mode of the tool.
pub struct Mode {
    pub name: &'static str,
    /// Behind the names in the usage line.
    pub usage: &'static str,
    /// Options it knows; of one that knows none all arguments are the daemon's.
    pub letters: &'static str,
    /// Whether a number of arguments is right.
    pub accepts: fn(usize) -> bool,
    /// Whether it runs as one transaction.
    pub transaction: bool,
    pub run: fn(&mut Client, &Options, &mut String) -> Result<(), Failure>,
}

impl Mode {
    /// Whether the arguments are the daemon's; such a mode has words and exit status of its own.
    fn is_control(&self) -> bool {
        self.letters.is_empty()
    }

    /// The answer to a call that makes no sense.
    pub fn misused(&self, called: &str) -> Failure {
        if self.is_control() {
            Failure::Status(MISUSED, format!("Usage:\n{called} {}", self.usage))
        } else {
            Failure::Message(format!("Usage: {called} {}", self.usage))
        }
    }

    /// The answer when there is no daemon.
    pub fn unreachable(&self, why: &str) -> Failure {
        if self.is_control() {
            Failure::Status(1, format!("Failed to contact Xenstored.\n{why}"))
        } else {
            Failure::Message(format!("xs_open: {why}"))
        }
    }
}

/// All modes. `-s`, which once asked for the socket, is accepted everywhere and ignored.
pub const MODES: &[Mode] = &[
    Mode {
        name: "chmod",
        usage: "[-h] [-u] [-r] [-s] key <mode [modes...]>",
        letters: "hurs",
        accepts: |count| count >= 1,
        transaction: true,
        run: chmod,
    },
    Mode {
        name: "control",
        usage: "<command> [<arg>...]",
        letters: "",
        accepts: |count| count >= 1,
        transaction: false,
        run: control,
    },
    Mode {
        name: "exists",
        usage: "[-h] [-p] [-s] key [...]",
        letters: "hs",
        accepts: |count| count >= 1,
        transaction: true,
        run: exists,
    },
    Mode {
        name: "list",
        usage: "[-h] [-p] [-s] key [...]",
        letters: "hps",
        accepts: |count| count >= 1,
        transaction: true,
        run: list,
    },
    Mode {
        name: "ls",
        usage: "[-h] [-f] [-p] [-s] [path]",
        letters: "hfps",
        accepts: |_| true,
        transaction: false,
        run: ls,
    },
    Mode {
        name: "read",
        usage: "[-h] [-p] [-s] [-R] key [...]",
        letters: "hpsR",
        accepts: |count| count >= 1,
        transaction: true,
        run: read,
    },
    Mode {
        name: "rm",
        usage: "[-h] [-s] [-t] key [...]",
        letters: "hst",
        accepts: |count| count >= 1,
        transaction: true,
        run: rm,
    },
    Mode {
        name: "watch",
        usage: "[-h] [-n NR] key",
        letters: "hns",
        accepts: |count| count >= 1,
        transaction: false,
        run: watch,
    },
    Mode {
        name: "write",
        usage: "[-h] [-s] [-R] key value [...]",
        letters: "hsR",
        accepts: |count| count >= 2 && count % 2 == 0,
        transaction: true,
        run: write,
    },
];

/// What the store refused becomes the mode's own line; a broken connection speaks for itself.
fn or_say<T>(result: Result<T, Error>, line: impl FnOnce(Errno) -> String) -> Result<T, Failure> {
    result.map_err(|error| match error {
        Error::Store { errno, .. } => Failure::Message(line(errno)),
        error => error.into(),
    })
}

fn read(client: &mut Client, options: &Options, output: &mut String) -> Result<(), Failure> {
    for path in &options.args {
        let value = or_say(client.read(path), |_| format!("couldn't read path {path}"))?;
        if options.has('p') {
            output.push_str(&format!("{path}: "));
        }
        if options.has('R') {
            // Raw bytes cannot wait in a text.
            let mut stdout = std::io::stdout();
            let written = stdout.write_all(output.as_bytes()).and_then(|()| stdout.write_all(&value));
            output.clear();
            written.map_err(|_| Failure::Silent)?;
        } else {
            output.push_str(&escape(&value));
            output.push('\n');
        }
    }
    Ok(())
}

fn list(client: &mut Client, options: &Options, output: &mut String) -> Result<(), Failure> {
    for path in &options.args {
        let names = or_say(client.directory(path), |_| format!("could not list path {path}"))?;
        let prefix = if options.has('p') { format!("{path}/") } else { String::new() };
        output.extend(names.iter().map(|name| format!("{prefix}{name}\n")));
    }
    Ok(())
}

fn write(client: &mut Client, options: &Options, _: &mut String) -> Result<(), Failure> {
    for pair in options.args.chunks_exact(2) {
        let [path, text] = pair else { continue };
        let value = if options.has('R') { text.clone().into_bytes() } else { unescape(text) };
        or_say(client.write(path, value), |_| format!("could not write path {path}"))?;
    }
    Ok(())
}

fn rm(client: &mut Client, options: &Options, _: &mut String) -> Result<(), Failure> {
    for path in &options.args {
        or_say(client.rm(path), |_| format!("could not remove path {path}"))?;
        if options.has('t') {
            tidy(client, path)?;
        }
    }
    Ok(())
}

/// Removes the parents that are left without children and value.
fn tidy(client: &mut Client, path: &str) -> Result<(), Failure> {
    let mut path = path;
    while let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
        let used = client.read(parent).map_or(true, |value| !value.is_empty());
        if used || client.directory(parent).map_or(true, |names| !names.is_empty()) {
            break;
        }
        or_say(client.rm(parent), |_| format!("could not remove path {parent}"))?;
        path = parent;
    }
    Ok(())
}

fn exists(client: &mut Client, options: &Options, _: &mut String) -> Result<(), Failure> {
    for path in &options.args {
        match client.read(path) {
            Err(Error::Store { .. }) => return Err(Failure::Silent),
            result => result.map(drop)?,
        }
    }
    Ok(())
}

fn chmod(client: &mut Client, options: &Options, _: &mut String) -> Result<(), Failure> {
    let Some((path, texts)) = options.args.split_first() else { return Err(Failure::Silent) };
    let perms = texts.iter().map(|text| entry(text)).collect::<Result<String, _>>()?;
    let mut rest = vec![path.clone()];
    while let Some(path) = rest.pop() {
        set_perms(client, &path, &perms)?;
        if options.has('r') {
            let names = or_say(client.directory(&path), |_| format!("could not list path {path}"))?;
            let base = path.trim_end_matches('/');
            rest.extend(names.iter().map(|name| format!("{base}/{name}")));
        }
    }
    let mut path = path.as_str();
    while options.has('u') && path.len() > 1 {
        path = match path.rsplit_once('/') {
            Some(("", _)) => "/",
            Some((parent, _)) => parent,
            None => {
                return Err(Failure::Message(format!("Unable to locate path separator '/' in '{path}'")));
            }
        };
        set_perms(client, path, &perms)?;
    }
    Ok(())
}

/// A letter and the number behind it, as libxenstore makes it of a text and the store is to judge.
fn entry(text: &str) -> Result<String, Failure> {
    let letter = text.chars().next().unwrap_or('\0');
    if !"nrwb".contains(letter) {
        return Err(Failure::Message(format!("Invalid permission specification: '{letter}'")));
    }
    let number = leading_number(text.get(1..).unwrap_or_default());
    let low = number & i64::from(u32::MAX);
    Ok(format!("{letter}{low}\0"))
}

fn set_perms(client: &mut Client, path: &str, perms: &str) -> Result<(), Failure> {
    let line = |errno: Errno| format!("Error occurred setting permissions on '{path}': {}", errno.text());
    let parts = [path.as_bytes(), b"\0", perms.as_bytes()];
    or_say(client.request(MsgType::SET_PERMS, path, &parts, &[]).map(drop), line)
}

/// Prints as events come, not at the end.
fn watch(client: &mut Client, options: &Options, _: &mut String) -> Result<(), Failure> {
    for path in &options.args {
        let line = |_: Errno| format!("Unable to add watch on {path}\n");
        or_say(client.watch(path, path), line)?;
    }
    // A number below 0 is no limit.
    let mut left = options.number.unwrap_or(-1);
    while left != 0 {
        if let Some(event) = client.next_event(None)? {
            let mut stdout = std::io::stdout();
            let written = writeln!(stdout, "{}", event.path).and_then(|()| stdout.flush());
            written.map_err(|_| Failure::Silent)?;
            left = left.saturating_sub(1);
        }
    }
    Ok(())
}
