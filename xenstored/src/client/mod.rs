//! The client library: one blocking connection to a store.
//!
//! A [`Client`] belongs to one thread; programs with several threads open several. Watch events that arrive while a
//! reply is awaited are kept and handed out by [`Client::next_event`]; whoever polls the descriptor drains
//! `next_event(Some(Duration::ZERO))` first.

mod batch;
mod domain;
mod error;
mod requests;
mod transport;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use batch::Batch;
pub use error::{Error, Result};
pub use requests::RingFds;
use transport::Transport;

use crate::wire::{Errno, Header, MsgType};

/// Where the store listens: `XENSTORED_PATH`, or `socket` in `XENSTORED_RUNDIR`, or the store that xlr has started for a
/// user who is not root (`xenstored/socket` in xlr's run directory), or `/run/xenstored/socket`.
#[must_use]
pub fn default_path() -> PathBuf {
    let from_env = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from_env("XENSTORED_PATH")
        .or_else(|| Some(from_env("XENSTORED_RUNDIR")?.join("socket")))
        .or_else(|| own_store(from_env("XLR_RUN_DIR"), from_env("XDG_RUNTIME_DIR")))
        .unwrap_or_else(|| PathBuf::from("/run/xenstored/socket"))
}

/// Where xlr keeps the store of a user: its run directory is found as in `xen-emu-api`, which this crate must not know.
fn own_store(run_dir: Option<PathBuf>, runtime: Option<PathBuf>) -> Option<PathBuf> {
    let uid = nix::unistd::geteuid();
    let run_dir = run_dir.or_else(|| Some(runtime?.join("xlr")));
    let socket = run_dir.unwrap_or_else(|| PathBuf::from(format!("/tmp/xlr-{uid}"))).join("xenstored/socket");
    (!uid.is_root() && socket.exists()).then_some(socket)
}

/// A watch fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The path that changed, relative if the watch was registered so.
    pub path: String,
    /// The token the watch was registered with.
    pub token: String,
}

/// A connection to the store.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    events: VecDeque<WatchEvent>,
    timeout: Option<Duration>,
    req_id: u32,
    /// The transaction that requests belong to, 0 outside of [`Client::transaction`].
    tx_id: u32,
}

impl Client {
    /// Connects to the daemon's socket, or opens the kernel's device (`/dev/xen/xenbus`) if `path` is one.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let transport = Transport::open(path.as_ref())?;
        Ok(Self { transport, events: VecDeque::new(), timeout: None, req_id: 0, tx_id: 0 })
    }

    /// Connects to [`default_path`]; inside a guest, where no daemon runs, to the kernel's `/dev/xen/xenbus`.
    ///
    /// # Errors
    /// [`Error::Connect`] with the socket's path.
    pub fn connect_default() -> Result<Self> {
        let path = default_path();
        Self::connect(&path).or_else(|error| {
            let device = Path::new("/dev/xen/xenbus");
            if path.exists() || !device.exists() { Err(error) } else { Self::connect(device) }
        })
    }

    /// How long a reply may take before [`Error::Timeout`]; `None` (the beginning) waits for ever.
    ///
    /// After a timeout the connection is out of step and must be dropped.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// The next watch event, waiting at most `timeout` for it (`None`: for ever). `Ok(None)` when the time is over.
    ///
    /// # Errors
    /// [`Error::Io`] if the daemon is gone.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<WatchEvent>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.transport.receive(deadline)? {
                None => return Ok(None),
                Some((header, payload)) => self.keep_event(header, &payload)?,
            }
        }
    }

    /// Runs `body` as one transaction: every request in it sees one state of the store, and all its changes happen at
    /// once or not at all. When another client interfered (`EAGAIN`) it is run again.
    ///
    /// # Errors
    /// Whatever `body` returns (the transaction is then dropped), and failures of the commit other than `EAGAIN`.
    pub fn transaction<T, E: From<Error>>(
        &mut self,
        mut body: impl FnMut(&mut Self) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        loop {
            self.tx_id = self.transaction_start()?;
            let result = body(self);
            let ended = self.transaction_end(result.is_ok());
            self.tx_id = 0;
            match (result, ended) {
                (Err(error), _) => return Err(error),
                (Ok(value), Ok(())) => return Ok(value),
                (Ok(_), Err(error)) if error.errno() == Some(Errno::EAGAIN) => {}
                (Ok(_), Err(error)) => return Err(error.into()),
            }
        }
    }

    /// Sends any request and returns the reply's payload. The typed methods are built on this.
    ///
    /// `what` says in errors what the request was about, usually the path. `fds` go along (INTRODUCE only).
    ///
    /// # Errors
    /// [`Error::Store`] if the store refuses, [`Error::Io`], [`Error::Protocol`], [`Error::Timeout`].
    pub fn request(
        &mut self,
        kind: MsgType,
        what: &str,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>> {
        self.req_id = self.req_id.wrapping_add(1);
        self.transport.send(kind, self.req_id, self.tx_id, parts, fds)?;
        self.reply(self.req_id, kind, what)
    }

    /// The payload of the reply to request `req_id`.
    fn reply(&mut self, req_id: u32, kind: MsgType, what: &str) -> Result<Vec<u8>> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let (header, payload) = self.transport.receive(deadline)?.ok_or(Error::Timeout)?;
            if header.kind == MsgType::WATCH_EVENT {
                self.keep_event(header, &payload)?;
            } else if header.req_id != req_id {
                return Err(Error::Protocol(format!("reply {} to request {req_id}", header.req_id)));
            } else if header.kind == MsgType::ERROR {
                return Err(Error::store(kind, what, &payload));
            } else if header.kind == kind {
                return Ok(payload);
            } else {
                return Err(Error::Protocol(format!("reply of type {} to {kind}", header.kind)));
            }
        }
    }

    fn keep_event(&mut self, header: Header, payload: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(payload);
        let mut fields = text.split('\0');
        match (header.kind, fields.next(), fields.next()) {
            (MsgType::WATCH_EVENT, Some(path), Some(token)) => {
                self.events.push_back(WatchEvent { path: path.to_owned(), token: token.to_owned() });
                Ok(())
            }
            _ => Err(Error::Protocol(format!("unexpected message {}", header.kind))),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}
