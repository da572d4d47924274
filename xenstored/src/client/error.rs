//! What can go wrong for a client.

use std::io;
use std::path::PathBuf;

use crate::wire::{Errno, MsgType};

/// The client library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No daemon there, or no right to talk to it.
    #[error("cannot connect to xenstored at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store refused the request.
    #[error("{op} {what}: {errno}")]
    Store {
        /// The message type.
        op: &'static str,
        /// What it was about, usually the path.
        what: String,
        /// The reason.
        errno: Errno,
    },
    /// The connection broke.
    #[error("connection to xenstored lost")]
    Io(#[from] io::Error),
    /// The daemon said something that is no answer.
    #[error("xenstored broke the protocol: {0}")]
    Protocol(String),
    /// No reply in time.
    #[error("no reply from xenstored in time")]
    Timeout,
}

impl Error {
    /// The store's reason, if it was the store that refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Store { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// An ERROR reply. A name outside the protocol becomes `EINVAL`, as in libxenstore.
    pub(super) fn store(kind: MsgType, what: &str, payload: &[u8]) -> Self {
        let name = payload.split(|&byte| byte == 0).next().unwrap_or_default();
        let errno = std::str::from_utf8(name).ok().and_then(Errno::from_name).unwrap_or(Errno::EINVAL);
        Self::Store { op: kind.name().unwrap_or("request"), what: what.to_owned(), errno }
    }

    /// A mistake of the caller that never reached the store.
    pub(super) fn invalid(kind: MsgType, what: &str, errno: Errno) -> Self {
        Self::Store { op: kind.name().unwrap_or("request"), what: what.to_owned(), errno }
    }
}

impl From<nix::Error> for Error {
    fn from(errno: nix::Error) -> Self {
        Self::Io(errno.into())
    }
}
