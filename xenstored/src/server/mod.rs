//! The daemon: one event loop between the store and its sockets and rings.
//!
//! Sources of the loop only note who has something to do; then `Server::turn` gives everybody in the queue a bounded
//! slice. No descriptor ever blocks. A connection whose peer does not read is not read from either.

mod fds;
mod link;
mod listener;
mod log;
mod outbox;
mod rings;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use calloop::generic::Generic;
use calloop::signals::{Signal, Signals};
use calloop::{Dispatcher, EventLoop, Interest, LoopHandle, Mode, PostAction, RegistrationToken};

use fds::RingSet;
use link::{Broken, Carrier, Link, Source};
pub use listener::Socket;
use log::LogLimit;

use crate::out::{Action, Out};
use crate::quota::Limit;
use crate::store::{ConnId, Store};
use crate::wire::{self, HEADER_LEN, Header, MsgType};

/// Messages of one connection handled before the next one has its turn.
const SLICE: usize = 64;
/// Unsent bytes from which on a client on the socket is not read from.
const SOCKET_BACKLOG: usize = 256 * 1024;
/// Unsent bytes for which a client on the socket is given up: it only watches and never reads.
const SOCKET_LIMIT: usize = 64 * 1024 * 1024;
/// Nodes of left-over work done between two looks at the sources.
const TIDY: usize = 512;

/// The daemon's state: what every callback of the loop is given.
pub(crate) struct Server {
    store: Store,
    out: Out,
    links: HashMap<ConnId, Link>,
    /// Connections that have, or may have, something to do.
    queue: VecDeque<ConnId>,
    /// Connections that got messages and were not flushed since.
    written: Vec<ConnId>,
    handle: LoopHandle<'static, Server>,
    listener: Option<RegistrationToken>,
    /// The store has left-over work.
    untidy: bool,
    stopping: bool,
    log: LogLimit,
}

/// Serves a socket until SIGTERM or SIGINT; `ready` is called once, when clients can connect.
///
/// # Errors
/// If the event loop fails; nothing that a client or guest does.
pub fn run(socket: &Socket, ready: impl FnOnce()) -> io::Result<()> {
    let mut events: EventLoop<'static, Server> = EventLoop::try_new().map_err(io::Error::other)?;
    let mut server = Server {
        store: Store::new(),
        out: Out::default(),
        links: HashMap::new(),
        queue: VecDeque::new(),
        written: Vec::new(),
        handle: events.handle(),
        listener: None,
        untidy: false,
        stopping: false,
        log: LogLimit::default(),
    };
    let signals = Signals::new(&[Signal::SIGTERM, Signal::SIGINT]).map_err(io::Error::other)?;
    let stop = |_, _: &mut (), server: &mut Server| server.stopping = true;
    events.handle().insert_source(signals, stop).map_err(|error| io::Error::other(error.error))?;
    server.listener = Some(listener::listen(&server.handle, socket)?);
    ready();
    while !server.stopping {
        let idle = server.queue.is_empty() && !server.untidy;
        let timeout = if idle { None } else { Some(Duration::ZERO) };
        events.dispatch(timeout, &mut server).map_err(io::Error::other)?;
        server.turn();
    }
    Ok(())
}

impl Server {
    /// A client connected.
    fn add_client(&mut self, fd: OwnedFd) -> io::Result<()> {
        let conn = self.store.connect();
        let fd = Rc::new(fd);
        let noted = move |_, _: &mut _, server: &mut Self| {
            server.enqueue(conn);
            Ok(PostAction::Continue)
        };
        let source: Source =
            Dispatcher::new(Generic::new(Rc::clone(&fd), Interest::READ, Mode::Level), noted);
        match self.handle.register_dispatcher(source.clone()) {
            Ok(token) => {
                self.links.insert(conn, Link::new(Carrier::Socket { fd, source, token }));
                Ok(())
            }
            Err(error) => {
                self.store.disconnect(conn);
                Err(io::Error::other(error))
            }
        }
    }

    /// A connection has something to do.
    fn enqueue(&mut self, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn).filter(|link| !link.queued) {
            link.queued = true;
            self.queue.push_back(conn);
        }
    }

    /// Gives every connection in the queue a slice, and the left-over work one.
    fn turn(&mut self) {
        for _ in 0..self.queue.len() {
            let Some(conn) = self.queue.pop_front() else { break };
            if let Some(link) = self.links.get_mut(&conn) {
                link.queued = false;
            }
            match self.serve(conn) {
                Ok(true) => self.enqueue(conn),
                Ok(false) => {}
                Err(broken) => self.broken(conn, &broken),
            }
            self.flush_written();
        }
        self.untidy = self.store.tidy(TIDY);
    }

    /// One slice: send, take in, handle. Answers whether there is more to do.
    fn serve(&mut self, conn: ConnId) -> Result<bool, Broken> {
        if !self.check_ring(conn)? {
            return Ok(false);
        }
        self.flush(conn)?;
        let congested = self.congested(conn);
        let Some(link) = self.links.get_mut(&conn) else { return Ok(false) };
        let got = if congested || link.ended || link.has_message()? { 0 } else { link.receive()? };
        self.handle_messages(conn)?;
        self.flush(conn)?;
        let congested = self.congested(conn);
        let Some(link) = self.links.get(&conn) else { return Ok(false) };
        let more = !congested && link.has_message()?;
        if link.ended && !more {
            return Err(Broken::Closed);
        }
        let again = matches!(link.carrier, Carrier::Ring(_)) && got > 0;
        Ok(more || again || link.ended)
    }

    fn handle_messages(&mut self, conn: ConnId) -> Result<(), Broken> {
        let Some(link) = self.links.get_mut(&conn) else { return Ok(()) };
        let inbox = std::mem::take(&mut link.inbox);
        let mut at = 0;
        let mut result = Ok(());
        for _ in 0..SLICE {
            if self.congested(conn) {
                break;
            }
            match wire::split(inbox.get(at..).unwrap_or_default()) {
                Ok(Some((header, payload))) => {
                    at += HEADER_LEN + payload.len();
                    self.handle_message(conn, header, payload);
                }
                Ok(None) => break,
                Err(error) => {
                    result = Err(error.into());
                    break;
                }
            }
        }
        if let Some(link) = self.links.get_mut(&conn) {
            link.inbox = inbox;
            link.inbox.drain(..at);
            // Descriptors belong to the INTRODUCE they came with.
            if link.inbox.is_empty() {
                link.fds.clear();
            }
        }
        result
    }

    fn handle_message(&mut self, conn: ConnId, header: Header, payload: &[u8]) {
        let ring = if header.kind == MsgType::INTRODUCE { self.take_ring(conn) } else { None };
        self.store.handle(conn, header, payload, ring.is_some(), &mut self.out);
        self.deliver(ring);
    }

    fn take_ring(&mut self, conn: ConnId) -> Option<RingSet> {
        let fds = std::mem::take(&mut self.links.get_mut(&conn)?.fds);
        RingSet::new(fds).map_err(|error| self.log.warn(format_args!("INTRODUCE refused: {error}"))).ok()
    }

    /// Carries out what the store said: changes of connections first, then messages into outboxes.
    fn deliver(&mut self, mut ring: Option<RingSet>) {
        for action in std::mem::take(&mut self.out.actions) {
            match action {
                Action::Drop(conn) => self.drop_link(conn),
                Action::Wake(conn) => self.enqueue(conn),
                Action::Serve { conn, domid, features, again } => {
                    if let Some(ring) = ring.take() {
                        self.serve_ring(conn, domid, features, again, ring);
                    }
                }
            }
        }
        for (conn, message, event) in self.out.messages() {
            let Some(link) = self.links.get_mut(&conn) else { continue };
            link.push(message, event, self.store.conn_limit(conn, Limit::Memory).min(SOCKET_LIMIT));
            if !std::mem::replace(&mut link.written, true) {
                self.written.push(conn);
            }
        }
        self.out.clear();
    }

    fn flush_written(&mut self) {
        for conn in std::mem::take(&mut self.written) {
            if let Err(broken) = self.flush(conn) {
                self.broken(conn, &broken);
            }
        }
    }

    /// Sends what can be sent, and has the loop watch for what is waited for.
    fn flush(&mut self, conn: ConnId) -> Result<(), Broken> {
        let Some(link) = self.links.get_mut(&conn) else { return Ok(()) };
        link.written = false;
        if link.overflowed {
            return Err(Broken::Overflow);
        }
        link.flush()?;
        let congested = self.congested(conn);
        let Some(link) = self.links.get(&conn) else { return Ok(()) };
        if let Carrier::Socket { source, token, .. } = &link.carrier {
            let want = Interest { readable: !congested && !link.ended, writable: link.outbox.len() > 0 };
            let mut source = source.as_source_mut();
            if (source.interest.readable, source.interest.writable) != (want.readable, want.writable) {
                source.interest = want;
                drop(source);
                let _ = self.handle.update(token);
            }
        }
        Ok(())
    }

    /// Whether a connection has to take what is for it before it is listened to.
    fn congested(&self, conn: ConnId) -> bool {
        self.links.get(&conn).is_some_and(|link| match link.carrier {
            Carrier::Socket { .. } => link.outbox.len() > SOCKET_BACKLOG,
            Carrier::Ring(_) => {
                link.outbox.replies() > 0
                    && link.outbox.replies() >= self.store.conn_limit(conn, Limit::Outstanding)
            }
        })
    }

    /// A client is gone or was thrown out; a domain whose ring makes no sense stays known, but is not served.
    fn broken(&mut self, conn: ConnId, broken: &Broken) {
        match self.links.get(&conn).map(|link| &link.carrier) {
            Some(Carrier::Ring(_)) => self.ring_failed(conn, broken),
            Some(Carrier::Socket { .. }) => {
                if !matches!(broken, Broken::Closed) {
                    self.log.warn(format_args!("client dropped: {broken}"));
                }
                self.store.disconnect(conn);
                self.drop_link(conn);
            }
            None => {}
        }
    }

    fn drop_link(&mut self, conn: ConnId) {
        match self.links.remove(&conn).map(|link| link.carrier) {
            Some(Carrier::Socket { token, .. }) => self.handle.remove(token),
            Some(Carrier::Ring(domain)) => {
                for token in domain.tokens {
                    self.handle.remove(token);
                }
            }
            None => {}
        }
    }
}
