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
        Ok(Self { fd, socket: !device, input: Vec::new() })
    }

    pub(super) fn send(
        &mut self,
        kind: MsgType,
        req_id: u32,
        tx_id: u32,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let mut message = Vec::new();
        wire::put(&mut message, kind, req_id, tx_id, parts)
            .map_err(|_| Error::invalid(kind, "", wire::Errno::E2BIG))?;
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        self.send_bytes(&message, &raw)
    }

    /// Whole messages, made by [`wire::put`]; descriptors go with the first byte.
    pub(super) fn send_bytes(&mut self, messages: &[u8], raw: &[RawFd]) -> Result<()> {
        let mut rest = messages;
        let mut with_fds = !raw.is_empty();
        while !rest.is_empty() {
            let sent = match self.send_some(rest, if with_fds { raw } else { &[] }) {
                Err(Sys::EINTR) => continue,
                sent => sent?,
            };
            with_fds = false;
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    fn send_some(&self, bytes: &[u8], fds: &[RawFd]) -> nix::Result<usize> {
        if !self.socket {
            return write(&self.fd, bytes);
        }
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
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
            if deadline.is_some() && !self.readable_before(deadline)? {
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

    fn readable_before(&self, deadline: Option<Instant>) -> Result<bool> {
        loop {
            let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
                // Rounded up, so that the last fraction of a millisecond is slept and not spun.
                let left = deadline.saturating_duration_since(Instant::now());
                let millis = left.as_nanos().div_ceil(1_000_000);
                i32::try_from(millis).ok().and_then(|ms| ms.try_into().ok()).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Sys::EINTR) => {}
                Ok(0) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {}
                ready => return Ok(ready? > 0),
            }
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
