//! The access trace: what `--trace-file` and `xenstore control log` write, a line per message.
//!
//! The switches are those of C xenstored. `io` traces messages, `obj` connections; the others have nothing to say here
//! and are kept for whoever sets them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;

use crate::store::ConnId;
use crate::wire::{Errno, HEADER_LEN, Header, MsgType};

/// A switch: name and bit.
const SWITCHES: &[(&str, u8)] = &[("obj", 1), ("io", 2), ("wrl", 4), ("acc", 8), ("tdb", 16)];
const OBJ: u8 = 1;
const IO: u8 = 2;

/// Where the trace goes and what is in it.
#[derive(Debug)]
pub struct Trace {
    path: Option<PathBuf>,
    file: Option<File>,
    switches: u8,
}

impl Default for Trace {
    fn default() -> Self {
        Self { path: None, file: None, switches: OBJ | IO }
    }
}

impl Trace {
    /// Traces into a file from now on.
    ///
    /// # Errors
    /// What opening it says; the trace is then off.
    pub fn set_file(&mut self, path: PathBuf) -> io::Result<()> {
        self.path = Some(path);
        self.reopen()
    }

    /// `+io`, `-obj` and so on.
    ///
    /// # Errors
    /// `EINVAL` for another switch.
    pub fn set_switch(&mut self, arg: &[u8]) -> Result<(), Errno> {
        let (sign, name) = arg.split_first().ok_or(Errno::EINVAL)?;
        let (_, bit) = SWITCHES.iter().find(|(known, _)| known.as_bytes() == name).ok_or(Errno::EINVAL)?;
        match sign {
            b'+' => self.switches |= bit,
            b'-' => self.switches &= !bit,
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// Opens the file anew, as after it was moved away.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        if let Some(path) = &self.path {
            let mut options = OpenOptions::new();
            // Nothing may block: not even opening or writing what turns out to be a pipe.
            options.create(true).append(true).mode(0o600).custom_flags(OFlag::O_NONBLOCK.bits());
            self.file = Some(options.open(path)?);
        }
        Ok(())
    }

    /// The file, whether it is written to, and the bits of the switches.
    pub(super) fn state(&self) -> (Option<&Path>, bool, u64) {
        (self.path.as_deref(), self.file.is_some(), self.switches.into())
    }

    /// The switches by their bits, as [`Trace::state`] has them.
    pub(super) fn set_switches(&mut self, bits: u64) {
        self.switches =
            SWITCHES.iter().filter(|(_, bit)| bits & u64::from(*bit) != 0).map(|(_, bit)| bit).sum();
    }

    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// The switches as `xenstore control log` shows them.
    pub(super) fn settings(&self) -> String {
        let line = |(name, bit): &(&str, u8)| {
            format!("{name:<8}: {}\n", if self.switches & bit == 0 { "off" } else { "on" })
        };
        SWITCHES.iter().map(line).fold("Log switch settings:\n".into(), |text, line| text + &line)
    }

    /// A message came in, or went out.
    pub(super) fn message(&mut self, out: bool, conn: ConnId, message: &[u8]) {
        if self.file.is_some() && self.switches & IO != 0 {
            let Some(header) = Header::decode(message) else { return };
            let payload = message.get(HEADER_LEN..).unwrap_or_default();
            self.request(out, conn, &header, payload);
        }
    }

    /// As [`Trace::message`], taken apart.
    pub(super) fn request(&mut self, out: bool, conn: ConnId, header: &Header, payload: &[u8]) {
        if self.file.is_some() && self.switches & IO != 0 {
            let way = if out { "OUT" } else { "IN" };
            let printable = |byte: &u8| if (b' '..0x7f).contains(byte) { char::from(*byte) } else { ' ' };
            let text: String = payload.iter().map(printable).collect();
            let (kind, tx) = (name_of(header.kind), header.tx_id);
            self.line(&format!("io: {way} c{} {} {kind} tx {tx} ({text})\n", conn.0, time()));
        }
    }

    /// A connection came or went.
    pub(super) fn object(&mut self, created: bool, conn: ConnId) {
        if self.file.is_some() && self.switches & OBJ != 0 {
            let what = if created { "CREATE" } else { "DESTROY" };
            self.line(&format!("obj: {what} connection c{} {}\n", conn.0, time()));
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(file) = &mut self.file {
            // A line that finds no room is lost; the store goes on.
            let _ = file.write_all(line.as_bytes());
        }
    }
}

/// Seconds and microseconds since 1970.
fn time() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:06}", now.as_secs(), now.subsec_micros())
}

const NAMES: &[(MsgType, &str)] = &[
    (MsgType::CONTROL, "CONTROL"),
    (MsgType::DIRECTORY, "DIRECTORY"),
    (MsgType::READ, "READ"),
    (MsgType::GET_PERMS, "GET_PERMS"),
    (MsgType::WATCH, "WATCH"),
    (MsgType::UNWATCH, "UNWATCH"),
    (MsgType::TRANSACTION_START, "TRANSACTION_START"),
    (MsgType::TRANSACTION_END, "TRANSACTION_END"),
    (MsgType::INTRODUCE, "INTRODUCE"),
    (MsgType::RELEASE, "RELEASE"),
    (MsgType::GET_DOMAIN_PATH, "GET_DOMAIN_PATH"),
    (MsgType::WRITE, "WRITE"),
    (MsgType::MKDIR, "MKDIR"),
    (MsgType::RM, "RM"),
    (MsgType::SET_PERMS, "SET_PERMS"),
    (MsgType::WATCH_EVENT, "WATCH_EVENT"),
    (MsgType::ERROR, "ERROR"),
    (MsgType::IS_DOMAIN_INTRODUCED, "IS_DOMAIN_INTRODUCED"),
    (MsgType::RESUME, "RESUME"),
    (MsgType::SET_TARGET, "SET_TARGET"),
    (MsgType::RESET_WATCHES, "RESET_WATCHES"),
    (MsgType::DIRECTORY_PART, "DIRECTORY_PART"),
    (MsgType::GET_FEATURE, "GET_FEATURE"),
    (MsgType::SET_FEATURE, "SET_FEATURE"),
    (MsgType::GET_QUOTA, "GET_QUOTA"),
    (MsgType::SET_QUOTA, "SET_QUOTA"),
];

fn name_of(kind: MsgType) -> String {
    let known = NAMES.iter().find(|(known, _)| *known == kind);
    known.map_or_else(|| format!("**UNKNOWN** {}", kind.0), |(_, name)| (*name).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_those_of_c_xenstored() {
        let mut trace = Trace::default();
        assert_eq!(trace.set_switch(b"+acc"), Ok(()));
        assert_eq!(trace.set_switch(b"-io"), Ok(()));
        let text = trace.settings();
        assert!(text.contains("io      : off\n") && text.contains("acc     : on\n"), "{text}");
        for bad in [&b""[..], b"io", b"+", b"+x", b"*io"] {
            assert_eq!(trace.set_switch(bad), Err(Errno::EINVAL), "{bad:?}");
        }
    }

    #[test]
    fn messages_are_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let mut trace = Trace::default();
        trace.set_file(path.clone()).unwrap();
        let header = Header { kind: MsgType::READ, req_id: 1, tx_id: 3, len: 4 };
        trace.object(true, ConnId(7));
        trace.request(false, ConnId(7), &header, b"/a\n\0");
        trace.set_switch(b"-io").unwrap();
        trace.request(false, ConnId(7), &header, b"/b\0");
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("obj: CREATE connection c7 "));
        assert!(lines[1].starts_with("io: IN c7 ") && lines[1].ends_with(" READ tx 3 (/a  )"), "{text}");
    }
}
