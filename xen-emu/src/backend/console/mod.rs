//! The primary PV console: two byte rings, a log in memory and in a file, a pty, and any number of readers on a
//! socket. Input of all of them is merged.
//!
//! The ring is emptied only as far as the backlog takes it, and the backlog takes all that no living reader would
//! lose by it, so a flood is byte-exact for whoever reads. Nothing here blocks: the event loop says what is ready
//! ([`Console::ready`]) and then calls [`Console::turn`] once.

mod backlog;
pub mod pty;
mod reader;
pub mod ring;

use crate::log::limited;
use crate::reactor::Turn;
use crate::socket::{ClientId, Listener, hung_up};
use backlog::{Backlog, LogFile};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pty::Pty;
use reader::Reader;
use ring::Ring;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xen_abi::io::console::OUT_SIZE;
use xen_domain::mem::{Gpa, GuestMem};
use xen_emu_api::run_dir::RunDir;

/// Input that waits for the guest; more stays with whoever typed it.
const INPUT_MAX: usize = 64 << 10;
/// Output taken from the guest in one turn.
const TURN_MAX: usize = 64 << 10;
/// Bytes freed in the ring after which the guest is told. It can wait for room only when the ring is full, which is
/// twice this; told after every line, it would take an interrupt for each.
const TELL: usize = OUT_SIZE as usize / 2;
/// Readers at once.
const READERS_MAX: usize = 32;

/// What the machine gives the console.
pub struct Wiring {
    /// Where the ring page can be reached.
    pub page: Arc<dyn GuestMem + Send + Sync>,
    /// The ring page's address in it.
    pub at: Gpa,
    /// Eventfd: the guest has notified.
    pub kick: OwnedFd,
    /// Eventfd: notify the guest.
    pub notify: OwnedFd,
}

/// What of the console became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The guest.
    Kick,
    /// The pty.
    Pty,
    /// A reader on the socket.
    Client(ClientId),
}

/// A reader that may also type.
struct Client {
    stream: Rc<UnixStream>,
    reader: Reader,
    readable: bool,
    /// It will not type any more.
    silent: bool,
}

/// The primary console of a domain.
pub struct Console {
    ring: Ring,
    kick: Arc<File>,
    notify: File,
    /// Bytes taken from the ring since the guest was last notified.
    freed: usize,
    log: Backlog,
    file: LogFile,
    input: VecDeque<u8>,
    listener: Listener,
    clients: BTreeMap<ClientId, Client>,
    gone: Vec<ClientId>,
    pty: Option<(Pty, Reader)>,
    pty_readable: bool,
}

impl Console {
    /// Serve the console from `dir`: binds its socket and continues its log file.
    ///
    /// # Errors
    /// The host's, or a page that is not there. Without a pty the console works on, with a warning.
    pub fn open(dir: &RunDir, wiring: Wiring) -> io::Result<Console> {
        let (file, earlier) = LogFile::open(dir.console_log())?;
        let mut log = Backlog::default();
        log.push(&earlier, u64::MAX);
        let pty = Pty::open().inspect_err(|e| tracing::warn!("console: no pty: {e}")).ok();
        fcntl(&wiring.kick, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok(Console {
            ring: Ring::new(wiring.page, wiring.at).map_err(io::Error::other)?,
            kick: Arc::new(wiring.kick.into()),
            notify: wiring.notify.into(),
            freed: 0,
            pty: pty.map(|pty| (pty, Reader::new(&log))),
            pty_readable: false,
            log,
            file,
            input: VecDeque::new(),
            listener: Listener::bind(&dir.console())?,
            clients: BTreeMap::new(),
            gone: Vec::new(),
        })
    }

    /// Path of the pty.
    pub fn tty(&self) -> Option<&str> {
        self.pty.as_ref().map(|(pty, _)| pty.path.as_str())
    }

    /// For the event loop: the guest's kick, and the pty.
    pub fn sources(&self) -> Vec<(Source, Arc<File>)> {
        let pty = self.pty.iter().map(|(pty, _)| (Source::Pty, pty.master.clone()));
        [(Source::Kick, self.kick.clone())].into_iter().chain(pty).collect()
    }

    /// For the event loop: where readers come from.
    pub fn listener(&self) -> Rc<UnixListener> {
        self.listener.socket()
    }

    /// The next reader that has come, to be watched by the event loop. Its first output is the whole backlog.
    pub fn accept(&mut self) -> Option<(ClientId, Rc<UnixStream>)> {
        loop {
            let (id, stream) = self.listener.accept()?;
            if self.clients.len() >= READERS_MAX {
                let _ = (&*stream).write_all(b"console: too many readers\r\n");
                continue;
            }
            let reader = Reader::new(&self.log);
            let client = Client { stream: stream.clone(), reader, readable: true, silent: false };
            self.clients.insert(id, client);
            return Some((id, stream));
        }
    }

    /// Note that a source is ready.
    pub fn ready(&mut self, source: Source) {
        match source {
            // The count says nothing: every turn looks at the ring.
            Source::Kick => drop((&*self.kick).read(&mut [0; 8])),
            Source::Pty => self.pty_readable = true,
            Source::Client(id) => match self.clients.get_mut(&id) {
                Some(client) if client.silent && hung_up(&*client.stream) => self.drop_client(id),
                Some(client) => client.readable = !client.silent,
                None => {}
            },
        }
    }

    /// Move everything that can be moved now.
    pub fn turn(&mut self, now: Instant) -> Turn {
        self.take_input();
        let typed = self.put_input();
        let taken = self.take_output();
        self.freed += taken;
        self.flush();
        if typed || self.freed >= TELL {
            // Full only if the guest has 2^64 - 2 notifications to take.
            let _ = self.notify.write(&1u64.to_ne_bytes());
            self.freed = 0;
        }
        Turn { again: taken > 0, deadline: if taken > 0 { None } else { self.hold(now) } }
    }

    /// Readers that have left since the last call, for the event loop to forget.
    pub fn take_gone(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.gone)
    }

    /// A word of our own to everybody who reads, on a line by itself and after what the guest has written.
    pub fn note(&mut self, text: &str) {
        while self.take_output() > 0 {}
        let line = format!("\r\nxen-emu: {text}\r\n");
        self.log.push(line.as_bytes(), u64::MAX);
        self.file.write(line.as_bytes());
        self.flush();
    }

    /// The guest begins anew, while it does not run: what it has written is taken, what was typed waits for it.
    ///
    /// # Errors
    /// The page is not there.
    pub fn renew(&mut self) -> io::Result<()> {
        while self.take_output() > 0 {}
        self.freed = 0;
        self.ring.reset().map_err(io::Error::other)
    }

    /// The guest will write no more: take what is left, and give readers `patience` to read it.
    pub fn finish(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        loop {
            let again = self.turn(Instant::now()).again;
            let behind: Vec<_> = self.clients.values().filter(|c| c.reader.behind(&self.log)).collect();
            if again {
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            if behind.is_empty() || left.is_zero() {
                return;
            }
            let mut fds: Vec<_> =
                behind.iter().map(|c| PollFd::new(c.stream.as_fd(), PollFlags::POLLOUT)).collect();
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            if poll(&mut fds, timeout).is_err_and(|e| e != nix::errno::Errno::EINTR) {
                return;
            }
        }
    }

    /// Open the log file anew.
    pub fn reopen_log(&mut self) -> io::Result<()> {
        self.file.reopen()
    }

    /// State as text.
    pub fn describe(&self) -> String {
        let waiting = self.ring.waiting().map_or_else(|e| e.to_string(), |n| n.to_string());
        let mut text = format!(
            "console:\n  tty {}\n  output {} bytes, {} kept, {waiting} in the ring\n  input {} bytes waiting\n",
            self.tty().unwrap_or("none"),
            self.log.end(),
            self.log.end() - self.log.start(),
            self.input.len()
        );
        for (id, client) in &self.clients {
            let state = if client.reader.behind(&self.log) { "behind" } else { "up to date" };
            text += &format!("  reader {id}: {state}\n");
        }
        text
    }

    fn drop_client(&mut self, id: ClientId) {
        if self.clients.remove(&id).is_some() {
            self.gone.push(id);
        }
    }

    /// From whoever types to `input`.
    fn take_input(&mut self) {
        if self.pty_readable
            && let Some((pty, _)) = &self.pty
        {
            self.pty_readable = fill(&mut self.input, &*pty.master).readable;
        }
        let mut left = Vec::new();
        for (&id, client) in self.clients.iter_mut().filter(|(_, client)| client.readable) {
            let filled = fill(&mut self.input, &*client.stream);
            (client.readable, client.silent) = (filled.readable, filled.end);
            if filled.end && hung_up(&*client.stream) {
                left.push(id);
            }
        }
        left.into_iter().for_each(|id| self.drop_client(id));
    }

    /// From `input` to the guest.
    fn put_input(&mut self) -> bool {
        let mut any = false;
        while !self.input.is_empty() {
            match self.ring.put(self.input.as_slices().0) {
                Ok(0) => break,
                Ok(n) => drop(self.input.drain(..n)),
                Err(e) => {
                    limited!(warn, "console input: {e}");
                    break;
                }
            }
            any = true;
        }
        any
    }

    /// From the guest to the log; how many bytes.
    fn take_output(&mut self) -> usize {
        let needed = self.clients.values().filter_map(|c| c.reader.needs()).min().unwrap_or(u64::MAX);
        let room = self.log.room(needed).min(TURN_MAX);
        let mut bytes = Vec::new();
        while bytes.len() < room {
            let rest = room - bytes.len();
            match self.ring.take(&mut bytes, rest) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => {
                    limited!(warn, "console output: {e}");
                    break;
                }
            }
        }
        if !bytes.is_empty() {
            self.log.push(&bytes, needed);
            self.file.write(&bytes);
        }
        bytes.len()
    }

    /// From the log to the readers.
    fn flush(&mut self) {
        if let Some((pty, reader)) = &mut self.pty
            && let Err(e) = reader.flush(&self.log, &*pty.master, |_| None)
        {
            limited!(warn, "{}: {e}", pty.path);
        }
        let notice =
            |lost| Some(format!("\r\n[{lost} bytes of output skipped: this reader is too slow]\r\n"));
        let mut left = Vec::new();
        for (&id, client) in &mut self.clients {
            if client.reader.flush(&self.log, &*client.stream, notice).is_err() {
                left.push(id);
            }
        }
        left.into_iter().for_each(|id| self.drop_client(id));
    }

    /// Until when the guest waits for a slow reader.
    fn hold(&mut self, now: Instant) -> Option<Instant> {
        if self.ring.waiting().is_ok_and(|n| n == 0) {
            return None;
        }
        self.clients.values_mut().filter_map(|client| client.reader.hold(&self.log, now)).max()
    }
}

struct Filled {
    /// There may be more.
    readable: bool,
    /// There will be no more.
    end: bool,
}

/// Read into `input` until it is full or there is nothing more.
fn fill(input: &mut VecDeque<u8>, mut from: impl Read) -> Filled {
    let mut chunk = [0; 4096];
    loop {
        let space = (INPUT_MAX - input.len().min(INPUT_MAX)).min(chunk.len());
        if space == 0 {
            return Filled { readable: true, end: false };
        }
        match from.read(&mut chunk[..space]) {
            Ok(0) => return Filled { readable: false, end: true },
            Ok(n) => input.extend(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Filled { readable: false, end: e.kind() != ErrorKind::WouldBlock },
        }
    }
}

#[cfg(test)]
mod tests;
