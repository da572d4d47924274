//! What is measured, in order: a store that grows, then watchers, conflicts, big removals, guests, and its end.

use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use xenstored::wire::MsgType;

use crate::Run;
use crate::conn::Conn;
use crate::guest::Guest;
use crate::load::{Script, VALUE, play};

/// Nodes below `/local/domain` of one domain, with its home.
const NODES_PER_DOMAIN: u32 = 100;
/// The loads of every size of the store.
const LOADS: [(&str, usize, Script); 8] = [
    ("read 1c", 1, Script::Read),
    ("read 8c", 8, Script::Read),
    ("write 1c", 1, Script::Write),
    ("write 8c", 8, Script::Write),
    ("directory 8c", 8, Script::Directory),
    ("create/rm 8c", 8, Script::CreateRemove),
    ("txn(2r2w) 1c", 1, Script::Transaction),
    ("txn(2r2w) 8c", 8, Script::Transaction),
];
/// The domain whose ring is measured.
const RING_DOMID: u16 = 2000;

impl Run {
    /// Does something with every store in turn, and that in every round, unless it is not wanted.
    fn phase(&mut self, name: &str, mut body: impl FnMut(&mut Self, usize)) {
        if !name.contains(&self.only) {
            return;
        }
        for round in 0..self.rounds {
            eprintln!("{name}, round {}", round + 1);
            self.once(&mut body);
        }
    }

    /// Something that has to happen once, for every store.
    fn once(&mut self, mut body: impl FnMut(&mut Self, usize)) {
        let stores: Vec<usize> = (0..self.peers.len()).filter(|&peer| !self.peers[peer].floor).collect();
        stores.into_iter().for_each(|peer| body(self, peer));
    }

    /// A load that needs no more than answers.
    fn load(&mut self, name: &str, clients: usize, script: Script, homes: u32) {
        if !name.contains(&self.only) {
            return;
        }
        for round in 0..self.rounds {
            eprintln!("{name}, round {}", round + 1);
            (0..self.peers.len()).for_each(|peer| play(self, peer, name, clients, script, homes));
        }
    }

    fn memory(&mut self, peer: usize, name: &str, key: &str) {
        let value = self.peers[peer].memory(key);
        self.table.add(peer, name, "KiB", value);
    }

    fn took(&mut self, peer: usize, name: &str, unit: &'static str, start: Instant, times: f64) {
        let factor = if unit == "ms" { 1e3 } else { 1e6 };
        self.table.add(peer, name, unit, start.elapsed().as_secs_f64() * factor / times);
    }
}

pub fn all(run: &mut Run, most: u32, domains: u16) {
    run.once(|run, peer| {
        let mut conn = run.peers[peer].conn();
        conn.ask(MsgType::WRITE, b"/bench/fan\x000");
        conn.ask(MsgType::MKDIR, b"/bench/backend\0");
        run.memory(peer, "RSS at start", "VmRSS");
    });
    let mut before = 0;
    for nodes in [1000, 10_000, 100_000, 1_000_000].into_iter().filter(|nodes| *nodes <= most) {
        let homes = nodes / NODES_PER_DOMAIN;
        let size = format!("{}k", nodes / 1000);
        run.once(|run, peer| populate(run, peer, before + 1, homes, &size));
        before = homes;
        if nodes == 10_000 {
            continue;
        }
        for (name, clients, script) in LOADS {
            run.load(&format!("{name} @{size}"), clients, script, homes);
        }
    }
    run.load("read 500c", 500, Script::Read, before);
    run.phase("connect+read x500", connect);
    run.phase("watch fan-out 1", |run, peer| fan_out(run, peer, 1, 500));
    run.phase("watch fan-out 1000", |run, peer| fan_out(run, peer, 1000, 30));
    run.phase("RMW conflict 8c", |run, peer| play(run, peer, "RMW conflict 8c", 8, Script::Counter, before));
    run.phase("create in shared parent 8c", |run, peer| {
        play(run, peer, "create in shared parent 8c", 8, Script::Child, before);
        let mut conn = run.peers[peer].conn();
        conn.ask(MsgType::RM, b"/bench/backend\0");
        conn.ask(MsgType::MKDIR, b"/bench/backend\0");
    });
    run.phase("RM of 10100 nodes", removal);
    run.phase("directory of 5000", big_directory);
    run.phase("ring", ring);
    if "domains".contains(&run.only) {
        introduced(run, before, domains);
    }
    run.once(|run, peer| {
        let mut conn = run.peers[peer].conn();
        conn.ask(MsgType::RM, b"/bench\0");
        let start = Instant::now();
        conn.ask(MsgType::RM, b"/local/domain\0");
        run.took(peer, "RM of what is left", "ms", start, 1.0);
        // Work that was put off is done when nothing else is.
        std::thread::sleep(std::time::Duration::from_secs(2));
        run.memory(peer, "RSS at end, store emptied", "VmRSS");
        run.memory(peer, "peak RSS", "VmHWM");
    });
}

/// Homes of domains that own them, each with nine folders of ten values.
fn populate(run: &mut Run, peer: usize, first: u32, last: u32, size: &str) {
    eprintln!("store of {size} nodes");
    let start = Instant::now();
    let homes = (first..=last).flat_map(|domid| {
        let home = format!("/local/domain/{domid}");
        let own = [
            (MsgType::MKDIR, format!("{home}\0").into_bytes()),
            (MsgType::SET_PERMS, format!("{home}\0n{domid}\0").into_bytes()),
        ];
        let below = (0..9).flat_map(move |folder| {
            let folder = format!("{home}/d{folder}");
            let values = (0..10).map({
                let folder = folder.clone();
                move |key| (MsgType::WRITE, [format!("{folder}/k{key}\0").as_bytes(), VALUE].concat())
            });
            std::iter::once((MsgType::MKDIR, format!("{folder}\0").into_bytes())).chain(values)
        });
        own.into_iter().chain(below)
    });
    run.peers[peer].conn().pipeline(homes);
    let nodes = f64::from((last - first + 1) * NODES_PER_DOMAIN);
    run.table.add(peer, &format!("populate to {size}"), "nodes/s", nodes / start.elapsed().as_secs_f64());
    run.memory(peer, &format!("RSS at {size} nodes"), "VmRSS");
}

fn connect(run: &mut Run, peer: usize) {
    let start = Instant::now();
    let conns: Vec<Conn> = (0..500)
        .map(|_| {
            let mut conn = run.peers[peer].conn();
            conn.ask(MsgType::READ, b"/bench/fan\0");
            conn
        })
        .collect();
    run.took(peer, "connect+read x500", "us", start, conns.len() as f64);
}

/// One write, many watchers: when the first has heard of it, and when all have.
fn fan_out(run: &mut Run, peer: usize, watchers: usize, times: usize) {
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    let mut writer = run.peers[peer].conn();
    writer.ask(MsgType::WRITE, b"/bench/fan\x000");
    let start = Instant::now();
    let mut conns: Vec<Conn> = (0..watchers as u64)
        .map(|id| {
            let mut conn = run.peers[peer].conn();
            conn.ask(MsgType::WATCH, b"/bench/fan\0tok\0");
            while conn.message().is_none() {
                conn.fill();
            }
            epoll.add(&conn, EpollEvent::new(EpollFlags::EPOLLIN, id)).unwrap();
            conn
        })
        .collect();
    run.took(peer, &format!("connect+watch x{watchers}"), "ms", start, 1.0);
    let cpu = run.peers[peer].cpu();
    let (mut first, mut all) = (Vec::new(), Vec::new());
    let mut events = [EpollEvent::empty(); 256];
    for _ in 0..times {
        let (start, mut heard) = (Instant::now(), 0);
        writer.send(MsgType::WRITE, 0, b"/bench/fan\0x");
        while heard < watchers {
            let ready = epoll.wait(&mut events, EpollTimeout::from(20_000u16)).unwrap();
            assert!(ready > 0, "{} events are lost", watchers - heard);
            for event in &events[..ready] {
                let conn = &mut conns[usize::try_from(event.data()).unwrap()];
                conn.fill();
                while conn.message().is_some() {
                    if heard == 0 {
                        first.push(start.elapsed().as_secs_f64() * 1e6);
                    }
                    heard += 1;
                }
            }
        }
        all.push(start.elapsed().as_secs_f64() * 1e6);
        writer.reply();
    }
    let used = run.peers[peer].cpu() - cpu;
    let name = format!("watch fan-out {watchers}");
    [&mut first, &mut all].iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    run.table.add(peer, &format!("{name}, first p50"), "us", first[times / 2]);
    run.table.add(peer, &format!("{name}, all p50"), "us", all[times / 2]);
    run.table.add(peer, &format!("{name}, all max"), "us", all[times - 1]);
    run.table.add(peer, &format!("{name}, cpu/event"), "us", used / (times * watchers) as f64);
    if watchers >= 1000 {
        run.memory(peer, &format!("RSS with {watchers} watchers"), "VmRSS");
    }
}

/// Removes a large tree while somebody else reads.
fn removal(run: &mut Run, peer: usize) {
    let (mut writer, mut reader) = (run.peers[peer].conn(), run.peers[peer].conn());
    let nodes = (0..100)
        .flat_map(|n| (0..100).map(move |k| (MsgType::WRITE, format!("/bench/big/{n}/{k}\0x").into_bytes())));
    writer.pipeline(nodes);
    let start = Instant::now();
    let mut longest: f64 = 0.0;
    writer.send(MsgType::RM, 0, b"/bench/big\0");
    let mut reads_after = 0;
    // The work may be put off until after the reply: it must not show there either.
    while reads_after < 200 {
        let asked = Instant::now();
        reader.ask(MsgType::READ, b"/bench/fan\0");
        longest = longest.max(asked.elapsed().as_secs_f64() * 1e3);
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&writer), PollFlags::POLLIN)];
        if reads_after > 0 || poll(&mut fds, PollTimeout::ZERO).unwrap() > 0 {
            if reads_after == 0 {
                writer.reply();
                run.took(peer, "RM of 10100 nodes", "ms", start, 1.0);
            }
            reads_after += 1;
        }
    }
    run.table.add(peer, "RM of 10100 nodes, longest other read", "ms", longest);
}

fn big_directory(run: &mut Run, peer: usize) {
    let mut conn = run.peers[peer].conn();
    conn.pipeline((0..5000).map(|n| (MsgType::WRITE, format!("/bench/wide/node-{n}\0x").into_bytes())));
    let mut client = run.peers[peer].client();
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(client.directory("/bench/wide").unwrap().len(), 5000);
    }
    run.took(peer, "directory of 5000, in parts", "us", start, 20.0);
    let start = Instant::now();
    for n in 0..200 {
        conn.ask(MsgType::WRITE, format!("/bench/wide/new-{n}\0x").as_bytes());
        conn.ask(MsgType::RM, format!("/bench/wide/new-{n}\0").as_bytes());
    }
    run.took(peer, "create+rm beside 5000", "us", start, 200.0);
}

/// One guest, one request at a time through its ring.
fn ring(run: &mut Run, peer: usize) {
    let daemon = run.peers[peer].clone();
    let mut host = daemon.conn();
    host.ask(MsgType::MKDIR, format!("/local/domain/{RING_DOMID}\0").as_bytes());
    let guest = Guest::introduce(&daemon, &mut host, RING_DOMID);
    host.ask(MsgType::SET_PERMS, format!("/local/domain/{RING_DOMID}\0n{RING_DOMID}\0").as_bytes());
    guest.ask(MsgType::WRITE, b"name\0test");
    let (cpu, start, mut count) = (daemon.cpu(), Instant::now(), 0u32);
    while start.elapsed() < run.time {
        guest.ask(MsgType::READ, b"name\0");
        count += 1;
    }
    let (count, cpu) = (f64::from(count), daemon.cpu() - cpu);
    run.table.add(peer, "ring read", "ops/s", count / start.elapsed().as_secs_f64());
    run.table.add(peer, "ring read cpu/op", "us", cpu / count);
    guest.release(&mut host);
}

/// Idle domains must cost nobody anything, and go quickly.
fn introduced(run: &mut Run, homes: u32, count: u16) {
    let mut guests: Vec<Vec<Guest>> = Vec::new();
    run.once(|run, peer| {
        eprintln!("introducing {count} domains");
        let daemon = run.peers[peer].clone();
        let mut host = daemon.conn();
        let start = Instant::now();
        guests.push((1..=count).map(|domid| Guest::introduce(&daemon, &mut host, domid)).collect());
        run.took(peer, &format!("INTRODUCE x{count}"), "us", start, count.into());
        run.memory(peer, &format!("RSS with {count} domains"), "VmRSS");
    });
    for (name, script) in [("read 8c", Script::Read), ("write 8c", Script::Write)] {
        let name = format!("{name} +{count} domains");
        for round in 0..run.rounds {
            eprintln!("{name}, round {}", round + 1);
            run.once(|run, peer| play(run, peer, &name, 8, script, homes));
        }
    }
    let mut guests = guests.into_iter();
    run.once(|run, peer| {
        let daemon = run.peers[peer].clone();
        let mut host = daemon.conn();
        let (cpu, start) = (daemon.cpu(), Instant::now());
        guests.next().into_iter().flatten().for_each(|guest| guest.release(&mut host));
        run.took(peer, &format!("RELEASE x{count}"), "us", start, count.into());
        let used = (daemon.cpu() - cpu) / f64::from(count);
        run.table.add(peer, &format!("RELEASE x{count} cpu"), "us", used);
    });
}
