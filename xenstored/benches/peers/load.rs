//! Closed loops: scripts of requests, and the engine that plays them on many connections.

use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use xenstored::wire::MsgType;

use crate::Run;
use crate::conn::{Conn, Message};

/// What a client does over and over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Script {
    Read,
    Write,
    Directory,
    /// Creates and removes a node; each is an operation.
    CreateRemove,
    /// Two reads and two writes of any nodes in one transaction.
    Transaction,
    /// Adds 1 to a node that all share, in a transaction.
    Counter,
    /// Creates a child of a node that all share, in a transaction.
    Child,
}

/// The value of every node that has one.
pub const VALUE: &[u8] = b"0123456789abcdef0123456789abcdef";

/// One client of a load.
struct Player {
    conn: Conn,
    script: Script,
    id: usize,
    domains: u32,
    random: u64,
    step: u8,
    tx: u32,
    nodes: [String; 2],
    operations: u64,
    conflicts: u64,
    errors: u64,
    started: Instant,
}

impl Player {
    fn random(&mut self, end: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        u32::try_from((self.random >> 16) % u64::from(end)).unwrap()
    }

    fn leaf(&mut self) -> String {
        let (domain, folder, node) = (self.random(self.domains) + 1, self.random(9), self.random(10));
        format!("/local/domain/{domain}/d{folder}/k{node}")
    }

    fn send(&mut self, kind: MsgType, parts: &[&[u8]]) {
        self.conn.send(kind, self.tx, &parts.concat());
    }

    /// Takes the reply to the last request, sends the next one. True if an operation is complete.
    fn next(&mut self, reply: Option<&Message>) -> bool {
        let done = match self.script {
            Script::Read | Script::Write | Script::Directory => self.plain(reply),
            Script::CreateRemove => {
                let id = self.id;
                let domain = u32::try_from(id).unwrap() % self.domains + 1;
                let node = format!("/local/domain/{domain}/d{}/tmp{id}\0", id % 9);
                self.step = 1 - self.step;
                if self.step == 1 {
                    self.send(MsgType::WRITE, &[node.as_bytes(), b"01234567"]);
                } else {
                    self.send(MsgType::RM, &[node.as_bytes()]);
                }
                reply.is_some()
            }
            Script::Transaction | Script::Counter | Script::Child => self.transaction(reply),
        };
        self.operations += u64::from(done);
        done
    }

    fn plain(&mut self, reply: Option<&Message>) -> bool {
        let mut node = self.leaf();
        match self.script {
            Script::Write => {
                node.push('\0');
                self.send(MsgType::WRITE, &[node.as_bytes(), VALUE]);
            }
            Script::Directory => {
                let folder = node.rsplit_once('/').map_or("", |(folder, _)| folder);
                self.send(MsgType::DIRECTORY, &[folder.as_bytes(), b"\0"]);
            }
            _ => self.send(MsgType::READ, &[node.as_bytes(), b"\0"]),
        }
        reply.is_some()
    }

    fn transaction(&mut self, reply: Option<&Message>) -> bool {
        let text = |reply: Option<&Message>| {
            let payload = reply.map_or(&[][..], |reply| &reply.payload);
            String::from_utf8_lossy(payload.strip_suffix(b"\0").unwrap_or(payload)).into_owned()
        };
        let last = if self.script == Script::Transaction { 5 } else { 3 };
        let mut done = false;
        match self.step {
            0 => {
                match reply.filter(|reply| reply.kind == MsgType::ERROR) {
                    Some(error) if error.payload.starts_with(b"EAGAIN") => self.conflicts += 1,
                    Some(_) => self.errors += 1,
                    None => {}
                }
                // A transaction of disjoint nodes counts either way; one of shared nodes when it commits.
                done = reply
                    .is_some_and(|reply| self.script == Script::Transaction || reply.kind != MsgType::ERROR);
                self.nodes = [self.leaf(), self.leaf()];
                self.tx = 0;
                self.send(MsgType::TRANSACTION_START, &[b"\0"]);
            }
            step if step == last => self.send(MsgType::TRANSACTION_END, &[b"T\0"]),
            step => {
                if step == 1 {
                    self.tx = text(reply).parse().unwrap();
                }
                let counted = self.operations;
                match (self.script, step) {
                    (Script::Transaction, 1 | 2) => {
                        let node = self.nodes[usize::from(step) - 1].clone();
                        self.send(MsgType::READ, &[node.as_bytes(), b"\0"]);
                    }
                    (Script::Transaction, _) => {
                        let node = self.nodes[usize::from(step) - 3].clone();
                        self.send(MsgType::WRITE, &[node.as_bytes(), b"\0", VALUE]);
                    }
                    (Script::Counter, 1) => self.send(MsgType::READ, &[b"/bench/counter\0"]),
                    (Script::Counter, _) => {
                        let next = text(reply).parse::<u64>().unwrap() + 1;
                        self.send(MsgType::WRITE, &[b"/bench/counter\0", next.to_string().as_bytes()]);
                    }
                    (_, step) => {
                        let name = if step == 1 { "state" } else { "mac" };
                        let node = format!("/bench/backend/{}-{counted}/{name}\0", self.id);
                        self.send(MsgType::WRITE, &[node.as_bytes(), b"1"]);
                    }
                }
            }
        }
        self.step = if self.step == last { 0 } else { self.step + 1 };
        done
    }
}

/// Plays a script on `clients` connections for the run's time and adds the figures.
pub fn play(run: &mut Run, peer: usize, name: &str, clients: usize, script: Script, domains: u32) {
    let daemon = run.peers[peer].clone();
    if script == Script::Counter {
        daemon.conn().ask(MsgType::WRITE, b"/bench/counter\x000");
    }
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    let mut players: Vec<Player> = (0..clients)
        .map(|id| {
            let conn = daemon.conn();
            epoll.add(&conn, EpollEvent::new(EpollFlags::EPOLLIN, id as u64)).unwrap();
            let (random, nodes, started) =
                (0x9e37_79b9 + id as u64, [String::new(), String::new()], Instant::now());
            let (step, tx, operations, conflicts, errors) = (0, 0, 0, 0, 0);
            Player {
                conn,
                script,
                id,
                domains,
                random,
                step,
                tx,
                nodes,
                operations,
                conflicts,
                errors,
                started,
            }
        })
        .collect();
    let (cpu, start) = (daemon.cpu(), Instant::now());
    let mut latencies = Vec::new();
    for player in &mut players {
        player.started = Instant::now();
        player.next(None);
    }
    let mut events = [EpollEvent::empty(); 64];
    while start.elapsed() < run.time {
        let ready = epoll.wait(&mut events, EpollTimeout::from(1000u16)).unwrap();
        for event in &events[..ready] {
            let player = &mut players[usize::try_from(event.data()).unwrap()];
            player.conn.fill();
            while let Some(message) = player.conn.message() {
                let strict =
                    matches!(script, Script::Read | Script::Write | Script::Directory | Script::CreateRemove);
                assert!(
                    !strict || message.kind != MsgType::ERROR,
                    "{name}: {}",
                    String::from_utf8_lossy(&message.payload)
                );
                if player.next(Some(&message)) {
                    let now = Instant::now();
                    latencies.push((now - player.started).as_secs_f64() * 1e6);
                    player.started = now;
                }
            }
        }
    }
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), daemon.cpu() - cpu);
    let operations: u64 = players.iter().map(|player| player.operations).sum();
    let count = operations.max(1) as f64;
    let table = &mut run.table;
    table.add(peer, name, "ops/s", operations as f64 / elapsed);
    table.add(peer, &format!("{name} cpu/op"), "us", cpu / count);
    latencies.sort_by(f64::total_cmp);
    if let Some(p99) = latencies.get(latencies.len() * 99 / 100) {
        table.add(peer, &format!("{name} p99"), "us", *p99);
    }
    if matches!(script, Script::Transaction | Script::Counter | Script::Child) {
        let sum = |of: fn(&Player) -> u64| players.iter().map(of).sum::<u64>() as f64;
        table.add(peer, &format!("{name} EAGAIN/commit"), "", sum(|player| player.conflicts) / count);
        table.add(peer, &format!("{name} other errors"), "", sum(|player| player.errors));
        let (least, most) =
            (players.iter().map(|p| p.operations).min(), players.iter().map(|p| p.operations).max());
        let fairness = least.unwrap_or(0) as f64 / most.unwrap_or(0).max(1) as f64;
        table.add(peer, &format!("{name} slowest/fastest"), "", fairness);
    }
    // A commit may still be on its way.
    let mut committed = operations;
    for player in &mut players {
        let reply = player.conn.reply();
        committed += u64::from(player.step == 0 && reply.kind != MsgType::ERROR);
    }
    drop(players);
    if script == Script::Counter {
        let value = daemon.conn().ask(MsgType::READ, b"/bench/counter\0");
        let value: u64 = String::from_utf8_lossy(&value).parse().unwrap();
        run.table.add(peer, &format!("{name} lost updates"), "", committed as f64 - value as f64);
    }
}
