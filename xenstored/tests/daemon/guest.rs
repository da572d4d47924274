//! A guest's end of a ring, as a domain's process and its kernel have it.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use xenstored::client::RingFds;
use xenstored::wire::{HEADER_LEN, split};

const REQ_CONS: u64 = 2048;
const REQ_PROD: u64 = 2052;
const RSP_CONS: u64 = 2056;
const RSP_PROD: u64 = 2060;
const CONNECTION: u64 = 2068;
const ERROR: u64 = 2072;
const WATCH_EVENT: u32 = 15;

pub struct Guest {
    page: File,
    kick: EventFd,
    notify: EventFd,
    stores_end: UnixStream,
    lifeline: UnixStream,
    input: Vec<u8>,
    events: Vec<Vec<u8>>,
}

impl Guest {
    pub fn new() -> Self {
        Self::with_page(4096)
    }

    pub fn with_page(len: u64) -> Self {
        let page = File::from(memfd_create(c"xenstore ring", MFdFlags::MFD_CLOEXEC).unwrap());
        page.set_len(len).unwrap();
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        let (lifeline, stores_end) = UnixStream::pair().unwrap();
        let (kick, notify) = (eventfd(), eventfd());
        let guest = Self { page, kick, notify, stores_end, lifeline, input: Vec::new(), events: Vec::new() };
        if len >= 4096 {
            // A guest may see this until the store has come.
            guest.set_word(CONNECTION, 1);
        }
        guest
    }

    pub fn fds(&self) -> RingFds<'_> {
        RingFds {
            page: self.page.as_fd(),
            kick: self.kick.as_fd(),
            notify: self.notify.as_fd(),
            lifeline: Some(self.stores_end.as_fd()),
        }
    }

    pub fn word(&self, at: u64) -> u32 {
        let mut word = [0; 4];
        self.page.read_exact_at(&mut word, at).unwrap();
        u32::from_le_bytes(word)
    }

    pub fn set_word(&self, at: u64, value: u32) {
        self.page.write_all_at(&value.to_le_bytes(), at).unwrap();
    }

    pub fn set_index(&mut self, index: u32) {
        for at in [REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD] {
            self.set_word(at, index);
        }
    }

    /// Bytes of requests that the store has not taken.
    pub fn unread(&self) -> u32 {
        self.word(REQ_PROD).wrapping_sub(self.word(REQ_CONS))
    }

    /// How many bytes the store has room for.
    pub fn unsent_room(&self) -> u32 {
        1024 - self.word(RSP_PROD).wrapping_sub(self.word(RSP_CONS))
    }

    pub fn connection(&self) -> u32 {
        self.word(CONNECTION)
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    pub fn shut_down(&mut self) {
        self.lifeline.write_all(b"s").unwrap();
    }

    /// Writes anything anywhere.
    pub fn poke(&self, at: u64, bytes: &[u8]) {
        self.page.write_all_at(bytes, at).unwrap();
    }

    /// Takes the page away from whoever has it mapped.
    pub fn shorten_page(&self) {
        self.page.set_len(0).unwrap();
    }

    /// Puts a request into the ring without looking whether there is room for it.
    pub fn put_request(&self, kind: u32, tx: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        let header = [kind, 7, tx, len].into_iter().flat_map(u32::to_le_bytes);
        let mut prod = self.word(REQ_PROD);
        for byte in header.chain(payload.iter().copied()) {
            self.poke(u64::from(prod % 1024), &[byte]);
            prod = prod.wrapping_add(1);
        }
        self.set_word(REQ_PROD, prod);
    }

    /// Says something on the life line.
    pub fn say(&mut self, bytes: &[u8]) {
        // Nobody listens while the store is away.
        let _ = self.lifeline.write_all(bytes);
    }

    pub fn wait_for_error(&self) -> u32 {
        while self.word(ERROR) == 0 {
            self.wait();
        }
        self.word(ERROR)
    }

    pub fn reconnect(&mut self) {
        self.set_word(CONNECTION, 1);
        self.kick();
        while self.connection() != 0 {
            self.wait();
        }
        self.forget();
    }

    /// What it has read so far is of an earlier life.
    pub fn forget(&mut self) {
        self.input.clear();
        self.events.clear();
    }

    pub fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let prod = self.word(REQ_PROD);
            let room = 1024 - prod.wrapping_sub(self.word(REQ_CONS)) as usize;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            let at = prod % 1024;
            let (head, tail) = now.split_at(now.len().min(1024 - at as usize));
            self.poke(at.into(), head);
            self.poke(0, tail);
            self.set_word(REQ_PROD, prod.wrapping_add(u32::try_from(now.len()).unwrap()));
            // As Linux does it: not while the store has something of before to take.
            if self.word(REQ_CONS).wrapping_sub(prod) <= 1024 {
                self.kick();
            }
            bytes = rest;
            if now.is_empty() {
                self.wait();
            }
        }
    }

    /// Sends a request and answers type and payload of the reply.
    pub fn request(&mut self, kind: u32, payload: &[u8]) -> (u32, Vec<u8>) {
        let len = u32::try_from(payload.len()).unwrap();
        let header: Vec<u8> = [kind, 7, 0, len].iter().flat_map(|word| word.to_le_bytes()).collect();
        // In two pieces, as Linux does it; the store may well see the first one alone.
        self.send(&header);
        std::thread::sleep(std::time::Duration::from_micros(200));
        self.send(payload);
        self.reply()
    }

    /// Type and payload of the next reply.
    pub fn reply(&mut self) -> (u32, Vec<u8>) {
        let (kind, _, payload) = self.whole_reply();
        (kind, payload)
    }

    /// Type, id and payload of the next reply.
    pub fn whole_reply(&mut self) -> (u32, u32, Vec<u8>) {
        loop {
            let (kind, id, payload) = self.message();
            if kind != WATCH_EVENT {
                return (kind, id, payload);
            }
            self.events.push(payload);
        }
    }

    /// How much more of requests the ring can take now.
    pub fn room(&self) -> usize {
        1024 - self.unread() as usize
    }

    pub fn event(&mut self) -> Vec<u8> {
        if !self.events.is_empty() {
            return self.events.remove(0);
        }
        let (kind, _, payload) = self.message();
        assert_eq!(kind, WATCH_EVENT);
        payload
    }

    fn message(&mut self) -> (u32, u32, Vec<u8>) {
        loop {
            if let Some(message) = self.try_message() {
                return message;
            }
            self.wait();
        }
    }

    /// The next message, if it is there.
    pub fn try_message(&mut self) -> Option<(u32, u32, Vec<u8>)> {
        loop {
            if let Some((header, payload)) = split(&self.input).unwrap() {
                let message = (header.kind.0, header.req_id, payload.to_vec());
                self.input.drain(..HEADER_LEN + message.2.len());
                return Some(message);
            }
            let (prod, cons) = (self.word(RSP_PROD), self.word(RSP_CONS));
            let count = prod.wrapping_sub(cons);
            assert!(count <= 1024);
            let at = cons % 1024;
            let (all, head) = (count as usize, (count.min(1024 - at)) as usize);
            let mut bytes = vec![0; all];
            self.page.read_exact_at(&mut bytes[..head], (1024 + at).into()).unwrap();
            self.page.read_exact_at(&mut bytes[head..], 1024).unwrap();
            self.input.extend_from_slice(&bytes);
            self.set_word(RSP_CONS, prod);
            match count {
                0 => return None,
                // As Linux does it: the store can have waited for room only if there was none.
                1024 => self.kick(),
                _ => {}
            }
        }
    }

    /// Until the store notifies.
    fn wait(&self) {
        assert!(self.wait_for(60_000), "the store is silent");
    }

    /// `false` if it does not within so many milliseconds.
    pub fn wait_for(&self, millis: u16) -> bool {
        let mut fds = [PollFd::new(self.notify.as_fd(), PollFlags::POLLIN)];
        let notified = poll(&mut fds, PollTimeout::from(millis)) == Ok(1);
        if notified {
            self.notify.read().unwrap();
        }
        notified
    }
}
