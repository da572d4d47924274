//! The daemon's state as a migration stream, and a daemon made of one.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use super::fds::{RingSet, adopt};
use super::link::{Carrier, DomainRing, Link};
use super::listener::Socket;
use super::outbox::Outbox;
use super::settings::Setting;
use super::{Server, Setup};
use crate::dump::Import;
use crate::migration::{ConnSpec, Reader, Record, Stream};
use crate::store::{ConnId, Store};

/// A state that was read: what [`Server::resume`] makes a daemon of.
#[derive(Debug)]
pub struct State {
    store: Store,
    socket: RawFd,
    lock: Option<(RawFd, PathBuf)>,
    conns: Vec<Resumed>,
    settings: Vec<Setting>,
}

/// A connection that goes on, with descriptors by number.
#[derive(Debug)]
struct Resumed {
    conn: ConnId,
    numbers: Vec<RawFd>,
    faulty: bool,
    ring: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    partial: usize,
}

impl State {
    /// Reads a stream, and touches nothing.
    ///
    /// # Errors
    /// If it is no stream or says impossible things.
    pub fn read(bytes: &[u8]) -> io::Result<Self> {
        let invalid =
            |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        let mut reader = Reader::new(bytes).map_err(|error| invalid(&error))?;
        let mut import = Import::new();
        let (mut socket, mut lock, mut conns, mut settings) = (-1, None, Vec::new(), Vec::new());
        while let Some(record) = reader.next().map_err(|error| invalid(&error))? {
            if import.take(&record).is_none() {
                let text: String = format!("{record:?}").chars().take(200).collect();
                // Another store may have accepted what this one would not; a connection is what other records name.
                if matches!(record, Record::Conn { .. }) {
                    return Err(invalid(&format_args!("impossible: {text}")));
                }
                tracing::warn!("{text}: is left out");
                continue;
            }
            match record {
                Record::Global { socket: fd, .. } => socket = fd,
                Record::Lock { fd, path } => {
                    use std::os::unix::ffi::OsStrExt;
                    lock = Some((fd, PathBuf::from(std::ffi::OsStr::from_bytes(path))));
                }
                Record::Conn { id, spec, input, output, partial } => {
                    let conn = import.conn(id).ok_or_else(|| invalid(&"connection without a number"))?;
                    let (ring, numbers) = match spec {
                        ConnSpec::Socket { fd } => (false, vec![fd]),
                        ConnSpec::Ring { .. } => (true, Vec::new()),
                    };
                    let (input, output, partial) = (input.to_vec(), output.to_vec(), partial.into());
                    conns.push(Resumed { conn, numbers, faulty: false, ring, input, output, partial });
                }
                Record::Ring { conn, page, kick, notify, lifeline, faulty, .. } => {
                    let conn = import.conn(conn);
                    if let Some(resumed) = conns.iter_mut().rev().find(|resumed| Some(resumed.conn) == conn) {
                        // Of a client they are those that came with half an INTRODUCE.
                        resumed.numbers.extend([page, kick, notify, lifeline].iter().filter(|&&fd| fd >= 0));
                        resumed.faulty = faulty;
                    }
                }
                Record::Setting { name, value } => {
                    settings.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
                }
                _ => {}
            }
        }
        Ok(Self { store: import.finish(), socket, lock, conns, settings })
    }

    /// The store alone.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Takes the listening socket over, with its lock.
    ///
    /// # Errors
    /// If it was not inherited.
    pub fn take_socket(&mut self) -> io::Result<Socket> {
        let listener = adopt_one(self.socket)?;
        let own = self.lock.take().map(|(fd, path)| io::Result::Ok((path, adopt_one(fd)?))).transpose()?;
        Socket::inherited(listener, own)
    }
}

fn adopt_one(number: RawFd) -> io::Result<OwnedFd> {
    adopt(&[number])?.pop().ok_or_else(|| io::Error::other("descriptor did not come over"))
}

impl Link {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        match &self.carrier {
            Carrier::Socket(fd) => fds.push(fd.as_fd()),
            Carrier::Ring(domain) => {
                fds.extend([domain.ring.as_fd(), domain.kick.as_fd(), domain.notify.as_fd()]);
                fds.extend(domain.lifeline.as_ref().map(AsFd::as_fd));
            }
        }
        fds
    }
}

impl Server {
    /// The whole state as a stream. Descriptors are in it by number.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn dump(&self) -> io::Result<Vec<u8>> {
        let mut stream = Stream::new();
        stream.put(&Record::Global { socket: self.socket.as_fd().as_raw_fd(), evtchn: -1 });
        if let Some((path, fd)) = self.socket.own() {
            use std::os::unix::ffi::OsStrExt;
            stream.put(&Record::Lock { fd: fd.as_raw_fd(), path: path.as_os_str().as_bytes() });
        }
        let mut conns: Vec<_> = self.links.iter().collect();
        conns.sort_by_key(|(conn, _)| conn.0);
        for (id, (&conn, link)) in (1..).zip(conns) {
            let (input, output) = (&*link.inbox, link.outbox.bytes());
            let partial = u16::try_from(link.outbox.rest_of_first()).unwrap_or(u16::MAX);
            let spec = match &link.carrier {
                Carrier::Socket(fd) => ConnSpec::Socket { fd: fd.as_raw_fd() },
                Carrier::Ring(domain) => {
                    let target = self.store.target(domain.domid);
                    ConnSpec::Ring { domid: domain.domid, target, evtchn: 0 }
                }
            };
            stream.put(&Record::Conn { id, spec, input, output, partial });
            if !link.fds.is_empty() {
                let number = |at: usize| link.fds.get(at).map_or(-1, AsRawFd::as_raw_fd);
                let [page, kick, notify, lifeline] = [0, 1, 2, 3].map(number);
                let (faulty, shutdown) = (false, false);
                stream.put(&Record::Ring { conn: id, page, kick, notify, lifeline, faulty, shutdown });
            }
            if let Carrier::Ring(domain) = &link.carrier {
                stream.put(&Record::Ring {
                    conn: id,
                    page: domain.ring.as_fd().as_raw_fd(),
                    kick: domain.kick.as_raw_fd(),
                    notify: domain.notify.as_fd().as_raw_fd(),
                    lifeline: domain.lifeline.as_ref().map_or(-1, AsRawFd::as_raw_fd),
                    faulty: domain.faulty,
                    shutdown: self.store.is_shut_down(domain.domid),
                });
            }
            self.store.dump_conn(conn, id, &mut stream);
        }
        self.store.dump(&mut stream);
        self.dump_settings(&mut stream);
        stream.finish()
    }

    /// Every descriptor that [`Server::dump`] names.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let lock = self.socket.own().map(|(_, fd)| fd);
        self.links.values().flat_map(Link::descriptors).chain([self.socket.as_fd()]).chain(lock)
    }

    /// Goes on where another process, or this one with another binary, was.
    ///
    /// # Errors
    /// If the loop cannot be set up.
    pub(super) fn resume(setup: Setup, state: State) -> io::Result<Self> {
        let State { store, conns, settings, .. } = state;
        let mut server = Self::new(setup, store)?;
        server.resume_settings(&settings);
        for resumed in conns {
            let conn = resumed.conn;
            if let Err(error) = server.resume_conn(resumed) {
                tracing::warn!("a connection did not survive: {error}");
                server.store.disconnect(conn);
            }
        }
        Ok(server)
    }

    fn resume_conn(&mut self, resumed: Resumed) -> io::Result<()> {
        let Resumed { conn, numbers, faulty, ring, input, output, partial } = resumed;
        let mut fds = VecDeque::from(adopt(&numbers)?);
        let carrier = if ring {
            let RingSet { ring, kick, notify, lifeline } = RingSet::new(std::mem::take(&mut fds))?;
            let domid = self.store.domain_of(conn).ok_or_else(|| io::Error::other("no domain"))?;
            let features = self.store.features(domid);
            Carrier::Ring(DomainRing { domid, ring, kick, notify, lifeline, features, faulty })
        } else {
            Carrier::Socket(fds.pop_front().ok_or_else(|| io::Error::other("no socket"))?)
        };
        let mut link = Link::new(carrier);
        link.fds = fds;
        link.inbox = input;
        link.outbox = Outbox::resumed(output, partial);
        if let Carrier::Socket(fd) = &link.carrier {
            self.poller.add_client(fd, conn)?;
            self.links.insert(conn, link);
            self.enqueue(conn);
        } else {
            // Whoever waits for room in the ring, or for something in it, looks again.
            link.notify = true;
            self.add_ring(conn, link);
        }
        self.mark_written(conn);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::NodePerm;
    use crate::out::Out;
    use crate::wire::{Header, MsgType};

    /// What the C xenstored 4.20.3 of Debian 13 left for its successor: two domains, one of them with a target and a
    /// watch of its own, three watches of a client, half a request, and the reply to the live update.
    const STREAM: &[u8] = include_bytes!("../../tests/data/c-xenstored-4.20.stream");

    #[test]
    fn a_stream_of_c_xenstored_420_is_read() {
        let state = State::read(STREAM).unwrap();
        assert_eq!((state.socket, state.lock.is_none()), (3, true));
        let conns: Vec<_> = state
            .conns
            .iter()
            .map(|conn| (conn.ring, &*conn.numbers, conn.input.len(), &*conn.output))
            .collect();
        let ok: &[u8] = b"\0\0\0\0\x09\0\0\0\0\0\0\0\x03\0\0\0OK\0";
        assert_eq!(
            conns,
            [
                (true, &[][..], 0, &b""[..]),
                (false, &[8], 0, ok),
                (true, &[], 0, b""),
                (true, &[], 0, b""),
                (false, &[9], 0, b""),
                (false, &[10], 19, b""),
            ]
        );
        let guest = state.conns[2].conn;
        let mut store = state.store;
        assert_eq!(store.domain_of(guest), Some(7));
        assert_eq!((store.target(7), store.target(8)), (Some(8), None));
        assert_eq!(store.check(), Ok(()));
        let host = store.connect();
        let mut ask = |kind, payload: &[u8]| {
            let mut out = Out::default();
            let len = u32::try_from(payload.len()).unwrap();
            store.handle(host, Header { kind, req_id: 0, tx_id: 0, len }, payload, false, &mut out);
            out.messages().map(|(conn, bytes, _)| (conn, bytes[16..].to_vec())).collect::<Vec<_>>()
        };
        for (kind, path, reply) in [
            (MsgType::READ, "/tool/x", &b"a\x01\0b"[..]),
            (MsgType::READ, "/local/domain/7/data/empty", b""),
            (MsgType::DIRECTORY, "/local/domain", b"7\x008\0"),
            (MsgType::GET_PERMS, "/local/domain/7", b"n7\0r8\0b0\0"),
            (MsgType::GET_PERMS, "/tool/x", b"n0\0r9\0"),
            (MsgType::GET_PERMS, "@releaseDomain", b"n0\0r7\0"),
        ] {
            assert_eq!(ask(kind, format!("{path}\0").as_bytes()), [(host, reply.to_vec())], "{path}");
        }
        // The guest's watch is told by the path it knows, the client's by the one it gave.
        let told = ask(MsgType::SET_PERMS, b"/local/domain/7/data\0n7\0");
        let events: Vec<_> = told.iter().map(|(_, event)| String::from_utf8_lossy(event)).collect();
        for event in ["data\0g\0", "/local/domain/7/data\0tok\0"] {
            assert!(events.iter().any(|told| told == event), "{events:?}");
        }
        assert_eq!(told.len(), 3);
    }

    /// Another store may have accepted it; what is left out is not worth the others.
    #[test]
    fn records_that_make_no_sense_are_left_out() {
        let mut stream = Stream::new();
        let (input, output, partial) = (&b""[..], &b""[..], 0);
        stream.put(&Record::Global { socket: 3, evtchn: -1 });
        let spec = ConnSpec::Socket { fd: 4 };
        stream.put(&Record::Conn { id: 1, spec, input, output, partial });
        for (conn, path) in [(1, &b"@"[..]), (7, b"/a"), (1, b"/good")] {
            stream.put(&Record::Watch { conn, path, token: b"t", depth: None });
        }
        for path in [&b"/no/parent"[..], b"/bad//path", b"@nope/x/y", b"/good"] {
            let perms = vec![NodePerm { letter: b'n', stale: false, domid: 0 }];
            stream.put(&Record::Node { conn: 0, tx: 0, access: 0, perms, path, value: b"v" });
        }
        stream.put(&Record::Target { domid: 8, target: 9 });
        let state = State::read(&stream.finish().unwrap()).unwrap();
        let mut store = state.store;
        assert_eq!(store.check(), Ok(()));
        assert_eq!(store.watches_of(state.conns[0].conn).len(), 1);
        assert_eq!(store.tree.get("/good").unwrap().value(), b"v");
        assert!(store.tree.get("/no").is_none() && store.tree.get("/bad").is_none());
        let mut twice = Stream::new();
        for _ in 0..2 {
            twice.put(&Record::Conn { id: 1, spec: ConnSpec::Socket { fd: 4 }, input, output, partial });
        }
        assert!(State::read(&twice.finish().unwrap()).is_err(), "nobody knows whose what follows is");
    }
}
