//! Plays the lines of a table.

use std::collections::HashMap;
use std::time::Duration;

use xenstored::out::{Action, Out};
use xenstored::store::{ConnId, Store};
use xenstored::wire::{Header, MsgType, split};

pub struct Player {
    store: Store,
    /// Time passes for requests that have to wait.
    pub patient: bool,
    /// INTRODUCE comes with descriptors.
    pub has_ring: bool,
    conns: HashMap<String, ConnId>,
}

/// Plays a table; panics at the first line that comes out differently.
pub fn play(script: &str) {
    let mut player = Player::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let line = expand(line);
        let (step, want) = line.split_once(" => ").unwrap_or((&line, "OK"));
        let want = want.replace("''", "");
        assert_eq!(player.step(step).trim_end(), want.trim_end(), "{line}");
        let problem = player.store().check().err();
        assert_eq!(problem, None, "{line}");
    }
}

impl Player {
    pub fn new() -> Self {
        Self { store: Store::new(), patient: false, has_ring: true, conns: HashMap::new() }
    }

    pub fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    /// The reply to a request, and the events it caused.
    pub fn step(&mut self, step: &str) -> String {
        if let Some(ms) = step.strip_prefix("at ") {
            self.store.advance(Duration::from_millis(ms.parse().unwrap()));
            return "OK".into();
        }
        let mut words = step.split_whitespace();
        let (who, tx) = words.next().map(|who| who.split_once('.').unwrap_or((who, "0"))).unwrap();
        let kind = kind(words.next().unwrap());
        let args: Vec<&str> = words.map(|word| if word == "''" { "" } else { word }).collect();
        let mut payload = args.join("\0");
        if kind != MsgType::WRITE {
            payload.push('\0');
        }
        self.request(who, kind, tx.parse().unwrap(), payload.as_bytes())
    }

    /// A client closes its socket.
    pub fn disconnect(&mut self, who: &str) {
        let conn = self.conns.remove(who).unwrap();
        self.store.disconnect(conn);
    }

    /// The events when a domain has shut down.
    pub fn shut_down(&mut self, domid: u16) -> String {
        let mut out = Out::default();
        self.store.domain_shut_down(domid, &mut out);
        let conn = self.connection("0");
        self.show(conn, &out).replacen("nothing", "", 1).replacen(" ! ", "", 1)
    }

    /// The same for a payload of any bytes.
    pub fn request(&mut self, who: &str, kind: MsgType, tx_id: u32, payload: &[u8]) -> String {
        let conn = self.connection(who);
        let mut out = Out::default();
        let header = Header { kind, req_id: 9, tx_id: 0, len: 0 };
        while let Some(until) = self.store.must_wait(conn, &header) {
            if self.patient {
                self.store.advance(until);
                continue;
            }
            return format!("waits until {}", until.as_millis());
        }
        self.handle(conn, kind, tx_id, payload, &mut out);
        self.show(conn, &out)
    }

    fn handle(&mut self, conn: ConnId, kind: MsgType, tx_id: u32, payload: &[u8], out: &mut Out) {
        let header = Header { kind, req_id: 9, tx_id, len: payload.len().try_into().unwrap() };
        self.store.handle(conn, header, payload, self.has_ring, out);
        for action in &out.actions {
            match *action {
                Action::Serve { conn, domid, .. } => drop(self.conns.insert(domid.to_string(), conn)),
                Action::Drop(gone) => self.conns.retain(|_, conn| *conn != gone),
                Action::Wake(_) => {}
            }
        }
    }

    /// The connection of a client, who connects, or of a domain, which is introduced, when first heard of.
    pub fn connection(&mut self, who: &str) -> ConnId {
        if let Some(&conn) = self.conns.get(who) {
            return conn;
        }
        if who != "0" && who.parse::<u16>().is_ok() {
            let host = self.connection("0");
            let payload = format!("{who}\x001\x001\0");
            self.handle(host, MsgType::INTRODUCE, 0, payload.as_bytes(), &mut Out::default());
            return self.conns[who];
        }
        let conn = self.store.connect();
        self.conns.insert(who.to_owned(), conn);
        conn
    }

    fn show(&self, asker: ConnId, out: &Out) -> String {
        let (mut reply, mut events) = (String::from("nothing"), String::new());
        for (conn, message, event) in out.messages() {
            let (header, payload) = split(message).unwrap().unwrap();
            let text = String::from_utf8_lossy(payload).replace('\0', "|");
            let text = text.strip_suffix('|').unwrap_or(&text);
            if event {
                assert_eq!((header.kind, header.req_id, header.tx_id), (MsgType::WATCH_EVENT, 0, 0));
                events.push_str(&format!(" ! {} {}", self.name(conn), text.replace('|', " ")));
            } else {
                assert_eq!((conn, header.req_id), (asker, 9));
                reply = text.to_owned();
            }
        }
        for action in &out.actions {
            match action {
                Action::Wake(conn) => events.push_str(&format!(" ! {} may go on", self.name(*conn))),
                Action::Serve { .. } | Action::Drop(_) => {}
            }
        }
        reply + &events
    }

    fn name(&self, conn: ConnId) -> &str {
        self.conns.iter().find(|(_, id)| **id == conn).map_or("?", |(who, _)| who)
    }
}

fn kind(name: &str) -> MsgType {
    let number = name.parse().unwrap_or_else(|_| {
        (0..30).find(|n| MsgType(*n).name().is_some_and(|known| known.eq_ignore_ascii_case(name))).unwrap()
    });
    MsgType(number)
}

/// `{x*3}` becomes `xxx`.
fn expand(line: &str) -> String {
    let mut text = line.to_owned();
    while let Some((start, end)) = text.find('{').zip(text.find('}')) {
        let (what, count) = text[start + 1..end].split_once('*').unwrap();
        let repeated = what.repeat(count.parse().unwrap());
        text.replace_range(start..=end, &repeated);
    }
    text
}
