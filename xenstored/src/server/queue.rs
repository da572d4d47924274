//! Who has something to do, and how much of it is done at a time.

use std::time::{Duration, Instant};

use super::fds::Came;
use super::link::{Broken, Carrier, Link};
use super::{CHUNK, Server, TIDY};
use crate::quota::Limit;
use crate::store::{ConnId, Store};
use crate::usage::Unread;
use crate::wire::{self, HEADER_LEN, Header, MsgType};

/// Messages of one connection handled before the next one has its turn.
const SLICE: usize = 64;
/// Connections that are written to together, unless a state folder has them all wait for the disk.
const REPLIES: usize = 16;
/// Times that a ring is looked at anew before the next connection has its turn.
const ROUNDS: usize = 8;
/// Unsent bytes from which on a client on the socket is not read from.
const SOCKET_BACKLOG: usize = 256 * 1024;
/// Removed nodes after which freed memory goes back to the system, and when: it takes milliseconds, and whoever removes
/// much is rarely done with one request.
const TRIM_AFTER: u64 = 10_000;
const TRIM_PAUSE: Duration = Duration::from_secs(1);
/// By how much it is put off when somebody asks for something just then, and how often at most.
const TRIM_STEP: Duration = Duration::from_millis(10);
const TRIM_PUT_OFF: u32 = 1000;
/// Bytes of a connection, besides what is in its buffers.
const LINK: usize = 1024;
/// How long the reply to a removal waits at most until the nodes are done away with.
const SETTLE: Duration = Duration::from_secs(1);
/// Unsent bytes that anybody may have, whatever its limit, and however little memory is left.
const LITTLE: usize = 64 * 1024;
/// Unsent bytes for which a client on the socket is given up: it only watches and never reads.
const SOCKET_LIMIT: usize = 64 * 1024 * 1024;

impl Server {
    /// Something came on a client's socket, or there is room in it, or it hung up.
    pub(super) fn ready(&mut self, conn: ConnId, hung_up: bool) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.readable = true;
            link.hung_up |= hung_up;
            if !std::mem::replace(&mut link.queued, true) {
                self.queue.push_back(conn);
            }
        }
    }

    /// A connection has something to do.
    pub(super) fn enqueue(&mut self, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn).filter(|link| !link.queued) {
            link.queued = true;
            self.queue.push_back(conn);
        }
    }

    /// Gives every connection in the queue a slice, and the left-over work one.
    pub(super) fn turn(&mut self) {
        let now = self.began.elapsed();
        self.now = now;
        self.linger.turn(now);
        self.store.advance(now);
        while let Some((until, conn)) = self.waiting.first().copied().filter(|(until, _)| *until <= now) {
            self.waiting.remove(&(until, conn));
            self.release_held(conn);
        }
        for _ in 0..self.queue.len() {
            let Some(conn) = self.queue.pop_front() else { break };
            if let Err(broken) = self.serve(conn) {
                self.broken(conn, &broken);
            }
            // All replies of a turn go out at its end: those who wait for them wake once, and answer at once. With a
            // state folder so does the log.
            if self.disk.is_none() && self.written.len() >= REPLIES {
                self.flush_written();
            }
        }
        self.flush_written();
        self.tidy();
        self.settle();
    }

    /// One slice of left-over work. A while after a lot of it the freed memory goes back to the system; at once if most
    /// of all nodes are gone.
    fn tidy(&mut self) {
        self.most = self.most.max(self.store.nodes());
        self.untidy = self.store.tidy(TIDY);
        let (forgotten, short) = (self.store.forgotten(), self.store.room.was_short());
        if std::mem::replace(&mut self.forgotten, forgotten) < forgotten {
            let much = forgotten - self.trimmed >= TRIM_AFTER;
            self.trim_at = much.then(|| Instant::now() + TRIM_PAUSE).or(self.trim_at.filter(|_| short));
        }
        if short {
            // What is free here is not free for what asks the system.
            self.trim_at = self.trim_at.or_else(|| Some(Instant::now() + TRIM_PAUSE));
        }
        let emptied = !self.untidy && self.store.nodes() < self.most / 2;
        if self.asked
            && !emptied
            && self.put_off < TRIM_PUT_OFF
            && self.trim_at.is_some_and(|then| Instant::now() >= then)
        {
            self.put_off += 1;
            self.trim_at = Some(Instant::now() + TRIM_STEP);
        }
        if self.trim_at.is_some_and(|then| emptied || Instant::now() >= then) {
            (self.trim_at, self.trimmed, self.put_off) = (None, self.store.forgotten(), 0);
            self.most = self.store.nodes();
            self.links.shrink_to_fit();
            self.queue.shrink_to(TIDY);
            self.written.shrink_to(TIDY);
            self.store.shrink();
            (self.trim)();
        }
    }

    /// Who has removed much hears of it when that is done away with: its memory is free then.
    fn settle(&mut self) {
        if self.settling.is_empty() {
            return;
        }
        let now = self.began.elapsed();
        let waits = |(conn, until): &(ConnId, Duration)| now < *until && self.store.is_removing(*conn);
        let (wait, done): (Vec<_>, Vec<_>) = std::mem::take(&mut self.settling).into_iter().partition(waits);
        self.settling = wait;
        for (conn, _) in done {
            let Some(link) = self.links.get_mut(&conn) else { continue };
            link.settling = false;
            if link.ended {
                self.enqueue(conn);
            }
            self.mark_written(conn);
        }
        self.flush_written();
    }

    /// A client has removed more than was done away with at once.
    pub(super) fn removed(&mut self, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn)
            && !std::mem::replace(&mut link.settling, true)
        {
            self.settling.push((conn, self.began.elapsed() + SETTLE));
        }
    }

    /// One slice: send, take in, handle.
    fn serve(&mut self, conn: ConnId) -> Result<(), Broken> {
        let Some(link) = self.links.get_mut(&conn) else { return Ok(()) };
        link.queued = false;
        if link.is_ring() { self.serve_domain(conn) } else { self.serve_client(conn) }
    }

    fn serve_client(&mut self, conn: ConnId) -> Result<(), Broken> {
        let Some(link) = self.links.get(&conn) else { return Ok(()) };
        if link.outbox.len() > 0 {
            self.flush(conn)?;
        }
        if !self.congested(conn) {
            self.take_in(conn)?;
        }
        let Some(link) = self.links.get(&conn) else { return Ok(()) };
        let more = !congested(&self.store, conn, link) && (link.readable || link.has_message()?);
        if more {
            self.enqueue(conn);
        } else if link.ended && !link.settling {
            // What it asked for is done; replies that it does not read any more are lost with it.
            self.flush(conn)?;
            return Err(Broken::Closed);
        }
        Ok(())
    }

    /// A ring is looked at again as long as something comes, because that costs nothing.
    fn serve_domain(&mut self, conn: ConnId) -> Result<(), Broken> {
        if !self.check_ring(conn)? {
            return Ok(());
        }
        let mut busy = true;
        for _ in 0..if self.disk.is_none() { ROUNDS } else { 1 } {
            self.flush(conn)?;
            busy = !self.congested(conn) && self.take_in(conn)?;
            if !busy {
                break;
            }
        }
        self.note_unread(conn);
        let Some(link) = self.links.get(&conn) else { return Ok(()) };
        let (more, touched) = (!congested(&self.store, conn, link) && link.has_message()?, link.notify);
        if touched {
            self.mark_written(conn);
            self.linger.answered(conn, self.now);
        }
        if more || busy {
            self.enqueue(conn);
        }
        Ok(())
    }

    fn note_unread(&mut self, conn: ConnId) {
        let Some(outbox) = self.links.get(&conn).map(|link| &link.outbox) else { return };
        let unread = Unread { replies: outbox.replies(), bytes: outbox.len() };
        if self.store.note_unread(conn, unread)
            && let Some(domid) = self.store.domain_of(conn)
        {
            let [_, _, _, memory, ..] = self.store.used(domid);
            let (soft, unread) = (self.store.conn_limit(conn, Limit::SoftMemory), unread.bytes);
            self.log.warn(format_args!(
                "domain {domid} uses {memory} bytes of memory, {unread} of them unread messages: above its soft quota of {soft}"
            ));
        }
    }

    /// Reads once, unless a whole message waits already, and handles up to a slice of messages. `false` if there was
    /// nothing to do.
    fn take_in(&mut self, conn: ConnId) -> Result<bool, Broken> {
        let Some(link) = self.links.get_mut(&conn) else { return Ok(false) };
        let (waiting, client) = (link.has_message()?, !link.is_ring());
        if let Carrier::Ring(domain) = &link.carrier
            && !waiting
            && !domain.ring.has_request()
        {
            return Ok(false);
        }
        let mut bytes = std::mem::take(&mut link.inbox);
        if bytes.is_empty() {
            bytes = std::mem::take(&mut self.spare);
        }
        let before = bytes.len();
        let received = if waiting || link.ended { Ok(0) } else { link.receive(&mut self.chunk, &mut bytes) };
        let result = received.and_then(|count| Ok((self.handle_messages(conn, client, &bytes)?, count)));
        let (handled, count) = *result.as_ref().unwrap_or(&(0, 0));
        let mut done = handled > 0 || count > 0;
        if let Some(link) = self.links.get_mut(&conn) {
            let mut kept = bytes.len();
            if link.is_ring() {
                // Whole messages that were not handled stay in the ring. A part of one does not: Linux kicks for the
                // rest of a message only if it sees that all before was taken.
                let rest = bytes.get(handled..).unwrap_or_default();
                let part = matches!(wire::split(rest), Ok(None));
                let taken = if part { count } else { handled.saturating_sub(before) };
                kept = before + taken;
                link.handled = taken;
                link.counters.received(taken);
                done = taken > 0;
            }
            link.inbox = bytes.get(handled..kept).unwrap_or_default().to_vec();
            if let Carrier::Ring(domain) = &link.carrier
                && !link.inbox.is_empty()
                && result.is_ok()
            {
                // A page that fails here fails at every turn.
                let _ = domain.ring.keep(&link.inbox, link.handled);
            }
            // Descriptors belong to the INTRODUCE they came with.
            if link.inbox.is_empty() {
                link.fds.clear();
                link.came = Came::None;
            }
        }
        if done {
            self.mark_written(conn);
        }
        bytes.clear();
        bytes.shrink_to(2 * CHUNK);
        self.spare = bytes;
        result.map(|_| waiting || done)
    }

    /// Answers how many bytes are done with.
    fn handle_messages(&mut self, conn: ConnId, client: bool, bytes: &[u8]) -> Result<usize, Broken> {
        let mut at = 0;
        for _ in 0..SLICE {
            let Some((header, payload)) = wire::split(bytes.get(at..).unwrap_or_default())? else { break };
            let Some(link) = self.links.get_mut(&conn) else { break };
            if congested(&self.store, conn, link) {
                break;
            }
            // Most requests of clients never have to wait.
            let may_wait = !client || header.kind == MsgType::TRANSACTION_START;
            if may_wait && self.holds(conn, &header) {
                break;
            }
            if let Some(link) = self.links.get_mut(&conn) {
                link.counters.handled(1);
            }
            at += HEADER_LEN + payload.len();
            self.handle_message(conn, client, header, payload);
        }
        Ok(at)
    }

    /// Whether a request has to wait, and all that follow on its connection.
    fn holds(&mut self, conn: ConnId, header: &Header) -> bool {
        let until = self.store.must_wait(conn, header);
        if until.is_none() && !self.waits_for_update(conn, header) {
            return false;
        }
        self.waiting.extend(until.map(|until| (until, conn)));
        if let Some(link) = self.links.get_mut(&conn) {
            link.held = true;
        }
        // A socket is not read from before that is over.
        self.mark_written(conn);
        true
    }

    /// Its request is tried again.
    pub(super) fn release_held(&mut self, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn).filter(|link| link.held) {
            link.held = false;
            self.mark_written(conn);
            self.enqueue(conn);
        }
    }

    /// Puts a message into a connection's outbox.
    pub(super) fn post(&mut self, conn: ConnId, message: &[u8], event: bool) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        let limit = match link.carrier {
            // What the last look has shown will do: one request may have a thousand events.
            _ if event && (self.store.room.was_short() || self.store.is_short(message.len())) => LITTLE,
            Carrier::Socket(_) => SOCKET_LIMIT,
            Carrier::Ring(_) => self.store.conn_limit(conn, Limit::Memory).max(LITTLE),
        };
        link.push(message, event, limit);
        if !std::mem::replace(&mut link.written, true) {
            self.written.push(conn);
        }
    }

    pub(super) fn mark_written(&mut self, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn)
            && !std::mem::replace(&mut link.written, true)
        {
            self.written.push(conn);
        }
    }

    pub(super) fn flush_written(&mut self) {
        let mut written = std::mem::take(&mut self.written);
        for conn in written.drain(..) {
            let flushed = self.flush(conn);
            if let Some(link) = self.links.get_mut(&conn) {
                link.signal();
            }
            if let Err(broken) = flushed {
                self.broken(conn, &broken);
            }
        }
        // Breaking a connection tells nobody, so nothing was added meanwhile; the room is used again.
        if self.written.is_empty() {
            self.written = written;
        }
    }

    /// Sends what can be sent, and has the loop watch for what is waited for.
    pub(super) fn flush(&mut self, conn: ConnId) -> Result<(), Broken> {
        let Some(link) = self.links.get_mut(&conn) else { return Ok(()) };
        link.written = false;
        if link.overflowed {
            return Err(Broken::Overflow);
        }
        if link.settling {
            return Ok(());
        }
        let (before, room) = (link.outbox.len(), link.outbox.capacity());
        if before == 0 && link.handled == 0 {
            return Ok(());
        }
        if let Some(disk) = &mut self.disk {
            link.keep_unsent(disk, &self.store, &mut self.log);
            disk.commit(&mut self.store);
        }
        link.flush()?;
        self.store.note_freed(room.saturating_sub(link.outbox.capacity()));
        let more = link.is_ring() || link.readable || !link.inbox.is_empty();
        if let Carrier::Socket(fd) = &link.carrier {
            let wants_room = link.outbox.len() > 0;
            if std::mem::replace(&mut link.wants_room, wants_room) != wants_room {
                self.poller.want_room(fd, conn, wants_room);
            }
        }
        if more && before > link.outbox.len() && !congested(&self.store, conn, link) {
            self.enqueue(conn);
        }
        Ok(())
    }

    /// Whether a connection has to take what is for it before it is listened to.
    pub(super) fn congested(&self, conn: ConnId) -> bool {
        self.links.get(&conn).is_some_and(|link| congested(&self.store, conn, link))
    }

    /// A client is gone or was thrown out; a domain whose ring makes no sense stays known, but is not served.
    pub(super) fn broken(&mut self, conn: ConnId, broken: &Broken) {
        // What was asked for before is done: its replies go first.
        if matches!(broken, Broken::Protocol(_)) {
            if let Some(link) = self.links.get_mut(&conn) {
                link.settling = false;
            }
            let _ = self.flush(conn);
        }
        match self.links.get(&conn).map(|link| &link.carrier) {
            Some(Carrier::Ring(_)) => self.ring_failed(conn, broken),
            Some(Carrier::Socket(_)) => {
                if !matches!(broken, Broken::Closed) {
                    self.log.warn(format_args!("client dropped: {broken}"));
                }
                self.store.disconnect(conn);
                self.drop_link(conn);
                self.update_dropped(conn);
                self.trace.object(false, conn);
            }
            None => {}
        }
    }

    pub(super) fn drop_link(&mut self, conn: ConnId) {
        let Some(link) = self.links.remove(&conn) else { return };
        self.closed.add(&link.counters);
        self.store.note_freed(LINK + link.inbox.capacity() + link.outbox.capacity());
        match link.carrier {
            Carrier::Socket(fd) => self.poller.remove(&fd),
            Carrier::Ring(domain) => {
                self.rings -= 1;
                self.forget_unsent(domain.domid);
                self.poller.remove(&domain.kick);
                domain.lifeline.iter().for_each(|fd| self.poller.remove(fd));
            }
        }
    }
}

fn congested(store: &Store, conn: ConnId, link: &Link) -> bool {
    let full = match link.carrier {
        Carrier::Socket(_) => link.outbox.len() > SOCKET_BACKLOG,
        Carrier::Ring(_) => {
            let replies = link.outbox.replies();
            let crowded = || link.outbox.len() > LITTLE.max(store.conn_limit(conn, Limit::Memory) / 2);
            replies > 0 && replies >= store.conn_limit(conn, Limit::Outstanding)
                || link.outbox.len() > LITTLE && crowded()
        }
    };
    full || link.held
}
