use super::*;
use crate::backend::console::ring::fake::Page;
use crate::backend::device::{Channels, EventChannel, Frontend, GuestRam};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::time::Duration;
use vm_memory::VolatileSlice;
use xen_abi::io::console::{OUT_CONS, OUT_PROD};
use xen_domain::gnttab::{GrantError, Pinned};
use xen_domain::mem::{Fault, Gpa, GuestMem};
use xen_emu_api::device::ChannelConnection;

impl GuestRam for Page {
    fn slice(&self, _: Gpa, _: usize) -> Result<VolatileSlice<'_>, Fault> {
        Err(Fault)
    }
}

/// A guest that has always written more by the time that somebody looks.
struct Endless(Page);

impl GuestMem for Endless {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        self.0.read(gpa, buf)
    }
    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), Fault> {
        self.0.write(gpa, buf)
    }
    fn load_u32(&self, gpa: Gpa) -> Result<u32, Fault> {
        match gpa == Gpa(OUT_PROD as u64) {
            true => Ok(self.0.load_u32(Gpa(OUT_CONS as u64))?.wrapping_add(1024)),
            false => self.0.load_u32(gpa),
        }
    }
    fn store_u32(&self, gpa: Gpa, value: u32) -> Result<(), Fault> {
        self.0.store_u32(gpa, value)
    }
    fn load_u64(&self, _: Gpa) -> Result<u64, Fault> {
        Err(Fault)
    }
    fn fetch_or_u8(&self, _: Gpa, _: u8) -> Result<u8, Fault> {
        Err(Fault)
    }
    fn fetch_or_u32(&self, _: Gpa, _: u32) -> Result<u32, Fault> {
        Err(Fault)
    }
    fn fetch_and_u32(&self, _: Gpa, _: u32) -> Result<u32, Fault> {
        Err(Fault)
    }
    fn fetch_or_u64(&self, _: Gpa, _: u64) -> Result<u64, Fault> {
        Err(Fault)
    }
    fn fetch_and_u64(&self, _: Gpa, _: u64) -> Result<u64, Fault> {
        Err(Fault)
    }
    fn cas_u32(&self, _: Gpa, _: u32, _: u32) -> Result<Result<u32, u32>, Fault> {
        Err(Fault)
    }
}

impl GuestRam for Endless {
    fn slice(&self, _: Gpa, _: usize) -> Result<VolatileSlice<'_>, Fault> {
        Err(Fault)
    }
}

/// Grant 8 is the page; and port 13 leads to `kick`.
struct Guest {
    page: Arc<Page>,
    pins: AtomicI32,
    kick: EventFd,
    notify: EventFd,
    failed: Mutex<Vec<String>>,
}

impl Grants for Guest {
    fn pin(&self, gref: Gref, write: bool) -> Result<Pinned, GrantError> {
        if (gref, write) != (Gref(8), true) {
            return Err(GrantError::BadRef(gref.0));
        }
        self.pins.fetch_add(1, SeqCst);
        Ok(Pinned { gpa: Gpa(0), len: 4096 })
    }
    fn unpin(&self, _: Gref, _: bool) {
        self.pins.fetch_sub(1, SeqCst);
    }
}

impl Channels for Guest {
    fn bind(&self, port: u32) -> Result<EventChannel, DeviceError> {
        let dup = |fd: &EventFd| -> OwnedFd { fd.as_fd().try_clone_to_owned().unwrap() };
        match port {
            13 => Ok(EventChannel { kick: dup(&self.kick), notify: dup(&self.notify), end: Box::new(()) }),
            _ => Err(DeviceError(format!("event channel {port} is unknown"))),
        }
    }
}

impl Guest {
    fn new() -> Arc<Guest> {
        let (page, fd) = (Arc::new(Page::default()), || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let pins = AtomicI32::new(0);
        Arc::new(Guest { page, pins, kick: fd(), notify: fd(), failed: Mutex::default() })
    }

    fn connection(self: &Arc<Self>, nodes: &[(&str, &str)]) -> Connection {
        let nodes = nodes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let me = self.clone();
        Connection {
            domid: 7,
            front: Frontend { nodes },
            memory: self.page.clone(),
            grants: self.clone(),
            channels: self.clone(),
            fail: Arc::new(move |e| me.failed.lock().unwrap().push(e.0)),
        }
    }

    fn writes(&self, text: &[u8]) {
        assert_eq!(self.page.guest_writes(text), text.len());
        self.kick.write(1).unwrap();
    }

    fn drained(&self) -> bool {
        let index = |at: usize| self.page.load_u32(Gpa(at as u64)).unwrap();
        index(OUT_CONS) == index(OUT_PROD)
    }

    fn reads(&self, want: &[u8]) {
        let mut got = Vec::new();
        eventually(|| {
            got.extend(self.page.guest_reads());
            got.len() >= want.len()
        });
        assert_eq!(got, want);
    }
}

fn eventually(mut done: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never came");
}

fn open(connection: ChannelConnection) -> Result<Channel, DeviceError> {
    Channel::open(&ChannelConfig { devid: 1, name: "org.example.agent".into(), connection })
}

fn said(path: &Path, client: &mut UnixStream, want: &str) {
    let mut got = vec![0; want.len()];
    client.read_exact(&mut got).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(String::from_utf8_lossy(&got), want);
}

#[test]
fn a_guest_that_never_stops_writing_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::new();
    let mut channel = open(ChannelConnection::Socket { path: dir.path().join("agent.sock") }).unwrap();
    let connection = guest.connection(&[("ring-ref", "8"), ("port", "13")]);
    channel.connect(Connection { memory: Arc::new(Endless(Page::default())), ..connection }).unwrap();
    let [_, (_, from_guest)] = channel.counters()[..] else { panic!() };
    eventually(|| channel.counters()[1].1 > from_guest);
    channel.disconnect();
    assert_eq!((channel.rings(), guest.pins.load(SeqCst)), (vec![], 0));
}

#[test]
fn clients_come_one_after_another_and_nothing_is_lost_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let guest = Guest::new();
    let mut channel = open(ChannelConnection::Socket { path: path.clone() }).unwrap();
    assert_eq!(channel.path().as_deref(), path.to_str());
    // Who comes before the guest waits for it.
    let mut early = UnixStream::connect(&path).unwrap();
    early.write_all(b"ping\n").unwrap();
    channel.connect(guest.connection(&[("ring-ref", "8"), ("port", "13")])).unwrap();
    assert_eq!(channel.rings(), [8]);
    guest.reads(b"ping\n");
    guest.writes(b"pong\n");
    said(&path, &mut early, "pong\n");

    // The second waits its turn; one that has said all still gets the answer.
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"second").unwrap();
    second.shutdown(std::net::Shutdown::Write).unwrap();
    drop(early);
    guest.reads(b"second");
    guest.writes(b"for the second");
    said(&path, &mut second, "for the second");
    drop(second);

    // With nobody there the guest goes on, far beyond the ring.
    let flood = vec![b'f'; 1000];
    let mut wrote = 0;
    while wrote < 50 {
        wrote += guest.page.guest_writes(&flood) / flood.len();
        guest.kick.write(1).unwrap();
    }
    channel.disconnect();
    channel.disconnect();
    assert_eq!((guest.pins.load(SeqCst), channel.rings().len()), (0, 0));
    channel.connect(guest.connection(&[("ring-ref", "8"), ("port", "13")])).unwrap();
    guest.reads(b"");
    drop(channel);
    assert!(!path.exists() && guest.pins.load(SeqCst) == 0);
}

#[test]
fn output_waits_for_the_next_client_and_a_broken_ring_closes_the_channel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let guest = Guest::new();
    let mut channel = open(ChannelConnection::Socket { path: path.clone() }).unwrap();
    channel.connect(guest.connection(&[("ring-ref", "8"), ("port", "13")])).unwrap();
    for round in 0..20 {
        let text = format!("round {round}: {}\n", "y".repeat(1500));
        eventually(|| guest.drained());
        guest.writes(text.as_bytes());
    }
    let mut client = UnixStream::connect(&path).unwrap();
    for round in 0..20 {
        said(&path, &mut client, &format!("round {round}: {}\n", "y".repeat(1500)));
    }
    guest.page.set_indices([0, 0, 0, 5000]);
    guest.kick.write(1).unwrap();
    eventually(|| !guest.failed.lock().unwrap().is_empty());
    let why = guest.failed.lock().unwrap().concat();
    assert!(why.starts_with("channel: "), "{why}");
    channel.disconnect();
}

#[test]
fn a_pty_is_there_before_the_guest_and_nobody_holds_the_guest_back() {
    let guest = Guest::new();
    let mut channel = open(ChannelConnection::Pty).unwrap();
    let tty = channel.path().unwrap();
    channel.connect(guest.connection(&[("ring-ref", "8"), ("port", "13")])).unwrap();
    let mut reader = std::fs::File::options().read(true).write(true).open(&tty).unwrap();
    guest.writes(b"login: ");
    let mut got = [0; 7];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"login: ");
    reader.write_all(b"root\n").unwrap();
    guest.reads(b"root\n");
}

#[test]
fn nonsense_of_the_frontend_and_bad_paths_are_refused_in_one_line() {
    let guest = Guest::new();
    let mut channel = open(ChannelConnection::Pty).unwrap();
    let mut refused = |nodes: &[(&str, &str)]| channel.connect(guest.connection(nodes)).unwrap_err().0;
    assert_eq!(refused(&[]), "the frontend has not written ring-ref");
    assert_eq!(refused(&[("ring-ref", "8")]), "the frontend has not written port");
    assert!(refused(&[("ring-ref", "9"), ("port", "13")]).contains("grant 9"));
    assert_eq!(refused(&[("ring-ref", "8"), ("port", "99")]), "event channel 99 is unknown");
    assert_eq!(guest.pins.load(SeqCst), 0);

    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| ChannelConnection::Socket { path: dir.path().join(name) };
    std::fs::write(dir.path().join("file"), "precious").unwrap();
    let error = |name| open(at(name)).err().unwrap().0;
    assert!(error("file").ends_with("file: exists and is no socket"), "{}", error("file"));
    assert!(error("missing/sock").contains("missing/sock: No such file"), "{}", error("missing/sock"));
    let taken = UnixListener::bind(dir.path().join("taken")).unwrap();
    assert!(error("taken").ends_with("another process listens there"));
    drop(taken);
    open(at("taken")).unwrap();
}
