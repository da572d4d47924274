//! The daemon: one event loop between the store and its sockets and rings.
//!
//! What the kernel reports only notes who has something to do; then `Server::turn` gives everybody in the queue a bounded
//! slice. No descriptor ever blocks. A connection whose peer does not read is not read from either. Rings are looked at
//! when their domain kicks, when something is sent to it, and for a moment after it was answered quickly: see `linger`.

mod control;
mod counters;
mod fds;
mod linger;
mod link;
mod listener;
mod log;
mod outbox;
mod poll;
mod queue;
mod rings;
mod settings;
mod state;
mod trace;
mod unsent;
mod update;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use counters::Counters;
use fds::{Came, RING_FDS, RingSet};
use linger::Linger;
use link::{Carrier, Link};
pub use listener::Socket;
use listener::{Pause, descriptor_limit};
use log::LogLimit;
use poll::{Poller, Token};
pub use state::State;
pub use trace::Trace;
use update::Update;
pub use update::{ACCEPTED, state_file};

use crate::ids::IdMap;
use crate::out::{Action, Out};
use crate::persist::Disk;
use crate::store::{ConnId, Store};
use crate::wire::{Errno, Header, MsgType};

/// Nodes of left-over work done between two looks at the sources.
const TIDY: usize = 512;
/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;

/// What a daemon serves, and how.
#[derive(Debug)]
pub struct Setup {
    /// Where clients connect.
    pub socket: Socket,
    /// Where messages are traced.
    pub trace: Trace,
    /// What was there before, and where what changes is kept.
    pub disk: Option<Disk>,
    /// Whether nodes under /tool/xenstored show what every connection did.
    pub counters: bool,
    /// Gives freed memory back to the system.
    pub trim: fn(),
}

/// The daemon's state.
pub(crate) struct Server {
    store: Store,
    out: Out,
    links: IdMap<ConnId, Link>,
    /// How many of the links are rings.
    rings: usize,
    /// Connections that have, or may have, something to do.
    queue: VecDeque<ConnId>,
    /// Connections that got messages and were not flushed since.
    written: Vec<ConnId>,
    /// Clients that have removed something and wait for the reply, and until when at most.
    settling: Vec<(ConnId, Duration)>,
    poller: Poller,
    socket: Socket,
    signals: SignalFd,
    paused: Option<Pause>,
    /// What the store's time is counted from.
    began: Instant,
    /// When this turn began, on that clock.
    now: Duration,
    linger: Linger,
    /// Connections whose next request has to wait, and until when.
    waiting: BTreeSet<(Duration, ConnId)>,
    descriptor_limit: usize,
    /// The store's own connection, for the nodes it keeps about itself.
    own: ConnId,
    /// Whether it keeps any.
    counters: bool,
    update: Option<Update>,
    disk: Option<Disk>,
    published: BTreeMap<String, String>,
    /// When, on the server's clock.
    published_at: Option<Duration>,
    /// Counts of connections that are gone.
    closed: Counters,
    trace: Trace,
    /// Reused by every read.
    chunk: Vec<u8>,
    spare: Vec<u8>,
    /// The store has left-over work.
    untidy: bool,
    /// When freed memory goes back to the system, and how many nodes were forgotten when it last did.
    trim_at: Option<Instant>,
    trimmed: u64,
    put_off: u32,
    /// Something has come since the loop last waited.
    asked: bool,
    /// How many were at the last look.
    forgotten: u64,
    /// The most nodes there were since.
    most: usize,
    trim: fn(),
    stopping: bool,
    log: LogLimit,
}

/// What a daemon begins with.
#[derive(Debug)]
pub enum Begin {
    /// The store of a state folder, or an empty one.
    Store(Box<Store>),
    /// All that the daemon before had.
    State(Box<State>),
}

impl Begin {
    /// The store in it.
    pub fn store(&mut self) -> &mut Store {
        match self {
            Self::Store(store) => store,
            Self::State(state) => state.store_mut(),
        }
    }
}

/// Serves a socket until SIGTERM or SIGINT; `ready` is called once, when clients can connect, and `ended` when it was
/// told to end, before anybody else can serve that socket.
///
/// # Errors
/// If the event loop fails; nothing that a client or guest does.
pub fn run(setup: Setup, begin: Begin, ready: impl FnOnce(), ended: impl FnOnce()) -> io::Result<()> {
    let mut server = match begin {
        Begin::State(state) => Server::resume(setup, *state)?,
        Begin::Store(store) => Server::new(setup, *store)?,
    };
    server.forget_counters();
    ready();
    server.run()?;
    if let Some(disk) = server.disk.take() {
        disk.close();
    }
    ended();
    Ok(())
}

impl Server {
    fn new(setup: Setup, mut store: Store) -> io::Result<Self> {
        let Setup { socket, trace, disk, counters, trim } = setup;
        let poller = Poller::new()?;
        let mask = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        poller.add(&signals, Token::Signal)?;
        poller.add(&socket, Token::Listener)?;
        if disk.is_some() {
            store.keep_journal();
        }
        let own = store.connect();
        Ok(Self {
            store,
            out: Out::default(),
            links: IdMap::default(),
            rings: 0,
            queue: VecDeque::new(),
            written: Vec::new(),
            settling: Vec::new(),
            poller,
            socket,
            signals,
            paused: None,
            began: Instant::now(),
            now: Duration::ZERO,
            linger: Linger::new(),
            waiting: BTreeSet::new(),
            descriptor_limit: descriptor_limit(),
            own,
            counters,
            update: None,
            disk,
            published: BTreeMap::new(),
            published_at: None,
            closed: Counters::default(),
            trace,
            chunk: vec![0; CHUNK],
            spare: Vec::new(),
            untidy: false,
            trim_at: None,
            trimmed: 0,
            put_off: 0,
            asked: false,
            forgotten: 0,
            most: 0,
            trim,
            stopping: false,
            log: LogLimit::default(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        while !self.stopping {
            self.poller.wait(self.patience(), &mut ready)?;
            self.asked = !ready.is_empty();
            for (token, hung_up) in ready.drain(..) {
                self.note(token, hung_up);
            }
            self.look();
            self.turn();
            self.update_step();
            if let Some(disk) = &mut self.disk {
                disk.step(&mut self.store);
            }
            self.resume_listening();
        }
        Ok(())
    }

    /// How long nothing has to be done if nothing happens.
    fn patience(&self) -> Option<Duration> {
        if !self.queue.is_empty() || self.untidy || self.linger.is_on() {
            return Some(Duration::ZERO);
        }
        let paused = match self.paused {
            Some(Pause::Until(then)) => Some(then),
            _ => None,
        };
        let waiting = self.waiting.first().map(|(until, _)| self.began + *until);
        let first = [
            paused,
            waiting,
            self.trim_at,
            self.update_deadline(),
            self.disk.as_ref().and_then(Disk::deadline),
        ]
        .into_iter()
        .flatten()
        .min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    fn note(&mut self, token: Token, hung_up: bool) {
        match token {
            Token::Listener => self.accept(),
            Token::Signal => self.signalled(),
            Token::Client(conn) => self.ready(conn, hung_up),
            Token::Kick(conn) => self.enqueue(conn),
            Token::Lifeline(conn) => self.hear(conn),
            Token::Trial => self.trial_speaks(),
        }
    }

    fn signalled(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let hang_up = i32::try_from(info.ssi_signo) == Ok(Signal::SIGHUP as i32);
            if !hang_up {
                self.stopping = true;
            } else if let Err(error) = self.trace.reopen() {
                tracing::warn!("trace file: {error}");
            }
        }
    }

    /// A client connected.
    fn add_client(&mut self, fd: OwnedFd) -> io::Result<()> {
        let conn = self.store.connect();
        if let Err(error) = self.poller.add_client(&fd, conn) {
            self.store.disconnect(conn);
            return Err(error);
        }
        self.trace.object(true, conn);
        self.links.insert(conn, Link::new(Carrier::Socket(fd)));
        Ok(())
    }

    fn handle_message(&mut self, conn: ConnId, client: bool, header: Header, payload: &[u8]) {
        self.trace.request(false, conn, &header, payload);
        if client && header.kind == MsgType::CONTROL && self.control(conn, &header, payload) {
            return;
        }
        if client && self.counters && counters::is_asked_for(&header, payload) {
            self.publish_counters();
        }
        let introduces = client && header.kind == MsgType::INTRODUCE;
        let ring = match if introduces { self.take_ring(conn, payload) } else { Ok(None) } {
            Ok(ring) => ring,
            Err(errno) => return self.reply(conn, &header, MsgType::ERROR, errno.name()),
        };
        self.store.handle(conn, header, payload, ring.is_some(), &mut self.out);
        self.deliver(ring);
        if client && self.store.is_removing(conn) {
            self.removed(conn);
        }
    }

    /// What came with an INTRODUCE; none if it is not what it should be, which the store refuses.
    ///
    /// # Errors
    /// `ENOSPC` or `ENOMEM` if this daemon cannot have it.
    fn take_ring(&mut self, conn: ConnId, payload: &[u8]) -> Result<Option<RingSet>, Errno> {
        let Some(link) = self.links.get_mut(&conn) else { return Ok(None) };
        let (fds, came) = (std::mem::take(&mut link.fds), std::mem::replace(&mut link.came, Came::None));
        let ring = match came {
            Came::TooMany => Err(io::Error::other(format!("more than {RING_FDS} descriptors came with it"))),
            Came::TooFew => Err(io::Error::new(io::ErrorKind::StorageFull, "descriptors are used up")),
            Came::All | Came::None => RingSet::new(fds).and_then(|ring| self.would_serve(ring)),
        };
        ring.map(Some).or_else(|error| {
            let domid =
                payload.split(|&byte| byte == 0).next().unwrap_or_default().escape_ascii().to_string();
            self.log.warn(format_args!("INTRODUCE of domain {domid:.8} refused: {error}"));
            match error.kind() {
                io::ErrorKind::StorageFull => Err(Errno::ENOSPC),
                io::ErrorKind::OutOfMemory => Err(Errno::ENOMEM),
                _ => Ok(None),
            }
        })
    }

    /// A request of the daemon itself; nobody is told of it.
    fn request(&mut self, kind: MsgType, payload: &[u8]) {
        let header = Header { kind, req_id: 0, tx_id: 0, len: 0 };
        self.store.handle(self.own, header, payload, false, &mut self.out);
        self.out.silence();
        self.deliver(None);
    }

    /// Carries out what the store said: changes of connections first, then messages into outboxes.
    fn deliver(&mut self, mut ring: Option<RingSet>) {
        for action in std::mem::take(&mut self.out.actions) {
            match action {
                Action::Drop(conn) => self.drop_link(conn),
                Action::Wake(conn) => self.release_held(conn),
                Action::Serve { conn, domid, features, again } => {
                    if let Some(ring) = ring.take() {
                        self.serve_ring(conn, domid, features, again, ring);
                    }
                }
            }
        }
        let out = std::mem::take(&mut self.out);
        for conn in &out.lost {
            if let Some(link) = self.links.get_mut(conn) {
                link.overflowed = true;
            }
            self.mark_written(*conn);
        }
        for (conn, message, event) in out.messages() {
            self.trace.message(true, conn, message);
            self.post(conn, message, event);
        }
        self.out = out;
        self.out.clear();
    }
}
