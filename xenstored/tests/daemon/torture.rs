//! Hostile rings, rude sockets, kills and live updates at once, while honest clients count.
//!
//! `XENSTORED_TORTURE=SECONDS` runs it longer than a moment, with as many sockets as a soak should have.

#![allow(clippy::cast_possible_truncation, reason = "chance needs no more bits than it is asked for")]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use xenstored::client::Client;

use crate::guest::Guest;
use crate::host::Daemon;

const BINARY: &str = env!("CARGO_BIN_EXE_xenstored");
const HOSTILE_RINGS: u16 = 8;
const HONEST: usize = 4;
/// Beside so many who never rest a daemon may get little of a busy machine; what never comes is a failure all the same.
const LONG: Option<Duration> = Some(Duration::from_secs(900));

/// Numbers by chance (xorshift), the same in every run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// What happened.
#[derive(Debug, Default)]
struct Tally {
    honest_writes: AtomicU64,
    honest_events: AtomicU64,
    hostile_moves: AtomicU64,
    rude_messages: AtomicU64,
    introductions: AtomicU64,
    reconnections: AtomicU64,
}

fn connect(socket: &Path, stop: &AtomicBool) -> Option<Client> {
    while !stop.load(Relaxed) {
        if let Ok(mut client) = Client::connect(socket) {
            client.set_timeout(LONG);
            return Some(client);
        }
        thread::yield_now();
    }
    None
}

/// Counts up a node of its own: what was acknowledged is there, and every write is told once.
fn honest(socket: &Path, n: usize, stop: &AtomicBool, tally: &Tally) {
    let path = format!("/honest/{n}");
    let mut acknowledged = 0u64;
    while let Some(mut client) = connect(socket, stop) {
        tally.reconnections.fetch_add(1, Relaxed);
        let _ = count_up(&mut client, &path, &mut acknowledged, stop, tally);
    }
}

fn count_up(
    client: &mut Client,
    path: &str,
    acknowledged: &mut u64,
    stop: &AtomicBool,
    tally: &Tally,
) -> xenstored::client::Result<()> {
    let there = client.read_opt(path)?.map_or(0, |value| value.parse().unwrap());
    // The write that was not acknowledged may have come through.
    assert!(there == *acknowledged || there == *acknowledged + 1, "{path}: {there}, not {acknowledged}");
    *acknowledged = there;
    client.watch(path, "t")?;
    client.next_event(LONG)?.expect("the first event");
    while !stop.load(Relaxed) {
        client.write(path, (*acknowledged + 1).to_string())?;
        *acknowledged += 1;
        tally.honest_writes.fetch_add(1, Relaxed);
        let event = client.next_event(LONG)?.expect("an event");
        assert_eq!((event.path.as_str(), event.token.as_str()), (path, "t"));
        // Had there been another one it would come before this reply.
        assert_eq!(client.read_string(path)?, acknowledged.to_string());
        assert!(client.next_event(Some(Duration::ZERO))?.is_none(), "an event too many");
        tally.honest_events.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// A domain with a home of its own.
fn introduce(host: &mut Client, domid: u16, guest: &Guest) -> xenstored::client::Result<()> {
    let home = format!("/local/domain/{domid}");
    host.mkdir(&home)?;
    host.set_perms(&home, &[format!("n{domid}").parse().unwrap()])?;
    host.introduce(domid, 1, 2, guest.fds())
}

/// A domain that writes anything anywhere into its ring page, takes it away, is introduced again and dies.
fn hostile(socket: &Path, domid: u16, stop: &AtomicBool, tally: &Tally) {
    const WORDS: [u64; 8] = [2048, 2052, 2056, 2060, 2064, 2068, 2072, 2076];
    let mut chance = Chance(u64::from(domid) * 0x9e37_79b9);
    while let Some(mut host) = connect(socket, stop) {
        let mut guest = Guest::new();
        while !stop.load(Relaxed) {
            if chance.below(3) == 0 {
                guest = Guest::new();
            }
            // Also if it died meanwhile: the next one is introduced by another connection.
            if introduce(&mut host, domid, &guest).is_err() {
                break;
            }
            tally.introductions.fetch_add(1, Relaxed);
            for _ in 0..chance.below(200) {
                tally.hostile_moves.fetch_add(1, Relaxed);
                match chance.below(6) {
                    0 => guest.set_word(WORDS[chance.below(8) as usize], chance.next() as u32),
                    1 => guest.set_word(2052, guest.word(2048).wrapping_add(chance.below(1026) as u32)),
                    2 => guest.set_word(2056, guest.word(2060)),
                    3 => {
                        let at = chance.below(4000);
                        let len = chance.below(96);
                        guest.poke(at, &chance.bytes(len));
                    }
                    4 => {
                        // A message that makes sense, mostly.
                        let kind = chance.below(30) as u32;
                        let tx = chance.below(3) as u32;
                        let node = format!("a/{}\0value", chance.below(50));
                        let payloads: [&[u8]; 6] =
                            [b"a/b\0", b"x\0tok\0", b"\0", b"T\0", b"a\0", node.as_bytes()];
                        guest.put_request(kind, tx, payloads[chance.below(6) as usize]);
                    }
                    _ => guest.set_word(2068, 1),
                }
                guest.kick();
            }
            if chance.below(4) == 0 {
                guest.say(b"s");
            }
            if chance.below(20) == 0 {
                guest.shorten_page();
                guest.kick();
                guest = Guest::new();
            }
        }
    }
}

/// Clients that send half messages and nonsense, do not read, and go.
fn rude(socket: &Path, sockets: usize, stop: &AtomicBool, tally: &Tally) {
    let mut chance = Chance(77);
    let mut streams: Vec<UnixStream> = Vec::new();
    while !stop.load(Relaxed) {
        if streams.len() < sockets {
            let Ok(stream) = UnixStream::connect(socket) else { continue };
            stream.set_nonblocking(true).unwrap();
            streams.push(stream);
        }
        let at = chance.below(streams.len() as u64) as usize;
        let len = chance.below(40);
        let (kind, payload) = (chance.below(28) as u32, chance.bytes(len));
        // CONTROL and those about domains are left to others.
        let kind = if [0, 8, 9, 18].contains(&kind) { 2 } else { kind };
        let claimed = if chance.below(50) == 0 { u32::MAX } else { len as u32 };
        let mut message: Vec<u8> = [kind, 0, 0, claimed].iter().flat_map(|word| word.to_le_bytes()).collect();
        message.extend_from_slice(if chance.below(2) == 0 { b"/rude\0" } else { &payload });
        message.truncate(chance.below(80) as usize);
        tally.rude_messages.fetch_add(1, Relaxed);
        if streams[at].write_all(&message).is_err() || chance.below(30) == 0 {
            streams.swap_remove(at);
        }
    }
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

/// What is left of those who are gone: lines of the report that should not be there, descriptors, processes.
fn left_over(daemon: &Daemon, host: &mut Client, before: usize) -> Vec<String> {
    let none = ["domains 0", "watches 0", "transactions 0"];
    let report = host.control(&["memreport"]).unwrap();
    let counted = |line: &&str| {
        ["domains", "watches", "transactions", "owner"].contains(&line.split(' ').next().unwrap())
    };
    let mut left: Vec<String> =
        report.lines().filter(counted).filter(|line| !none.contains(line)).map(str::to_owned).collect();
    if descriptors(daemon) > before + 4 {
        left.push(format!("{} descriptors, {before} at the beginning", descriptors(daemon)));
    }
    let pid = daemon.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    left.extend((!children.is_empty()).then(|| format!("child processes {children}")));
    left
}

#[test]
fn torture() {
    let seconds = std::env::var("XENSTORED_TORTURE").ok().map(|text| text.parse().unwrap());
    let (time, sockets) = seconds.map_or((3, 50), |seconds: u64| (seconds, 500));
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::with(&["--state-dir", folder.path().to_str().unwrap()]);
    let (socket, daemon) = (daemon.socket(), Mutex::new(daemon));
    let (stop, tally) = (AtomicBool::new(false), Tally::default());
    let before = descriptors(&daemon.lock().unwrap());
    let (mut kills, mut updates) = (0, 0);
    thread::scope(|scope| {
        let (socket, stop, tally) = (&socket, &stop, &tally);
        for n in 0..HONEST {
            scope.spawn(move || honest(socket, n, stop, tally));
        }
        for domid in 100..100 + HOSTILE_RINGS {
            scope.spawn(move || hostile(socket, domid, stop, tally));
        }
        scope.spawn(move || rude(socket, sockets, stop, tally));
        let end = Instant::now() + Duration::from_secs(time);
        let mut chance = Chance(5);
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(50 + chance.below(400)));
            let mut daemon = daemon.lock().unwrap();
            if chance.below(4) == 0 {
                daemon.kill();
                daemon.restart();
                kills += 1;
                continue;
            }
            let mut host = daemon.client();
            host.set_timeout(LONG);
            assert_eq!(host.control(&["live-update", "-f", BINARY]).unwrap(), "OK");
            let text = host.control(&["live-update", "-s", "-t", "1", "-F"]).unwrap();
            assert_eq!(text, "OK");
            updates += 1;
        }
        stop.store(true, Relaxed);
    });
    let daemon = daemon.into_inner().unwrap();
    let mut host = daemon.client();
    host.set_timeout(LONG);
    assert_eq!(host.control(&["check"]).unwrap(), "OK");
    println!("{tally:?} kills {kills} live updates {updates} RSS {} KiB", daemon.status("VmRSS:"));
    // All guests and clients are gone, and what they had with them. Of a domain that died while there was no daemon
    // nobody has told this one.
    for domid in 100..100 + HOSTILE_RINGS {
        let _ = host.release(domid);
    }
    for _ in 0..1000 {
        if left_over(&daemon, &mut host, before).is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(left_over(&daemon, &mut host, before), [""; 0]);
    assert!((100..100 + HOSTILE_RINGS).all(|domid| !host.is_introduced(domid).unwrap()));
    assert!(daemon.status("VmRSS:") < 64 * 1024);
    let files = std::fs::read_dir(folder.path()).unwrap();
    let kept: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    println!("{kept} bytes in the state folder");
    assert!(kept < 32 << 20, "{kept} bytes in the state folder");
    assert!(tally.honest_writes.load(Relaxed) > 0 && tally.introductions.load(Relaxed) > 0);
}
