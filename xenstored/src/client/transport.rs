//! Whole messages over a socket or over the kernel's xenbus device.

use std::fs::OpenOptions;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;
use std::{fs, io};

use nix::errno::Errno as Sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{read, write};

use super::error::{Error, Result};
use crate::wire::{self, HEADER_LEN, Header, MsgType};

#[derive(Debug)]
pub(super) struct Transport {
    fd: OwnedFd,
    socket: bool,
    input: Vec<u8>,
    /// What the daemon has had no room for yet.
    output: Vec<u8>,
}

impl Transport {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Connect { path: path.to_owned(), source };
        let device = fs::metadata(path).is_ok_and(|meta| meta.file_type().is_char_device());
        let fd: OwnedFd = if device {
            OpenOptions::new().read(true).write(true).open(path).map_err(failed)?.into()
        } else {
            UnixStream::connect(path).map_err(failed)?.into()
        };
        Ok(Self { fd, socket: !device, input: Vec::new(), output: Vec::new() })
    }

    /// Puts a request behind what waits to be sent.
    pub(super) fn queue(&mut self, kind: MsgType, req_id: u32, tx_id: u32, parts: &[&[u8]]) -> Result<()> {
        wire::put(&mut self.output, kind, req_id, tx_id, parts)
            .map_err(|_| Error::invalid(kind, "request", wire::Errno::E2BIG))
    }

    /// Sends all that waits; descriptors go with its first byte, so the caller sees to it that this is the right one.
    /// `false` if `deadline` passes first; the rest then still waits.
    ///
    /// While the daemon does not read, what it says is taken in, so that neither waits for the other.
    pub(super) fn flush(&mut self, fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Result<bool> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut with_fds = !raw.is_empty();
        while !self.output.is_empty() {
            match self.send_some(if with_fds { &raw } else { &[] }) {
                Ok(sent) => {
                    self.output.drain(..sent);
                    with_fds = false;
                }
                Err(Sys::EINTR) => {}
                Err(Sys::EAGAIN) => {
                    let ready = self.wait(PollFlags::POLLIN | PollFlags::POLLOUT, deadline)?;
                    if ready.contains(PollFlags::POLLIN) {
                        self.fill()?;
                    }
                    if ready.is_empty() {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Whether something waits to be sent.
    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    fn send_some(&self, fds: &[RawFd]) -> nix::Result<usize> {
        if !self.socket {
            return write(&self.fd, &self.output);
        }
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(&self.output)], control, flags, None)
    }

    /// One whole message, or `None` when `deadline` passes first. What came of it so far is kept.
    pub(super) fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<(Header, Vec<u8>)>> {
        loop {
            let message = wire::split(&self.input).map_err(|error| Error::Protocol(error.to_string()))?;
            if let Some((header, payload)) = message {
                let payload = payload.to_vec();
                self.input.drain(..HEADER_LEN + payload.len());
                return Ok(Some((header, payload)));
            }
            if deadline.is_some() && self.wait(PollFlags::POLLIN, deadline)?.is_empty() {
                return Ok(None);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut chunk = [0; 8192];
        let got = loop {
            match read(&self.fd, &mut chunk) {
                Err(Sys::EINTR) => {}
                got => break got?,
            }
        };
        if got == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.input.extend_from_slice(chunk.get(..got).unwrap_or_default());
        Ok(())
    }

    /// Waits until one of `flags` holds, and says which; none when `deadline` passes first. A broken connection counts as
    /// readable: reading it says how it broke.
    fn wait(&self, flags: PollFlags, deadline: Option<Instant>) -> Result<PollFlags> {
        loop {
            let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
                // Rounded up, so that the last fraction of a millisecond is slept and not spun.
                let left = deadline.saturating_duration_since(Instant::now());
                let millis = left.as_nanos().div_ceil(1_000_000);
                i32::try_from(millis).ok().and_then(|ms| ms.try_into().ok()).unwrap_or(PollTimeout::MAX)
            });
            let mut polled = [PollFd::new(self.fd.as_fd(), flags)];
            match poll(&mut polled, timeout) {
                Err(Sys::EINTR) => {}
                Ok(0) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
                Ok(0) => return Ok(PollFlags::empty()),
                ready => {
                    ready?;
                    let events = polled.first().and_then(PollFd::revents).unwrap_or(PollFlags::empty());
                    let broken =
                        events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL);
                    return Ok(if broken { events | PollFlags::POLLIN } else { events });
                }
            }
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
