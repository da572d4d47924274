//! Engines carry out requests on a [`Disk`], many at a time and in any order, and wait for their ends and for the
//! guest's notifications at once.

use super::Disk;
use super::sys::Buffers;
use super::threads::Threads;
use super::uring::Uring;
use crate::log::limited;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Image to buffers.
    Read,
    /// Buffers to image.
    Write,
    /// What was written is on the disk afterwards.
    Flush,
    /// The bytes are not needed any more.
    Discard {
        /// How many.
        len: u64,
        /// And nobody can find them.
        secure: bool,
    },
}

/// One request.
pub struct Io {
    /// The caller's.
    pub tag: u32,
    /// What.
    pub op: Op,
    /// Offset in the image, bytes.
    pub at: u64,
    /// The bytes, or where they go.
    pub data: Buffers,
    /// The guest's memory while ours is in its place.
    pub(super) bounced: Option<Buffers>,
}

impl Io {
    /// A request.
    pub fn new(tag: u32, op: Op, at: u64, data: Buffers) -> Io {
        Io { tag, op, at, data, bounced: None }
    }
}

/// How a request ended. Its buffers are not touched any more.
pub struct Done {
    /// The request's.
    pub tag: u32,
    /// The host's error.
    pub result: io::Result<()>,
    /// The request's, to be cleared and used again.
    pub data: Buffers,
}

/// How many events a wait is for.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    /// So many; 0 and 1 are the same.
    pub events: usize,
    /// But for no longer than this, if there is one by then.
    pub patience: Duration,
}

impl Gather {
    /// The first one ends the wait.
    pub const ONE: Gather = Gather { events: 1, patience: Duration::ZERO };
}

/// One queue's way to its disk.
pub trait Engine {
    /// Takes a request; it may begin only with the next [`Engine::wait`].
    fn submit(&mut self, io: Io);

    /// Waits until requests have ended, or one of the watched eventfds has been written to; adds the ends to `done`.
    /// Where that saves wake-ups, it gathers as many of either kind as `gather` says.
    /// Returns the number of system calls it took.
    ///
    /// # Errors
    /// The engine is broken.
    fn wait(&mut self, gather: Gather, done: &mut Vec<Done>) -> io::Result<u32>;
}

/// Which engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring where the host and the image allow it, else threads.
    #[default]
    Auto,
    /// As `Auto`; named by who wants to know that it was meant.
    Uring,
    /// Threads.
    Threads,
}

impl EngineKind {
    /// `$XLR_BLK_ENGINE`: `uring` or `threads`; else [`EngineKind::Auto`].
    pub fn from_env() -> EngineKind {
        match std::env::var("XLR_BLK_ENGINE").as_deref() {
            Ok("threads") => EngineKind::Threads,
            Ok("uring") => EngineKind::Uring,
            _ => EngineKind::Auto,
        }
    }

    /// The engine that [`start`] will choose: `io_uring` or `threads`.
    pub fn choice(self, disk: Option<&Disk>) -> &'static str {
        let raw = disk.is_some_and(|disk| disk.image.file().is_some());
        if raw && self != EngineKind::Threads && Uring::possible() { "io_uring" } else { "threads" }
    }
}

/// Starts an engine; call from the thread that will use it. The eventfds in `watch` are never read: each write to
/// one ends a [`Engine::wait`]. Without a disk every request fails.
///
/// # Errors
/// The host has no descriptors left.
pub fn start(kind: EngineKind, disk: Option<Arc<Disk>>, watch: Vec<OwnedFd>) -> io::Result<Box<dyn Engine>> {
    if let Some(disk) = &disk
        && kind.choice(Some(disk)) == "io_uring"
    {
        let again = watch.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        match Uring::new(disk.clone(), again) {
            Ok(uring) => return Ok(Box::new(uring)),
            Err(e) => limited!(warn, "{}: io_uring: {e}; using threads", disk.path().display()),
        }
    }
    Ok(Box::new(Threads::new(disk, watch)?))
}
