//! The CONTROL commands that concern the daemon, not the store: logs, reports, live update.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::Server;
use crate::store::ConnId;
use crate::wire::{self, Errno, Header, MsgType, PAYLOAD_MAX, args};

/// What a command answers; none: later.
pub(super) type Answer = Result<Option<String>, Errno>;
type Command = fn(&mut Server, ConnId, &Header, &[&[u8]]) -> Answer;

const COMMANDS: &[(&str, Command)] =
    &[("log", log), ("logfile", logfile), ("memreport", memreport), ("live-update", Server::live_update)];

impl Server {
    /// Handles a CONTROL request of a client if it is one of these. `false`: it is the store's.
    pub(super) fn control(&mut self, conn: ConnId, header: &Header, payload: &[u8]) -> bool {
        let Ok(list) = args(payload) else { return false };
        let Some((name, rest)) = list.split_first() else { return false };
        let Some((_, run)) = COMMANDS.iter().find(|(known, _)| known.as_bytes() == *name) else {
            return false;
        };
        match run(self, conn, header, rest) {
            Ok(None) => {}
            Ok(Some(text)) => self.answer(conn, header, &text),
            Err(errno) => self.reply(conn, header, MsgType::ERROR, errno.name()),
        }
        true
    }

    /// Replies with a text, as much of it as a message holds.
    pub(super) fn answer(&mut self, conn: ConnId, header: &Header, text: &str) {
        let room = PAYLOAD_MAX - 1;
        let most = (0..=room).rev().find_map(|end| text.get(..end)).unwrap_or_default();
        let text =
            if text.len() <= room { text } else { most.rsplit_once('\n').map_or(most, |(lines, _)| lines) };
        self.reply(conn, header, header.kind, text);
    }

    pub(super) fn reply(&mut self, conn: ConnId, header: &Header, kind: MsgType, text: &str) {
        let mut message = Vec::new();
        // Made to fit.
        let _ = wire::put(&mut message, kind, header.req_id, header.tx_id, &[text.as_bytes(), b"\0"]);
        self.trace.message(true, conn, &message);
        self.post(conn, &message, false);
    }
}

fn ok() -> Answer {
    Ok(Some("OK".into()))
}

/// A path argument.
pub(super) fn path(arg: &[u8]) -> Result<PathBuf, Errno> {
    let path = Path::new(OsStr::from_bytes(arg));
    if path.as_os_str().is_empty() { Err(Errno::EINVAL) } else { Ok(path.to_owned()) }
}

fn log(server: &mut Server, _: ConnId, _: &Header, args: &[&[u8]]) -> Answer {
    match args {
        [] => return Ok(Some(server.trace.settings())),
        [b"on"] => server.trace.reopen().map_err(|_| Errno::EIO)?,
        [b"off"] => server.trace.close(),
        [switch] => server.trace.set_switch(switch)?,
        _ => return Err(Errno::EINVAL),
    }
    ok()
}

fn logfile(server: &mut Server, _: ConnId, _: &Header, args: &[&[u8]]) -> Answer {
    let [file] = args else { return Err(Errno::EINVAL) };
    server.trace.set_file(path(file)?).map_err(|error| {
        tracing::warn!("trace file {}: {error}", String::from_utf8_lossy(file));
        Errno::EIO
    })?;
    ok()
}

/// Never waits, not even for who should read what turns out to be a pipe.
fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
    options.open(path)?.write_all(text.as_bytes())
}

/// The whole report goes into a file, or as much of it as fits into the reply.
fn memreport(server: &mut Server, _: ConnId, _: &Header, args: &[&[u8]]) -> Answer {
    let report = server.report();
    match args {
        [] => Ok(Some(report)),
        [file] => {
            write_file(&path(file)?, &report).map_err(|error| {
                tracing::warn!("report file {}: {error}", String::from_utf8_lossy(file));
                Errno::EIO
            })?;
            ok()
        }
        _ => Err(Errno::EINVAL),
    }
}
