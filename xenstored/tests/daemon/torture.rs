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

use xenstored::client::{Batch, Client};

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
    honest_removals: AtomicU64,
    honest_guest: AtomicU64,
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

/// Makes a subtree and removes it: both are told once, on top and on what goes with it.
fn honest_remover(socket: &Path, n: usize, stop: &AtomicBool, tally: &Tally) {
    while let Some(mut client) = connect(socket, stop) {
        let _ = make_and_remove(&mut client, &format!("/gone/{n}"), stop, tally);
    }
}

fn make_and_remove(
    client: &mut Client,
    path: &str,
    stop: &AtomicBool,
    tally: &Tally,
) -> xenstored::client::Result<()> {
    let deep = format!("{path}/a/b");
    client.rm(path).or_else(|error| error.errno().map(drop).ok_or(error))?;
    for (path, token) in [(path, "top"), (&deep, "low")] {
        client.watch(path, token)?;
        client.next_event(LONG)?.expect("the first event");
    }
    let expect = |client: &mut Client, paths: [&str; 2]| {
        let mut told = Vec::new();
        for _ in paths {
            let event = client.next_event(LONG)?.expect("an event");
            told.push((event.token, event.path));
        }
        told.sort();
        assert_eq!(told, [("low", paths[0]), ("top", paths[1])].map(|(a, b)| (a.to_owned(), b.to_owned())));
        let there = client.read_opt(&deep)?.is_some();
        assert!(client.next_event(Some(Duration::ZERO))?.is_none(), "an event too many");
        Ok::<_, xenstored::client::Error>(there)
    };
    for round in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        client.write(&deep, "1")?;
        assert!(expect(client, [&deep, &deep])?);
        if round % 20 == 0 {
            // More than a request does away with by itself.
            let mut batch = Batch::default();
            (0..500).for_each(|n| batch.write(&format!("{path}/many/{n}"), "1"));
            client.run(&batch)?;
            for _ in 0..500 {
                assert_eq!(client.next_event(LONG)?.expect("an event").token, "top");
            }
        }
        client.rm(path)?;
        assert!(!expect(client, [&deep, path])?);
        tally.honest_removals.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// How often two nodes were counted up together, and how often nobody said whether they were.
#[derive(Debug, Default)]
struct Pair {
    done: AtomicU64,
    unknown: AtomicU64,
}

/// Two nodes that are changed in transactions only, by several clients at once.
fn honest_transactor(socket: &Path, pair: &Pair, stop: &AtomicBool) {
    while let Some(mut client) = connect(socket, stop) {
        while !stop.load(Relaxed) {
            let counted = client.transaction(|tx| {
                let [one, two] = [tx.read_opt("/pair/one")?, tx.read_opt("/pair/two")?]
                    .map(|value| value.map_or(0, |value| value.parse::<u64>().unwrap()));
                tx.write("/pair/one", (one + 1).to_string())?;
                tx.write("/pair/two", (two + 1).to_string())?;
                Ok::<_, xenstored::client::Error>((one, two))
            });
            let counter = if counted.is_ok() { &pair.done } else { &pair.unknown };
            counter.fetch_add(1, Relaxed);
            let Ok((one, two)) = counted else { break };
            assert_eq!(one, two, "half a transaction");
        }
    }
}

const HONEST_DOMAIN: u16 = 50;

/// A domain that counts up in its ring, and is told of what the host does. It begins anew when the store was killed.
fn honest_guest(socket: &Path, stop: &AtomicBool, tally: &Tally) {
    let (mut guest, mut acknowledged) = (Guest::new(), 0);
    while let Some(mut host) = connect(socket, stop) {
        let _ = count_in_ring(&mut host, &mut guest, &mut acknowledged, stop, tally);
    }
}

/// The next message of the ring, unless the host's connection shows that the store is gone.
fn next(host: &mut Client, guest: &mut Guest) -> xenstored::client::Result<(u32, Vec<u8>)> {
    loop {
        if let Some((kind, _, payload)) = guest.try_message() {
            return Ok((kind, payload));
        }
        if !guest.wait_for(200) {
            host.read("/tool")?;
        }
    }
}

fn count_in_ring(
    host: &mut Client,
    guest: &mut Guest,
    acknowledged: &mut u64,
    stop: &AtomicBool,
    tally: &Tally,
) -> xenstored::client::Result<()> {
    const READ: u32 = 2;
    const WATCH: u32 = 4;
    const WRITE: u32 = 11;
    const RM: u32 = 13;
    const EVENT: u32 = 15;
    introduce(host, HONEST_DOMAIN, guest)?;
    guest.set_word(2068, 1);
    guest.kick();
    while guest.connection() != 0 {
        if !guest.wait_for(200) {
            host.read("/tool")?;
        }
    }
    guest.forget();
    let home = format!("/local/domain/{HONEST_DOMAIN}");
    let there = host.read_opt(&format!("{home}/mine"))?.map_or(0, |value| value.parse().unwrap());
    assert!(there == *acknowledged || there == *acknowledged + 1, "{there}, not {acknowledged}");
    *acknowledged = there;
    let ask = |host: &mut Client, guest: &mut Guest, kind, payload: &[u8], want: &[u8]| {
        guest.put_request(kind, 0, payload);
        guest.kick();
        assert_eq!(next(host, guest)?, (kind, want.to_vec()));
        Ok::<_, xenstored::client::Error>(())
    };
    let told = |host: &mut Client, guest: &mut Guest| {
        assert_eq!(next(host, guest)?, (EVENT, b"data/x\0t\0".to_vec()));
        Ok::<_, xenstored::client::Error>(())
    };
    ask(host, guest, WATCH, b"data/x\0t\0", b"OK\0")?;
    told(host, guest)?;
    while !stop.load(Relaxed) {
        // An event too many would come before one of these replies.
        let value = (*acknowledged + 1).to_string();
        host.write(&format!("{home}/data/x"), &value)?;
        told(host, guest)?;
        ask(host, guest, READ, b"data/x\0", value.as_bytes())?;
        ask(host, guest, WRITE, format!("mine\0{value}").as_bytes(), b"OK\0")?;
        *acknowledged += 1;
        assert_eq!(host.read_string(&format!("{home}/mine"))?, value);
        host.rm(&format!("{home}/data"))?;
        told(host, guest)?;
        ask(host, guest, RM, b"data\0", b"OK\0")?;
        tally.honest_guest.fetch_add(1, Relaxed);
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
    let (stop, tally, pair) = (AtomicBool::new(false), Tally::default(), Pair::default());
    let before = descriptors(&daemon.lock().unwrap());
    let (mut kills, mut updates) = (0, 0);
    thread::scope(|scope| {
        let (socket, stop, tally, pair) = (&socket, &stop, &tally, &pair);
        for n in 0..HONEST {
            scope.spawn(move || honest(socket, n, stop, tally));
        }
        for n in 0..2 {
            scope.spawn(move || honest_remover(socket, n, stop, tally));
            scope.spawn(move || honest_transactor(socket, pair, stop));
        }
        scope.spawn(move || honest_guest(socket, stop, tally));
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
    let (done, unknown) = (pair.done.load(Relaxed), pair.unknown.load(Relaxed));
    let counted = host.read_opt("/pair/two").unwrap().map_or(0, |value| value.parse().unwrap());
    assert!((done..=done + unknown).contains(&counted), "{counted} transactions, {pair:?}");
    println!("{tally:?} {pair:?} kills {kills} live updates {updates} RSS {} KiB", daemon.status("VmRSS:"));
    // All guests and clients are gone, and what they had with them. Of a domain that died while there was no daemon
    // nobody has told this one.
    for domid in (100..100 + HOSTILE_RINGS).chain([HONEST_DOMAIN]) {
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
    let all =
        [&tally.honest_writes, &tally.honest_removals, &tally.honest_guest, &pair.done, &tally.introductions];
    assert!(all.iter().all(|count| count.load(Relaxed) > 0), "{tally:?} {pair:?}");
}
