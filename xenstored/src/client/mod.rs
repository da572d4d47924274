//! The client library: one connection to a store, to wait at or to poll.
//!
//! A [`Client`] belongs to one thread; programs with several threads open several. The typed requests wait for their
//! replies. Watch events that arrive meanwhile are kept and handed out by [`Client::next_event`].
//!
//! ```no_run
//! use std::time::Duration;
//! use xenstored::client::{Client, Error};
//!
//! fn main() -> Result<(), Error> {
//!     let mut store = Client::connect_default()?;
//!     store.write("/tool/example/count", "41")?;
//!     // All or nothing, and again when somebody else was faster.
//!     let count = store.transaction(|store| {
//!         let count = store.read_string("/tool/example/count")?.parse().unwrap_or(0) + 1;
//!         store.write("/tool/example/count", count.to_string())?;
//!         Ok::<u32, Error>(count)
//!     })?;
//!     assert_eq!(count, 42);
//!     for name in store.directory("/tool/example")? {
//!         println!("{name}");
//!     }
//!     // The first event comes at once: what is there already is not missed.
//!     store.watch("/tool/example", "token")?;
//!     while let Some(event) = store.next_event(Some(Duration::from_secs(10)))? {
//!         println!("{} changed", event.path);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A program with an event loop polls the descriptor ([`AsFd`]) for reading, for writing too while
//! [`Client::wants_write`], and calls [`Client::step`] until it has nothing more to say. Requests of such a program are
//! sent by [`Client::submit`] and never wait:
//!
//! ```no_run
//! use xenstored::client::{Client, Incoming, Result};
//! use xenstored::wire::MsgType;
//!
//! fn ready(store: &mut Client) -> Result<()> {
//!     while let Some(incoming) = store.step()? {
//!         match incoming {
//!             Incoming::Event(event) => println!("{} changed", event.path),
//!             Incoming::Reply { id, reply } => println!("{id:?}: {reply:?}"),
//!         }
//!     }
//!     store.submit(MsgType::READ, "/tool/example/count", &[b"/tool/example/count\0"])?;
//!     Ok(())
//! }
//! ```

mod autostart;
mod batch;
mod domain;
mod error;
mod poll;
mod requests;
mod settings;
mod transport;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use autostart::Autostart;
pub use batch::Batch;
pub use error::{Error, Result};
use poll::Asked;
pub use poll::{Incoming, RequestId};
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
    /// What arrived while something else was awaited, in order.
    inbox: VecDeque<Incoming>,
    /// Requests that nobody waits for at the moment.
    asked: BTreeMap<u32, Asked>,
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
        let (inbox, asked) = (VecDeque::new(), BTreeMap::new());
        Ok(Self { transport, inbox, asked, timeout: None, req_id: 0, tx_id: 0 })
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

    /// How long a request may take before [`Error::Timeout`]; `None` (the beginning) waits for ever. The connection can
    /// be used on after it: the late reply is thrown away.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// The next watch event, waiting at most `timeout` for it (`None`: for ever). `Ok(None)` when the time is over.
    ///
    /// # Errors
    /// [`Error::Io`] if the daemon is gone.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<WatchEvent>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut seen = 0;
        loop {
            let found = self.inbox.iter().skip(seen).position(|item| matches!(item, Incoming::Event(_)));
            if let Some(Incoming::Event(event)) = found.and_then(|at| self.inbox.remove(seen + at)) {
                return Ok(Some(event));
            }
            seen = self.inbox.len();
            self.transport.flush(&[], deadline)?;
            match self.transport.receive(deadline)? {
                None => return Ok(None),
                Some((header, payload)) => self.keep(header, &payload)?,
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
        let deadline = self.deadline();
        // Descriptors belong to the first byte of their own request.
        if !fds.is_empty() && !self.transport.flush(&[], deadline)? {
            return Err(Error::Timeout);
        }
        let req_id = self.next_id();
        self.transport.queue(kind, req_id, self.tx_id, parts)?;
        if !self.transport.flush(fds, deadline)? {
            self.asked.insert(req_id, Asked::GivenUp);
            return Err(Error::Timeout);
        }
        self.reply(req_id, kind, what, deadline)
    }

    fn deadline(&self) -> Option<Instant> {
        self.timeout.map(|timeout| Instant::now() + timeout)
    }

    fn next_id(&mut self) -> u32 {
        self.req_id = self.req_id.wrapping_add(1);
        self.req_id
    }

    /// The payload of the reply to request `req_id`.
    fn reply(
        &mut self,
        req_id: u32,
        kind: MsgType,
        what: &str,
        deadline: Option<Instant>,
    ) -> Result<Vec<u8>> {
        loop {
            let Some((header, payload)) = self.transport.receive(deadline)? else {
                self.asked.insert(req_id, Asked::GivenUp);
                return Err(Error::Timeout);
            };
            if header.kind != MsgType::WATCH_EVENT && header.req_id == req_id {
                return answer(header, payload, kind, what);
            }
            self.keep(header, &payload)?;
        }
    }

    /// Puts what was not awaited into the inbox.
    fn keep(&mut self, header: Header, payload: &[u8]) -> Result<()> {
        if header.kind != MsgType::WATCH_EVENT {
            return match self.asked.remove(&header.req_id) {
                Some(Asked::Submitted { kind, what }) => {
                    let reply = answer(header, payload.to_vec(), kind, &what);
                    self.inbox.push_back(Incoming::Reply { id: RequestId(header.req_id), reply });
                    Ok(())
                }
                Some(Asked::GivenUp) => Ok(()),
                None => Err(Error::Protocol(format!("reply {} to no request", header.req_id))),
            };
        }
        let text = String::from_utf8_lossy(payload);
        let mut fields = text.split('\0');
        match (fields.next(), fields.next()) {
            (Some(path), Some(token)) => {
                let event = WatchEvent { path: path.to_owned(), token: token.to_owned() };
                self.inbox.push_back(Incoming::Event(event));
                Ok(())
            }
            _ => Err(Error::Protocol("watch event without token".into())),
        }
    }
}

/// What the reply to a request means.
fn answer(header: Header, payload: Vec<u8>, kind: MsgType, what: &str) -> Result<Vec<u8>> {
    if header.kind == MsgType::ERROR {
        Err(Error::store(kind, what, &payload))
    } else if header.kind == kind {
        Ok(payload)
    } else {
        Err(Error::Protocol(format!("reply of type {} to {kind}", header.kind)))
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}
