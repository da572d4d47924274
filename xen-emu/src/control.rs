//! The control socket: JSON lines of `xen_emu_api::control`, several clients, nothing that blocks.
//!
//! The event loop says what is ready ([`Server::ready`]), takes requests with [`Server::next_request`] and answers
//! each with [`Server::reply`]; one that is not answered (`Wait`) keeps its client waiting.

use crate::socket::{ClientId, Listener, hung_up};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen_emu_api::control::{Reply, Request};

/// Longest request.
const LINE_MAX: usize = 64 << 10;
/// Clients at once.
const CLIENTS_MAX: usize = 64;

/// All clients of a domain's control socket.
pub struct Server {
    listener: Listener,
    clients: BTreeMap<ClientId, Client>,
    gone: Vec<ClientId>,
    /// Who was served last; the next one comes first.
    last: ClientId,
}

struct Client {
    stream: Rc<UnixStream>,
    lines: Lines,
    output: Vec<u8>,
    /// A request of it is being dealt with.
    busy: bool,
    readable: bool,
    closing: bool,
}

impl Server {
    /// Listen on `path`, mode 0600.
    pub fn open(path: &Path) -> io::Result<Server> {
        Ok(Server { listener: Listener::bind(path)?, clients: BTreeMap::new(), gone: Vec::new(), last: 0 })
    }

    /// For the event loop.
    pub fn listener(&self) -> Rc<UnixListener> {
        self.listener.socket()
    }

    /// The next client that has come, to be watched by the event loop.
    pub fn accept(&mut self) -> Option<(ClientId, Rc<UnixStream>)> {
        loop {
            let (id, stream) = self.listener.accept()?;
            let full = self.clients.len() >= CLIENTS_MAX;
            let client = Client {
                stream: stream.clone(),
                lines: Lines::default(),
                output: Vec::new(),
                busy: false,
                readable: true,
                closing: full,
            };
            self.clients.insert(id, client);
            if !full {
                return Some((id, stream));
            }
            self.reply(id, &error("control: too many clients".into()));
            self.clients.remove(&id);
        }
    }

    /// A client can be read or written again.
    pub fn ready(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.readable = true;
            self.step(id);
        }
    }

    /// The next request. Clients whose last one is not answered, or whose answer is not read, have to wait.
    pub fn next_request(&mut self) -> Option<(ClientId, Request)> {
        let (before, after): (Vec<_>, Vec<_>) = self.clients.keys().partition(|&&id| id <= self.last);
        for id in after.into_iter().chain(before) {
            self.step(id);
            while let Some(line) = self.clients.get_mut(&id).and_then(Client::next_line) {
                self.last = id;
                let parsed = line.and_then(|line| {
                    serde_json::from_slice(&line).map_err(|e| format!("control: not a request: {e}"))
                });
                match parsed {
                    Ok(request) => return Some((id, request)),
                    Err(message) => self.reply(id, &error(message)),
                }
            }
        }
        None
    }

    /// Answer the request that this client waits with.
    pub fn reply(&mut self, id: ClientId, reply: &Reply) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.busy = false;
            if xen_emu_api::control::send(&mut client.output, reply).is_err() {
                client.closing = true;
            }
            self.step(id);
        }
    }

    /// Clients that have left since the last call, for the event loop to forget.
    pub fn take_gone(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.gone)
    }

    /// Give clients `patience` to read their last answers.
    pub fn finish(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        loop {
            let ids: Vec<_> = self.clients.keys().copied().collect();
            ids.into_iter().for_each(|id| self.step(id));
            let late: Vec<_> = self.clients.values().filter(|client| !client.output.is_empty()).collect();
            let left = until.saturating_duration_since(Instant::now());
            if late.is_empty() || left.is_zero() {
                return;
            }
            let mut fds: Vec<_> =
                late.iter().map(|c| PollFd::new(c.stream.as_fd(), PollFlags::POLLOUT)).collect();
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            if poll(&mut fds, timeout).is_err_and(|e| e != nix::errno::Errno::EINTR) {
                return;
            }
        }
    }

    /// Read and write what is possible; forget the client when it has left or is done with.
    fn step(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.flush().is_err() || client.fill().is_err() || client.is_done() {
            self.clients.remove(&id);
            self.gone.push(id);
        }
    }
}

fn error(message: String) -> Reply {
    Reply::Error { message }
}

impl Client {
    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match (&*self.stream).write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        while self.readable && !self.lines.full() {
            match (&*self.stream).read(&mut chunk) {
                Ok(0) => (self.readable, self.lines.end) = (false, true),
                Ok(n) => self.lines.bytes.extend(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn next_line(&mut self) -> Option<Result<Vec<u8>, String>> {
        if self.busy || self.closing || !self.output.is_empty() {
            return None;
        }
        let line = self.lines.next()?;
        self.busy = true;
        self.closing = line.is_err();
        Some(line)
    }

    /// All answered and read, and no more to come; or nobody there to read.
    fn is_done(&self) -> bool {
        let answered = !self.busy && self.output.is_empty();
        let asked_all = self.closing || (self.lines.end && self.lines.bytes.is_empty());
        (answered && asked_all) || (self.lines.end && hung_up(&*self.stream))
    }
}

/// Bytes that become lines.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Nothing comes after `bytes`: a line without its newline counts.
    end: bool,
}

impl Lines {
    fn full(&self) -> bool {
        self.bytes.len() > LINE_MAX
    }

    /// The next line that is not blank; an error when it is longer than [`LINE_MAX`].
    fn next(&mut self) -> Option<Result<Vec<u8>, String>> {
        loop {
            let newline = self.bytes.iter().position(|&byte| byte == b'\n');
            let len = match newline {
                Some(at) => at + 1,
                None if self.full() => {
                    self.bytes.clear();
                    return Some(Err(format!("control: a request is longer than {LINE_MAX} bytes")));
                }
                None if self.end && !self.bytes.is_empty() => self.bytes.len(),
                None => return None,
            };
            let line: Vec<u8> = self.bytes.drain(..len).collect();
            if !line.trim_ascii().is_empty() {
                return Some(Ok(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let mut lines = Lines::default();
        let mut got = Vec::new();
        for byte in b"one\n\n  \ntwo\nthr" {
            lines.bytes.push(*byte);
            got.extend(lines.next());
        }
        lines.end = true;
        got.extend(lines.next());
        let want = ["one\n", "two\n", "thr"].map(|line| Ok(line.as_bytes().to_vec()));
        assert_eq!(got, want);
        lines.bytes = vec![b'x'; LINE_MAX + 1];
        assert!(lines.next().is_some_and(|line| line.is_err()) && lines.bytes.is_empty());
    }

    #[test]
    fn clients_are_served_in_turn_and_garbage_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let mut server = Server::open(&path).unwrap();
        let (mut a, mut b) = (UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap());
        a.write_all(b"{\"op\":\"wait\"}\n{\"op\":\"status\"}\n").unwrap();
        b.write_all(b"rubbish\n{\"op\":\"fly\"}\n{\"op\":\"pause\"}").unwrap();
        b.shutdown(std::net::Shutdown::Write).unwrap();
        let (id_a, _) = server.accept().unwrap();
        let (id_b, _) = server.accept().unwrap();
        assert_eq!(server.next_request(), Some((id_a, Request::Wait)));
        assert_eq!(server.next_request(), Some((id_b, Request::Pause)));
        assert_eq!(server.next_request(), None, "a waits");
        server.reply(id_b, &Reply::Ok);
        assert_eq!(server.take_gone(), [id_b], "all of b's are answered");
        let mut answers = String::new();
        b.read_to_string(&mut answers).unwrap();
        let answers: Vec<_> = answers.lines().collect();
        assert!(answers[0].contains("not a request") && answers[1].contains("unknown variant `fly`"));
        assert_eq!(answers[2..], ["{\"reply\":\"ok\"}"]);
        server.reply(id_a, &Reply::Shutdown { reason: 3 });
        assert_eq!(server.next_request(), Some((id_a, Request::Status)));
        drop(a);
        server.ready(id_a);
        assert_eq!(server.take_gone(), [id_a]);
    }
}
