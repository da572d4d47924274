//! The whole store: requests of several clients and domains, good ones, bad ones and nonsense.
//!
//! Promises checked: one reply to every request, with its ids; no message is too long; nobody hears anything who is
//! not connected; the accounts equal a recount; what all have left the store can forget.

use std::collections::BTreeMap;

use xenstored::out::{Action, Out};
use xenstored::store::{ConnId, Store};
use xenstored::wire::{Header, MsgType, split};

use super::input::Input;

const NAMES: [&str; 8] = ["a", "b", "c", "d", "device", "data", "x-1", "@"];
const TOPS: [&str; 10] = [
    "",
    "/",
    "/a",
    "/local/domain/0",
    "/local/domain/1",
    "/local/domain/2",
    "/local/domain/3",
    "/tool",
    "@introduceDomain",
    "@releaseDomain",
];
const DOMIDS: [&str; 10] = ["1", "2", "3", "1", "2", "0", "4", "32752", "65535", "x"];
const LETTERS: [&str; 5] = ["n", "r", "w", "b", "q"];
/// The last request of the protocol is 26.
const KINDS: u32 = 28;

/// A store and everybody who talks to it.
pub struct World {
    /// The store.
    pub store: Store,
    conns: Vec<ConnId>,
    domains: BTreeMap<u16, ConnId>,
    transactions: Vec<u32>,
    out: Out,
    requests: u64,
}

/// Plays the bytes.
pub fn run(data: &[u8]) -> u64 {
    let mut world = World::with_guests();
    world.play(Input(data));
    world.finish()
}

impl World {
    /// Two clients of a store.
    pub fn on(mut store: Store) -> Self {
        let conns = vec![store.connect(), store.connect()];
        let (domains, transactions, out) = (BTreeMap::new(), Vec::new(), Out::default());
        Self { store, conns, domains, transactions, out, requests: 0 }
    }

    /// With guests from the beginning: most bytes are about them.
    pub fn with_guests() -> Self {
        let mut world = Self::on(Store::new());
        for domid in ["1", "2"] {
            let (host, home) = (world.conns[0], format!("/local/domain/{domid}\0"));
            world.ask(host, MsgType::INTRODUCE, 0, format!("{domid}\x001\x001\0").as_bytes());
            world.ask(host, MsgType::MKDIR, 0, home.as_bytes());
            world.ask(host, MsgType::SET_PERMS, 0, format!("{home}n{domid}\0").as_bytes());
        }
        world
    }

    /// Everything the bytes say.
    pub fn play(&mut self, mut input: Input<'_>) {
        while !input.is_empty() {
            self.step(&mut input);
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() {
            0..=1 => {
                self.store.check().expect("the books are right");
            }
            2..=4 => {
                self.store.tidy(input.below(64));
            }
            5..=6 if self.conns.len() < 4 => {
                let conn = self.store.connect();
                self.conns.push(conn);
            }
            7 if self.conns.len() > 1 => {
                let conn = self.conns.remove(input.below(self.conns.len()));
                self.store.disconnect(conn);
            }
            8..=9 => {
                let conn = self.anybody(input);
                self.store.reset(conn);
            }
            10 => self.store.domain_shut_down(u16::from(input.byte() % 5), &mut self.out),
            11 => {
                let domid = u16::from(input.byte() % 5);
                self.store.release(domid, &mut self.out);
            }
            _ => {
                let conn = self.anybody(input);
                let tx = match input.below(4) {
                    0..=1 => 0,
                    2 => self.transactions.last().copied().unwrap_or(0),
                    _ => input.pick(&[&self.transactions[..], &[0, 1, u32::MAX]].concat()),
                };
                let (kind, payload) = request(input);
                self.ask(conn, kind, tx, &payload);
            }
        }
        self.deliver(None);
    }

    /// Clients and guests, the latter more often.
    fn anybody(&self, input: &mut Input<'_>) -> ConnId {
        let guests: Vec<ConnId> = self.domains.values().copied().collect();
        if guests.is_empty() || input.once_in(3) { input.pick(&self.conns) } else { input.pick(&guests) }
    }

    /// One request and its reply.
    pub fn ask(&mut self, conn: ConnId, kind: MsgType, tx_id: u32, payload: &[u8]) -> Vec<u8> {
        let payload = &payload[..payload.len().min(4096)];
        self.requests += 1;
        let req_id = u32::try_from(self.requests & 0xffff_ffff).unwrap_or(0);
        let header = Header { kind, req_id, tx_id, len: u32::try_from(payload.len()).unwrap_or(0) };
        self.store.handle(conn, header, payload, !payload.len().is_multiple_of(7), &mut self.out);
        let bytes: Vec<u8> = self
            .out
            .messages()
            .flat_map(|(to, bytes, event)| if to == conn && !event { bytes } else { &[] })
            .copied()
            .collect();
        self.deliver(Some((conn, header)));
        bytes
    }

    /// Looks at what the store says, and does what a server does.
    fn deliver(&mut self, asked: Option<(ConnId, Header)>) {
        let mut replies = 0;
        let mut dropped = Vec::new();
        for action in &self.out.actions {
            match *action {
                Action::Serve { conn, domid, .. } => {
                    self.domains.insert(domid, conn);
                }
                Action::Drop(conn) => {
                    self.domains.retain(|_, known| *known != conn);
                    dropped.push(conn);
                }
                Action::Wake(_) => {}
            }
        }
        for (conn, bytes, event) in self.out.messages() {
            let known = self.conns.contains(&conn) || self.domains.values().any(|domain| *domain == conn);
            assert!(known || dropped.contains(&conn), "a message for nobody");
            let (header, payload) = split(bytes).expect("not too long").expect("a whole message");
            if event {
                assert_eq!((header.kind, header.req_id, header.tx_id), (MsgType::WATCH_EVENT, 0, 0));
                assert_eq!(payload.iter().filter(|byte| **byte == 0).count(), 2);
                continue;
            }
            let (asker, request) = asked.expect("a reply to no request");
            assert_eq!((conn, header.req_id, header.tx_id), (asker, request.req_id, request.tx_id));
            assert!(header.kind == request.kind || header.kind == MsgType::ERROR);
            if header.kind == MsgType::TRANSACTION_START {
                let id = std::str::from_utf8(&payload[..payload.len() - 1]).expect("a number");
                self.transactions.push(id.parse().expect("a number"));
            }
            replies += 1;
        }
        assert_eq!(replies, u32::from(asked.is_some()), "{asked:?}");
        self.transactions.drain(..self.transactions.len().saturating_sub(8));
        self.out.clear();
    }

    /// Everybody leaves, and the store is as empty as at the beginning.
    pub fn finish(mut self) -> u64 {
        self.store.check().expect("the books are right");
        for domid in self.domains.keys().copied().collect::<Vec<_>>() {
            self.store.release(domid, &mut self.out);
        }
        self.deliver(None);
        for conn in std::mem::take(&mut self.conns) {
            self.store.disconnect(conn);
        }
        let conn = self.store.connect();
        self.conns.push(conn);
        let names = self.ask(conn, MsgType::DIRECTORY, 0, b"/\0");
        for name in names[16..].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            self.ask(conn, MsgType::RM, 0, &[b"/", name, b"\0"].concat());
        }
        assert_eq!(self.ask(conn, MsgType::DIRECTORY, 0, b"/\0").len(), 16, "nodes are left");
        self.store.check().expect("the books are right at the end");
        self.requests
    }
}

/// A request that makes sense, more or less; now and then none at all.
fn request(input: &mut Input<'_>) -> (MsgType, Vec<u8>) {
    let kind = MsgType(u32::from(input.byte()) % KINDS);
    if input.once_in(24) {
        return (MsgType(input.word()), input.bytes(64).to_vec());
    }
    let mut fields: Vec<Vec<u8>> = Vec::new();
    match kind {
        MsgType::TRANSACTION_START | MsgType::RESET_WATCHES => fields.push(Vec::new()),
        MsgType::TRANSACTION_END => fields.push(input.pick(&["T", "T", "T", "F", "x"]).into()),
        MsgType::CONTROL => {
            fields.push(input.pick(&["check", "help", "memreport", "print", "quota", "nope"]).into())
        }
        MsgType::INTRODUCE => {
            fields.extend([input.pick(&DOMIDS).into(), b"1".to_vec(), input.pick(&["1", "0"]).into()])
        }
        MsgType::RELEASE | MsgType::RESUME | MsgType::IS_DOMAIN_INTRODUCED | MsgType::GET_DOMAIN_PATH => {
            fields.push(input.pick(&DOMIDS).into());
        }
        MsgType::SET_TARGET | MsgType::SET_FEATURE => {
            fields.extend([input.pick(&DOMIDS).into(), input.pick(&DOMIDS).into()]);
        }
        MsgType::GET_FEATURE => fields.push(input.pick(&["", "1", "2", "9"]).into()),
        MsgType::GET_QUOTA | MsgType::SET_QUOTA => {
            fields.extend(
                input
                    .pick(&[
                        &["nodes"][..],
                        &["nodes", "40"],
                        &["1", "watches", "5"],
                        &["memory", "0"],
                        &[""],
                    ])
                    .iter()
                    .map(|f| f.as_bytes().to_vec()),
            );
        }
        _ => fields.push(path(input)),
    }
    match kind {
        MsgType::WATCH | MsgType::UNWATCH => {
            fields.push(token(input));
            if input.once_in(3) {
                fields.push(input.pick(&["0", "1", "2", "-1"]).into());
            }
        }
        MsgType::SET_PERMS => {
            for _ in 0..input.below(6) + 1 {
                fields.push(format!("{}{}", input.pick(&LETTERS), input.pick(&DOMIDS)).into());
            }
        }
        MsgType::DIRECTORY_PART => fields.push(input.pick(&["0", "0", "2", "99", "x"]).into()),
        MsgType::WRITE => {
            let mut payload = fields.concat();
            payload.push(0);
            let value = input.pick(&[0usize, 1, 1, 8, 100, 2100]);
            payload.resize(payload.len() + value, b'v');
            return (kind, payload);
        }
        _ => {}
    }
    let mut payload = fields.join(&0);
    payload.push(0);
    (kind, payload)
}

fn token(input: &mut Input<'_>) -> Vec<u8> {
    if input.once_in(32) { vec![b't'; 4000] } else { vec![b't', input.byte() % 4 + b'0'] }
}

fn path(input: &mut Input<'_>) -> Vec<u8> {
    if input.once_in(32) {
        return input.bytes(24).iter().filter(|byte| **byte != 0).copied().collect();
    }
    let mut path = input.pick(&TOPS).to_owned();
    let depth = if input.once_in(40) { 1000 } else { input.below(4) };
    for _ in 0..depth {
        if !path.is_empty() && path != "/" {
            path.push('/');
        }
        path.push_str(if depth > 10 { "d" } else { input.pick(&NAMES) });
    }
    path.into_bytes()
}
