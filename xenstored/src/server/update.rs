//! Live update: another binary goes on as this process, with every connection and everything that is known.
//!
//! The new binary is first run on a copy of the state, in a process of its own that touches nothing else: one that
//! cannot be executed, crashes, is something else or does not understand the state is found out while this one serves
//! on. Meanwhile open transactions are waited for and new ones wait. Then the state is written to a memfd, descriptors
//! are marked as inherited, and the new binary takes the process over. The requester's `OK` is part of the state.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::execve;

use super::Server;
use super::control::{Answer, path};
use super::fds::set_inherited;
use super::poll::Token;
use crate::migration::VERSION;
use crate::store::ConnId;
use crate::wire::{Errno, Header, MsgType, number};

/// How long transactions are waited for unless told.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a trial may take.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Said by a binary that understood the state it was tried on.
pub const ACCEPTED: &str = "xenstored: state accepted\n";
/// Bytes of a trial's output that are kept, the last ones.
const OUTPUT: usize = 4096;

/// The option by which a new binary is told that there is a state.
pub const UPDATE_OPTION: &str = "--live-update";
/// The option that says where.
pub const STATE_OPTION: &str = "--state-fd";
/// What C xenstored says instead.
const SHORT_OPTION: &str = "-U";
/// The option that makes it a trial.
pub const TRIAL_OPTION: &str = "--trial";

/// A live update that was begun.
#[derive(Debug)]
pub(super) struct Update {
    conn: ConnId,
    binary: PathBuf,
    /// Its arguments; none: those of this process.
    args: Option<Vec<OsString>>,
    started: Option<Started>,
}

#[derive(Debug)]
struct Started {
    header: Header,
    deadline: Instant,
    force: bool,
    trial: Option<Trial>,
}

/// A binary that is being tried, or was.
#[derive(Debug)]
struct Trial {
    child: Child,
    output: OwnedFd,
    text: Vec<u8>,
    deadline: Instant,
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// `-f FILE`, `-c ARGUMENTS`, `-v VERSION`, `-s [-t SECONDS] [-F]`, `-a`.
    pub(super) fn live_update(&mut self, conn: ConnId, header: &Header, args: &[&[u8]]) -> Answer {
        let text = match args {
            [b"-f", file] => self.update_binary(conn, path(file)?),
            [b"-c", line] => self.update_args(conn, line),
            [b"-v", version] => self.update_version(conn, number(version)?),
            [b"-a"] => self.update_abort(),
            [b"-s", options @ ..] => {
                let (timeout, force) = start_options(options)?;
                match self.update_start(conn, header, timeout, force) {
                    "" => return Ok(None),
                    text => text,
                }
            }
            _ => return Err(Errno::EINVAL),
        };
        Ok(Some(text.into()))
    }

    fn update_binary(&mut self, conn: ConnId, binary: PathBuf) -> &'static str {
        if self.update.is_some() {
            return "live-update session already active.";
        }
        match std::fs::metadata(&binary) {
            Err(_) => return "File not accessible.",
            Ok(meta) if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 => {
                return "File not executable.";
            }
            Ok(_) => {}
        }
        self.update = Some(Update { conn, binary, args: None, started: None });
        "OK"
    }

    fn update_args(&mut self, conn: ConnId, line: &[u8]) -> &'static str {
        let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let args = words.map(|word| OsStr::from_bytes(word).to_owned()).collect();
        match self.update.as_mut().filter(|update| update.conn == conn && update.started.is_none()) {
            Some(update) => {
                update.args = Some(args);
                "OK"
            }
            None => "Not in live-update session.",
        }
    }

    /// The version of the stream that the new binary reads: there is only one that is written.
    fn update_version(&self, conn: ConnId, version: u32) -> &'static str {
        if !self.update.as_ref().is_some_and(|update| update.conn == conn && update.started.is_none()) {
            "Not in live-update session."
        } else if version != VERSION {
            "Only version 2 of the stream is written."
        } else {
            "OK"
        }
    }

    fn update_abort(&mut self) -> &'static str {
        if self.update.is_none() {
            return "No live-update session active.";
        }
        self.update_failed("aborted");
        "OK"
    }

    /// An empty answer means that the outcome will be told.
    fn update_start(
        &mut self,
        conn: ConnId,
        header: &Header,
        timeout: Duration,
        force: bool,
    ) -> &'static str {
        let Some(update) =
            self.update.as_mut().filter(|update| update.conn == conn && update.started.is_none())
        else {
            return "Not in live-update session.";
        };
        let deadline = Instant::now() + timeout;
        update.started = Some(Started { header: *header, deadline, force, trial: None });
        tracing::info!("live update to {} begins", update.binary.display());
        if let Err(error) = self.try_binary() {
            self.update_failed(&format!("the binary cannot be tried: {error}"));
        }
        ""
    }

    /// A connection that goes takes its update along.
    pub(super) fn update_dropped(&mut self, conn: ConnId) {
        if self.update.as_ref().is_some_and(|update| update.conn == conn) {
            self.update_failed("the client that asked for it is gone");
        }
    }

    /// Goes on with an update that was started, after every turn.
    pub(super) fn update_step(&mut self) {
        let Some(started) = self.update.as_ref().and_then(|update| update.started.as_ref()) else { return };
        let now = Instant::now();
        if let Some(trial) = &started.trial {
            if now >= trial.deadline {
                self.update_failed("the binary was tried for too long");
            }
            return;
        }
        let open: Vec<_> = self.store.open_transactions().collect();
        if open.is_empty() || (started.force && now >= started.deadline) {
            let error = self.become_new();
            self.update_failed(&format!("the binary cannot be executed: {error}"));
        } else if now >= started.deadline {
            let lines: Vec<_> = open
                .iter()
                .map(|(conn, domid, open)| format!("\nDomain {domid}, connection {}: {open}", conn.0))
                .collect();
            self.update_failed(&format!("Not all transactions finished:{}", lines.concat()));
        }
    }

    /// When [`Server::update_step`] has to be called at the latest.
    pub(super) fn update_deadline(&self) -> Option<Instant> {
        let started = self.update.as_ref()?.started.as_ref()?;
        Some(started.trial.as_ref().map_or(started.deadline, |trial| trial.deadline))
    }

    /// Whether a request waits for an update: a new transaction of somebody who has none open.
    pub(super) fn waits_for_update(&self, conn: ConnId, header: &Header) -> bool {
        header.kind == MsgType::TRANSACTION_START
            && self.update.as_ref().is_some_and(|update| update.started.is_some())
            && !self.store.in_transaction(conn)
    }

    /// This process goes on, the requester is told why, and whoever waited goes on too.
    fn update_failed(&mut self, why: &str) {
        let Some(update) = self.update.take() else { return };
        tracing::warn!("live update to {}: {why}", update.binary.display());
        if let Some(started) = &update.started {
            if let Some(trial) = &started.trial {
                self.poller.remove(&trial.output);
            }
            self.answer(update.conn, &started.header, why);
        }
        let held: Vec<_> = self.links.iter().filter(|(_, link)| link.held).map(|(conn, _)| *conn).collect();
        held.into_iter().for_each(|conn| self.release_held(conn));
        self.flush_written();
    }

    fn command_line(&self) -> (PathBuf, Vec<OsString>) {
        let Some(update) = &self.update else { return Default::default() };
        let own = || std::env::args_os().skip(1).collect();
        let mut args: Vec<OsString> = update.args.clone().unwrap_or_else(own);
        args.retain(|arg| {
            ![UPDATE_OPTION, SHORT_OPTION, STATE_OPTION, TRIAL_OPTION]
                .iter()
                .any(|option| belongs(arg, option))
        });
        args.push(UPDATE_OPTION.into());
        (update.binary.clone(), args)
    }

    /// Runs the new binary on the state as it is now; [`Server::trial_speaks`] is told of what comes of it.
    fn try_binary(&mut self) -> io::Result<()> {
        let state = memfd(&self.dump()?)?;
        let (binary, args) = self.command_line();
        let mut command = Command::new(binary);
        command.args(args).arg(format!("{STATE_OPTION}=0")).arg(TRIAL_OPTION);
        let (output, said) = io::pipe()?;
        rustix::io::ioctl_fionbio(&output, true)?;
        command.stdin(state).stdout(said.try_clone()?).stderr(said).env_remove("NOTIFY_SOCKET");
        // What it says is for whoever asked.
        command.env("RUST_LIB_BACKTRACE", "0");
        let child = command.spawn()?;
        // Else the end of what it says would not come: this has the other end too.
        drop(command);
        let deadline = Instant::now() + TRIAL_TIMEOUT;
        let trial = Trial { child, output: output.into(), text: Vec::new(), deadline };
        self.poller.add(&trial.output, Token::Trial)?;
        if let Some(started) = self.update.as_mut().and_then(|update| update.started.as_mut()) {
            started.trial = Some(trial);
        }
        Ok(())
    }

    /// Output of the trial, or its end.
    pub(super) fn trial_speaks(&mut self) {
        let Some(started) = self.update.as_mut().and_then(|update| update.started.as_mut()) else { return };
        let Some(trial) = &mut started.trial else { return };
        let mut chunk = [0; OUTPUT];
        match nix::unistd::read(&trial.output, &mut chunk) {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return,
            Ok(count @ 1..) => {
                trial.text.extend_from_slice(chunk.get(..count).unwrap_or_default());
                trial.text.drain(..trial.text.len().saturating_sub(OUTPUT));
                return;
            }
            Ok(0) | Err(_) => {}
        }
        self.poller.remove(&trial.output);
        // It closed its output as its last act, or is killed by now.
        let ended = started.trial.take().map(|mut trial| (trial.end(), std::mem::take(&mut trial.text)));
        let Some((status, text)) = ended else { return };
        if status.is_none_or(|status| !status.success()) || !text.ends_with(ACCEPTED.as_bytes()) {
            let status = status.map_or_else(|| "it does not end".into(), |status| status.to_string());
            let said = String::from_utf8_lossy(&text);
            self.update_failed(format!("the binary does not accept the state: {status}\n{said}").trim_end());
        }
    }

    /// Becomes the new binary. Returns only if that fails.
    fn become_new(&mut self) -> io::Error {
        let Some(update) = &self.update else { return io::Error::other("no update") };
        let Some(header) = update.started.as_ref().map(|started| started.header) else {
            return io::Error::other("not started");
        };
        let conn = update.conn;
        // Of this reply the new binary sends what is not sent here; taken back if there is none.
        let before = self.links.get(&conn).map(|link| link.outbox.clone());
        self.answer(conn, &header, "OK");
        let error = self.execute().err().unwrap_or_else(|| io::Error::other("it returned"));
        if let Some((link, before)) = self.links.get_mut(&conn).zip(before) {
            link.outbox = before;
        }
        let all: Vec<BorrowedFd<'_>> = self.descriptors().collect();
        for fd in all {
            let _ = set_inherited(fd, false);
        }
        error
    }

    fn execute(&mut self) -> io::Result<std::convert::Infallible> {
        let state = memfd(&self.dump()?)?;
        for fd in self.descriptors().chain([state.as_fd()]) {
            set_inherited(fd, true)?;
        }
        let (binary, args) = self.command_line();
        let state = format!("{STATE_OPTION}={}", state.as_raw_fd());
        let binary = c_string(binary.into_os_string().into_vec())?;
        let mut argv = vec![binary.clone()];
        for arg in args.into_iter().chain([OsString::from(state)]) {
            argv.push(c_string(arg.into_vec())?);
        }
        let environment =
            std::env::vars_os().filter(|(name, _)| name != "LISTEN_FDS" && name != "LISTEN_PID");
        let entry = |(name, value): (OsString, OsString)| {
            c_string([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let environment = environment.map(entry).collect::<io::Result<Vec<_>>>()?;
        tracing::info!("live update: becoming {}", binary.to_string_lossy());
        Ok(execve(&binary, &argv, &environment)?)
    }
}

impl Trial {
    /// Its status, if it ends soon after it closed its output.
    fn end(&mut self) -> Option<std::process::ExitStatus> {
        for _ in 0..100 {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => return None,
            }
        }
        None
    }
}

fn start_options(mut options: &[&[u8]]) -> Result<(Duration, bool), Errno> {
    let (mut timeout, mut force) = (TIMEOUT, false);
    loop {
        options = match options {
            [] => return Ok((timeout, force)),
            [b"-F", rest @ ..] => {
                force = true;
                rest
            }
            [b"-t", seconds, rest @ ..] => {
                timeout = Duration::from_secs(number::<u32>(seconds)?.into());
                rest
            }
            [b"-v", b"2", rest @ ..] => rest,
            _ => return Err(Errno::EINVAL),
        };
    }
}

/// Whether an argument is this option, with or without `=VALUE`.
fn belongs(arg: &OsStr, option: &str) -> bool {
    let rest = arg.as_bytes().strip_prefix(option.as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"="))
}

fn c_string(bytes: impl Into<Vec<u8>>) -> io::Result<CString> {
    Ok(CString::new(bytes)?)
}

/// A file in memory, closed when another program is executed unless that is changed.
fn memfd(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"xenstored state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// Where C xenstored leaves the state for its successor.
#[must_use]
pub fn state_file(rundir: &Path) -> PathBuf {
    rundir.join("state_dump")
}
