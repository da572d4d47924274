//! The user's terminal on a guest's console: raw, and put back on every way out.

use super::shown::Shown;
use crate::failure::Failure;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{ErrorKind, Read, Stdin, Write};
use std::os::fd::{AsFd, OwnedFd};

/// `^]`
pub const ESCAPE: u8 = 0x1d;

/// Guest input that waits for the guest; no more is read before it is gone.
const INPUT: usize = 4096;

/// How a console session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The user left; or nobody reads our output any more.
    Left,
    /// The domain is gone.
    Gone,
}

/// Carry bytes both ways until the user types `escape` or the domain is gone. End of input leaves the output on.
///
/// # Errors
/// A signal (status 128 + its number), or the host's own.
pub fn attach(console: OwnedFd, escape: u8, shown: &mut Shown) -> Result<Ended> {
    let flags = OFlag::from_bits_retain(fcntl(&console, FcntlArg::F_GETFL)?);
    fcntl(&console, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let console = File::from(console);
    let signals = Signals::take()?;
    let raw = Raw::enter()?;
    let session = Session { console, escape, input: Some(std::io::stdin()), pending: Vec::new(), shown };
    let ended = session.run(&signals);
    drop(raw);
    drop(signals);
    ended
}

struct Session<'a> {
    console: File,
    escape: u8,
    input: Option<Stdin>,
    pending: Vec<u8>,
    shown: &'a mut Shown,
}

impl Session<'_> {
    fn run(mut self, signals: &Signals) -> Result<Ended> {
        loop {
            let [console, input, signal] = self.ready(signals)?;
            if signal && let Some(info) = signals.fd.read_signal()? {
                let status = u8::try_from(info.ssi_signo).unwrap_or(0).saturating_add(128);
                return Err(Failure::silent(status));
            }
            if input && self.read_input()? {
                return Ok(Ended::Left);
            }
            if !self.write_console()? {
                self.pending.clear();
            }
            if console && let Some(ended) = self.copy_output()? {
                return Ok(ended);
            }
        }
    }

    /// Sleep until something can be done: output, input, a signal.
    fn ready(&self, signals: &Signals) -> Result<[bool; 3]> {
        let wanted =
            if self.pending.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
        let mut fds = vec![
            PollFd::new(self.console.as_fd(), wanted),
            PollFd::new(signals.fd.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(input) = self.input.as_ref().filter(|_| self.pending.is_empty()) {
            fds.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let any = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        Ok([any(0), any(2), any(1)])
    }

    /// What the user typed; true when it was the escape.
    fn read_input(&mut self) -> Result<bool> {
        let Some(input) = &self.input else { return Ok(false) };
        let mut bytes = [0; INPUT];
        let read = match nix::unistd::read(input, &mut bytes) {
            Ok(read) => bytes.get(..read).unwrap_or_default(),
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(false),
            // The terminal is gone.
            Err(_) => &[],
        };
        if read.is_empty() {
            self.input = None;
        }
        let escape = read.iter().position(|&byte| byte == self.escape);
        self.pending.extend_from_slice(read.get(..escape.unwrap_or(read.len())).unwrap_or_default());
        if escape.is_some() {
            self.write_console()?;
        }
        Ok(escape.is_some())
    }

    /// As much input as the guest takes; false when it takes none any more.
    fn write_console(&mut self) -> Result<bool> {
        while !self.pending.is_empty() {
            match self.console.write(&self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// What the guest wrote.
    fn copy_output(&mut self) -> Result<Option<Ended>> {
        let mut bytes = [0; 16384];
        let read = match self.console.read(&mut bytes) {
            Ok(0) => return Ok(Some(Ended::Gone)),
            Ok(read) => bytes.get(..read).unwrap_or_default(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(_) => return Ok(Some(Ended::Gone)),
        };
        let mut out = std::io::stdout().lock();
        match out.write_all(&self.shown.news(read)).and_then(|()| out.flush()) {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Some(Ended::Left)),
            Err(error) => Err(error).context("cannot write the console's output"),
        }
    }
}

/// A raw terminal, its old state restored on drop. Nothing for anything that is no terminal.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Result<Self> {
        let Ok(saved) = tcgetattr(std::io::stdin()) else { return Ok(Raw(None)) };
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Raw(Some(saved)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(saved) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, saved);
        }
    }
}

/// The signals that end a program, as a descriptor; the mask is put back on drop.
struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    fn take() -> Result<Self> {
        let ending = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
        let mask = ending.into_iter().collect::<SigSet>();
        let before = mask.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Signals { fd, before })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}
