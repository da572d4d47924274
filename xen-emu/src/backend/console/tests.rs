//! The console over real sockets and a real pty, with a page that no guest has.

use super::ring::fake::Page;
use super::*;
use nix::sys::eventfd::EventFd;
use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use xen_emu_api::run_dir::RunRoot;

struct Fixture {
    _root: tempfile::TempDir,
    dir: RunDir,
    page: Arc<Page>,
    notify: EventFd,
    console: Console,
}

fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let dir = RunRoot::at(root.path().join("run")).unwrap().reserve(|_| false).unwrap();
    let page = Arc::new(Page::default());
    let (kick, notify) = (EventFd::new().unwrap(), EventFd::new().unwrap());
    let ours = notify.as_fd().try_clone_to_owned().unwrap();
    let wiring = Wiring { page: page.clone(), at: Gpa(0), kick: kick.into(), notify: ours };
    let console = Console::open(&dir, wiring).unwrap();
    Fixture { _root: root, dir, page, notify, console }
}

impl Fixture {
    fn connect(&mut self) -> (UnixStream, ClientId) {
        let stream = UnixStream::connect(self.dir.console()).unwrap();
        let (id, _) = self.console.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        (stream, id)
    }

    fn turns(&mut self) {
        while self.console.turn(Instant::now()).again {}
    }
}

fn read_all(mut from: impl Read) -> Vec<u8> {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        all.extend(&chunk[..n]);
    }
    all
}

#[test]
fn a_flood_is_byte_exact_for_every_reader_early_or_late() {
    let mut f = fixture();
    let text: Vec<u8> = (0..30_000)
        .flat_map(|n| format!("line {n} of a flood that goes on and on\r\n").into_bytes())
        .collect();
    let (early, _) = f.connect();
    let (mut sent, mut got) = (0, Vec::new());
    while got.len() < text.len() {
        sent += f.page.guest_writes(&text[sent..]);
        f.console.turn(Instant::now());
        got.extend(read_all(&early));
    }
    assert!(got == text);
    f.notify.read().unwrap();
    let (late, _) = f.connect();
    let mut got = Vec::new();
    for _ in 0..1000 {
        f.console.turn(Instant::now());
        got.extend(read_all(&late));
    }
    assert!(got == text[text.len() - backlog::KEEP..], "a late one gets the newest of it, nothing twice");
    assert!(
        std::fs::read(f.dir.console_log())
            .unwrap()
            .ends_with(b"line 29999 of a flood that goes on and on\r\n")
    );
}

#[test]
fn the_guest_is_told_of_room_only_when_it_may_wait_for_it() {
    let mut f = fixture();
    let told = |f: &Fixture| {
        let mut fds = [PollFd::new(f.notify.as_fd(), PollFlags::POLLIN)];
        let told = poll(&mut fds, PollTimeout::ZERO).unwrap() == 1;
        told && f.notify.read().is_ok()
    };
    for _ in 0..12 {
        f.page.guest_writes(&[b'x'; 80]);
        f.turns();
        assert!(!told(&f));
    }
    // Whatever was taken before, a full ring that is emptied is told of.
    for already in [0, 1, 500, 1023] {
        f.page.guest_writes(&vec![b'x'; already]);
        f.turns();
        told(&f);
        assert_eq!(f.page.guest_writes(&[b'x'; 3000]), 2048);
        f.turns();
        assert!(told(&f), "{already}");
    }
}

#[test]
fn a_reader_that_does_not_read_holds_the_guest_only_so_long() {
    let mut f = fixture();
    let (stuck, _) = f.connect();
    let chunk = [b'x'; 2048];
    let mut deadline = None;
    for _ in 0..3000 {
        f.page.guest_writes(&chunk);
        let turn = f.console.turn(Instant::now());
        deadline = turn.deadline;
        if deadline.is_some() {
            break;
        }
    }
    let deadline = deadline.expect("the guest has to wait");
    assert_eq!(f.console.ring.waiting(), Ok(2048));
    f.console.turn(deadline);
    f.turns();
    assert_eq!(f.console.ring.waiting(), Ok(0), "it goes on without the reader");
    for _ in 0..3000 {
        f.page.guest_writes(&chunk);
        f.turns();
    }
    let mut got = Vec::new();
    for _ in 0..1000 {
        got.extend(read_all(&stuck));
        f.turns();
    }
    assert!(String::from_utf8_lossy(&got).contains("bytes of output skipped: this reader is too slow]"));
}

#[test]
fn the_pty_is_private_raw_and_carries_both_ways() {
    let mut f = fixture();
    let tty = f.console.tty().unwrap().to_owned();
    assert_eq!(std::fs::metadata(&tty).unwrap().permissions().mode() & 0o777, 0o600);
    let text: Vec<u8> = (0..200_000u32).map(|n| b'a' + (n % 26).to_le_bytes()[0]).collect();
    let mut sent = 0;
    while sent < text.len() {
        sent += f.page.guest_writes(&text[sent..]);
        f.turns();
    }
    let flags = (OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits();
    let mut reader = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&tty).unwrap();
    let mut got = Vec::new();
    for _ in 0..10_000 {
        f.turns();
        got.extend(read_all(&reader));
        if got.len() >= text.len() {
            break;
        }
        std::thread::yield_now();
    }
    assert!(got == text, "nobody read while it was written, all of it is there: {} bytes", got.len());
    reader.write_all(b"root\r\x03").unwrap();
    f.console.ready(Source::Pty);
    f.turns();
    assert_eq!(f.page.guest_reads(), b"root\r\x03");
}

#[test]
fn input_is_merged_and_waits_for_space() {
    let mut f = fixture();
    let ((mut a, id_a), (mut b, _)) = (f.connect(), f.connect());
    a.write_all(&[b'a'; 1500]).unwrap();
    b.write_all(b"b").unwrap();
    f.turns();
    f.notify.read().unwrap();
    assert_eq!(f.page.guest_reads(), [b'a'; 1024]);
    f.turns();
    assert_eq!(f.page.guest_reads(), [[b'a'; 476].as_slice(), b"b"].concat());
    drop(a);
    f.console.ready(Source::Client(id_a));
    f.turns();
    assert_eq!(f.console.take_gone(), [id_a]);
    b.shutdown(std::net::Shutdown::Write).unwrap();
    f.turns();
    f.page.guest_writes(b"still there\n");
    f.turns();
    assert_eq!(read_all(&b), b"still there\n", "one that types no more may read on");
}
