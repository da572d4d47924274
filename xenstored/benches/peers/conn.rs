//! A connection with no more between the socket and the measurement than there must be.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use xenstored::wire::{HEADER_LEN, MsgType, put, split};

pub struct Conn {
    socket: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    req_id: u32,
}

/// A message from the daemon.
pub struct Message {
    pub kind: MsgType,
    pub payload: Vec<u8>,
}

impl Conn {
    pub fn new(path: &Path) -> Self {
        let socket = loop {
            match UnixStream::connect(path) {
                // More wait to be accepted than may.
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                socket => break socket.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
            }
        };
        Self { socket, input: Vec::new(), output: Vec::new(), req_id: 0 }
    }

    pub fn send(&mut self, kind: MsgType, tx_id: u32, payload: &[u8]) {
        self.req_id = self.req_id.wrapping_add(1);
        self.output.clear();
        put(&mut self.output, kind, self.req_id, tx_id, &[payload]).unwrap();
        self.socket.write_all(&self.output).unwrap();
    }

    /// A whole message that has come already.
    pub fn message(&mut self) -> Option<Message> {
        let (header, payload) = split(&self.input).expect("the protocol")?;
        let message = Message { kind: header.kind, payload: payload.to_vec() };
        self.input.drain(..HEADER_LEN + message.payload.len());
        Some(message)
    }

    /// Waits for bytes.
    pub fn fill(&mut self) {
        let mut chunk = [0; 8192];
        let got = self.socket.read(&mut chunk).unwrap();
        assert!(got > 0, "the daemon closed a connection");
        self.input.extend_from_slice(&chunk[..got]);
    }

    /// Waits for a message that is no watch event.
    pub fn reply(&mut self) -> Message {
        loop {
            match self.message() {
                None => self.fill(),
                Some(event) if event.kind == MsgType::WATCH_EVENT => {}
                Some(reply) => return reply,
            }
        }
    }

    /// A request and its reply, which must be no error.
    pub fn ask(&mut self, kind: MsgType, payload: &[u8]) -> Vec<u8> {
        self.send(kind, 0, payload);
        let reply = self.reply();
        assert!(
            reply.kind == kind,
            "{kind} {}: {}",
            String::from_utf8_lossy(payload),
            String::from_utf8_lossy(&reply.payload)
        );
        reply.payload
    }

    /// Many requests, with some in flight; none may fail.
    pub fn pipeline(&mut self, requests: impl Iterator<Item = (MsgType, Vec<u8>)>) {
        const IN_FLIGHT: u32 = 64;
        let mut flying = 0;
        for (kind, payload) in requests {
            self.send(kind, 0, &payload);
            flying += 1;
            while flying >= IN_FLIGHT {
                self.land(&mut flying);
            }
        }
        while flying > 0 {
            self.land(&mut flying);
        }
    }

    fn land(&mut self, flying: &mut u32) {
        let reply = self.reply();
        assert!(reply.kind != MsgType::ERROR, "{}", String::from_utf8_lossy(&reply.payload));
        *flying -= 1;
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
