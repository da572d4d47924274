//! Who has to wait before being heard: guests that disturb other people's transactions, and transactions that take
//! turns.
//!
//! Nothing here looks at a clock: the server says what time it is.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::DomId;
use crate::path::Path;
use crate::store::ConnId;

/// Time that a guest's disturbing write costs: 200 of them per second.
const WRITE: Duration = Duration::from_millis(5);
/// Unused time that a guest can save up: 10 writes.
const BURST: Duration = Duration::from_millis(50);
/// Time that guests left unused, for whoever needs it: 1000 writes.
const RESERVE: Duration = Duration::from_secs(5);
/// How long others wait for a transaction whose turn it is.
const TURN: Duration = Duration::from_millis(20);

/// Losses of a privileged connection, one after another, from which on guests wait for its transactions.
pub const LOSSES: u32 = 4;

/// Names of what is saved: time that a guest has used up, and what they left.
const SPENT: &str = "pace-spent-";
const LEFT: &str = "pace-left";

/// Connections that have lost transactions over one node: they begin the next ones one after another.
#[derive(Debug, Default)]
struct Queue {
    holder: Option<ConnId>,
    until: Duration,
    waiting: VecDeque<ConnId>,
}

/// What a queue is about: a node, and whether privileged connections stand in it. Guests do not make those wait.
pub type Cause = (Path, bool);

/// All who wait.
#[derive(Debug)]
pub struct Pace {
    now: Duration,
    /// When a guest will have used up its time, if it writes no more: later than now, it is in debt.
    spent: HashMap<DomId, Duration>,
    reserve: Duration,
    queues: HashMap<Cause, Queue>,
    /// For whose transaction guests change nothing, and until when.
    guarded: Option<ConnId>,
    until: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let (spent, queues) = (HashMap::new(), HashMap::new());
        let zero = Duration::ZERO;
        Self { now: BURST, spent, reserve: zero, queues, guarded: None, until: zero }
    }
}

impl Pace {
    /// It is `now`, counted from any moment in the past.
    pub fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now + BURST);
    }

    /// A guest's write disturbed other people's transactions.
    pub fn charge(&mut self, domid: DomId) {
        let oldest = self.now - BURST;
        let spent = self.spent.entry(domid).or_insert(oldest);
        self.reserve = (self.reserve + oldest.saturating_sub(*spent)).min(RESERVE);
        *spent = oldest.max(*spent) + WRITE;
        let lent = spent.saturating_sub(self.now).min(self.reserve);
        *spent -= lent;
        self.reserve -= lent;
    }

    /// Until when a guest is not heard because of its writes.
    #[must_use]
    pub fn in_debt(&self, domid: DomId) -> Option<Duration> {
        let until = self.spent.get(&domid).filter(|spent| **spent > self.now)?;
        Some(*until - BURST)
    }

    /// A privileged connection that has lost often begins a transaction: guests change nothing until it is over or its
    /// time is, unless they have waited for one just now.
    pub fn guard(&mut self, conn: ConnId) {
        if self.now >= self.until + TURN {
            (self.guarded, self.until) = (Some(conn), self.now + TURN);
        }
    }

    /// It is over.
    pub fn unguard(&mut self, conn: ConnId) {
        if self.guarded == Some(conn) {
            (self.guarded, self.until) = (None, self.until.min(self.now));
        }
    }

    /// Until when guests that want to change something have to wait.
    #[must_use]
    pub fn guards(&self) -> Option<Duration> {
        self.guarded.filter(|_| self.until > self.now)?;
        Some(self.until - BURST)
    }

    /// A connection wants to begin a transaction, having lost one for this cause: `None` if it may, else until when it
    /// has to wait.
    pub fn may_start(&mut self, cause: &Cause, conn: ConnId) -> Option<Duration> {
        let queue = self.queues.entry(cause.clone()).or_default();
        let free = queue.holder.is_none_or(|holder| holder == conn) || queue.until <= self.now;
        let first = queue.waiting.front().is_none_or(|first| *first == conn);
        if !queue.waiting.contains(&conn) && queue.holder != Some(conn) {
            queue.waiting.push_back(conn);
        }
        if free && first {
            queue.waiting.pop_front();
            queue.holder = Some(conn);
            queue.until = self.now + TURN;
            return None;
        }
        if queue.holder == Some(conn) {
            return None;
        }
        Some(queue.until.max(self.now + Duration::from_millis(1)) - BURST)
    }

    /// A connection's transaction ended: answers whose turn it is now.
    pub fn pass(&mut self, cause: &Cause, conn: ConnId) -> Option<ConnId> {
        let queue = self.queues.get_mut(cause)?;
        queue.waiting.retain(|other| *other != conn);
        if queue.holder != Some(conn) {
            return None;
        }
        queue.holder = queue.waiting.pop_front();
        queue.until = self.now + TURN;
        if queue.holder.is_none() {
            self.queues.remove(cause);
        }
        self.queues.get(cause)?.holder
    }

    /// What guests have used up, and what they have left, in nanoseconds from now. Turns are taken anew.
    pub(crate) fn saved(&self) -> impl Iterator<Item = (String, u64)> {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let oldest = self.now - BURST;
        let spent = self
            .spent
            .iter()
            .map(move |(domid, spent)| (format!("{SPENT}{domid}"), nanos(spent.saturating_sub(oldest))));
        spent.filter(|(_, spent)| *spent > 0).chain([(LEFT.to_owned(), nanos(self.reserve))])
    }

    /// Takes one of [`Pace::saved`] over.
    pub(crate) fn resume(&mut self, name: &str, nanos: u64) {
        let time = Duration::from_nanos(nanos);
        if name == LEFT {
            self.reserve = time.min(RESERVE);
        } else if let Some(domid) = name.strip_prefix(SPENT).and_then(|domid| domid.parse().ok()) {
            self.spent.insert(domid, self.now - BURST + time);
        }
    }

    /// Forgets a domain that is no more.
    pub fn forget(&mut self, domid: DomId) {
        self.spent.remove(&domid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn q3_xsa206_a_guest_has_ten_writes_and_two_hundred_per_second() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            assert_eq!(pace.in_debt(7), None);
            pace.charge(7);
        }
        assert_eq!(pace.in_debt(7), None);
        pace.charge(7);
        assert_eq!(pace.in_debt(7), Some(5 * MS));
        assert_eq!(pace.in_debt(8), None, "another guest");
        pace.advance(5 * MS);
        assert_eq!(pace.in_debt(7), None);
        pace.charge(7);
        assert_eq!(pace.in_debt(7), Some(10 * MS));
        // Another daemon goes on with it, at another time of its own.
        let mut other = Pace::default();
        pace.saved().for_each(|(name, value)| other.resume(&name, value));
        assert_eq!((pace.in_debt(7), other.in_debt(7)), (Some(10 * MS), Some(5 * MS)));
        pace.forget(7);
        assert_eq!(pace.in_debt(7), None, "a new domain");
    }

    #[test]
    fn q3_a_guest_may_use_what_others_left_within_limits() {
        let mut pace = Pace::default();
        pace.charge(8);
        pace.advance(Duration::from_secs(60));
        pace.charge(8);
        let writes = (0..)
            .take_while(|_| {
                pace.charge(7);
                pace.in_debt(7).is_none()
            })
            .count();
        assert_eq!(writes, 1010);
    }

    #[test]
    fn transactions_take_turns() {
        let cause = (Path::root(), true);
        let [a, b, c] = [1, 2, 3].map(ConnId);
        let mut pace = Pace::default();
        assert_eq!(pace.may_start(&cause, a), None);
        assert_eq!(pace.may_start(&cause, a), None, "two at once are its own concern");
        assert_eq!(pace.may_start(&cause, b), Some(20 * MS));
        assert_eq!(pace.may_start(&cause, c), Some(20 * MS));
        assert_eq!(pace.pass(&cause, c), None, "went away");
        assert_eq!(pace.may_start(&cause, c), Some(20 * MS));
        assert_eq!(pace.pass(&cause, a), Some(b));
        assert_eq!(pace.may_start(&cause, a), Some(20 * MS), "behind the others");
        assert_eq!(pace.may_start(&cause, b), None);
        pace.advance(20 * MS);
        assert_eq!(pace.may_start(&cause, a), Some(21 * MS), "b took too long, it is c's turn");
        assert_eq!(pace.may_start(&cause, c), None);
        assert_eq!(pace.pass(&cause, b), None);
        assert_eq!(pace.pass(&cause, c), Some(a));
        assert_eq!(pace.pass(&cause, a), None);
        assert!(pace.queues.is_empty());
    }
}
