//! What a queue's thread does.
//!
//! A turn takes every request from the ring, hands it to the engine, and then waits for ends and for the guest's
//! notifications in one system call. A guest that breaks its ring has its device closed; whatever else it does wrong
//! is that request's error.
//!
//! On a host with one CPU the guest stands still whenever this thread runs. There, the more requests are under way, the
//! more ends gather before the guest is told, and the more new requests before the guest has to kick ([`Run::batch`]):
//! what is left lying is taken up with the next end, of which there is one as long as anything is under way. Ends wait
//! for each other a part of the time that requests take anyway ([`Run::gather`]). With few under way, and where there
//! are more CPUs, everything goes at once: the disk must not wait for work. Nothing is allocated for a request: flights and their
//! lists are used again.

use super::pins::Held;
use super::proto::{self, Limits, Parsed, Piece, Slot, Transfer, Work};
use super::queue::{Ending, Queue, Serving, Stop};
use crate::backend::device::DeviceError;
use crate::disk::engine::{Done, Engine, Gather, Io, Op};
use crate::disk::sys::Buffers;
use crate::log::limited;
use crate::sched::patient;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use xen_abi::Gref;
use xen_abi::io::blkif::{BlkifOp, BlkifRsp, Segment};
use xen_domain::ring::RingError;

/// The part of the requests under way that may gather, and of the time that a request takes lately.
const SHARE: u32 = 4;
/// The longest that ends wait for each other.
const PATIENCE: Duration = Duration::from_millis(2);
/// So many turns in a row with few requests under way, and they are in a hurry again.
const CALM: u32 = 16;

/// What is left to be done of a request, in order.
type Steps = [Option<Op>; 3];

/// A request under way.
struct Flight {
    id: u64,
    operation: BlkifOp,
    held: Vec<Held>,
    at: u64,
    /// `None` while the engine has them.
    data: Option<Buffers>,
    steps: Steps,
    writes: bool,
    barrier: bool,
    begun: Instant,
}

/// `$XLR_BLK_GATHER`, 0 or 1; else by whether there is one CPU.
fn gathers() -> bool {
    match std::env::var("XLR_BLK_GATHER").as_deref() {
        Ok("0") => false,
        Ok("1") => true,
        _ => std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1),
    }
}

/// Turns since many were under way, after one more.
fn calm(before: Option<u32>, many: bool) -> Option<u32> {
    if many { Some(0) } else { before.map(|turns| turns + 1).filter(|turns| *turns < CALM) }
}

fn steps(transfer: Transfer) -> Steps {
    match transfer {
        Transfer::Read => [Some(Op::Read), None, None],
        Transfer::Write => [Some(Op::Write), None, None],
        Transfer::FlushWrite => [Some(Op::Flush), Some(Op::Write), None],
        Transfer::Barrier => [Some(Op::Flush), Some(Op::Write), Some(Op::Flush)],
    }
}

/// What a request waits for before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Nothing,
    Writes,
    All,
}

/// A queue with its engine, while its thread runs.
pub struct Run<'a> {
    queue: &'a mut Queue,
    serving: Serving,
    engine: Box<dyn Engine>,
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    /// Flights that are over.
    spare: Vec<Flight>,
    /// The pieces of a request that is judged, and its copy of the indirect page.
    pieces: Vec<Piece>,
    page: Vec<u8>,
    writes: usize,
    barrier: bool,
    /// When this turn began, and how long requests take lately.
    now: Instant,
    pace: Duration,
    /// Whether requests wait for company.
    gathers: bool,
    /// Turns since many were under way; `None` while they are in a hurry.
    calm: Option<u32>,
    /// How many requests are still taken, once it is to end.
    left: Option<u32>,
    /// A request that waits for those before it.
    waiting: Option<(After, Flight)>,
}

impl<'a> Run<'a> {
    /// Nothing is under way yet.
    pub fn new(queue: &'a mut Queue, serving: Serving, engine: Box<dyn Engine>) -> Run<'a> {
        Run {
            queue,
            serving,
            engine,
            flights: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            pieces: Vec::new(),
            page: Vec::new(),
            writes: 0,
            barrier: false,
            now: Instant::now(),
            pace: Duration::ZERO,
            gathers: gathers(),
            calm: None,
            left: None,
            waiting: None,
        }
    }

    /// Serves the ring until asked to stop, and then until nothing is under way.
    ///
    /// # Errors
    /// The engine is broken.
    pub fn turns(&mut self, stop: &Stop) -> io::Result<()> {
        let mut done = Vec::new();
        loop {
            self.take(stop);
            self.tell();
            self.yields();
            if self.left.is_some() && self.idle() {
                return Ok(());
            }
            let counters = &self.queue.counters;
            counters.turns.fetch_add(1, Ordering::Relaxed);
            let calls = self.engine.wait(self.gather(), &mut done)?;
            counters.calls.fetch_add(calls.into(), Ordering::Relaxed);
            self.now = Instant::now();
            done.drain(..).for_each(|done| self.ended(done));
        }
    }

    fn idle(&self) -> bool {
        self.waiting.is_none() && self.under_way() == 0
    }

    fn under_way(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// How many ends, or new requests, are worth a turn of their own.
    fn batch(&self) -> usize {
        if self.gathers { (self.under_way() / SHARE as usize).max(1) } else { 1 }
    }

    /// Lets the guest run on while there is more than one request to a batch, and for a while after that.
    fn yields(&mut self) {
        let calm = calm(self.calm, self.batch() > 1);
        if calm.is_some() != self.calm.is_some() {
            self.queue.counters.calls.fetch_add(1, Ordering::Relaxed);
            if let Err(e) = patient(calm.is_some()) {
                limited!(warn, "{}: scheduling: {e}", self.queue.name);
            }
        }
        self.calm = calm;
    }

    /// Ends that come within a part of their requests' time are told together.
    fn gather(&self) -> Gather {
        Gather { events: self.batch(), patience: (self.pace / SHARE).min(PATIENCE) }
    }

    /// Whether requests are taken still. A guest can put them on the ring as fast as they fail, so each time this is asked.
    fn takes(&mut self, stop: &Stop) -> bool {
        if let Some(how) = stop.asked() {
            let few = if how == Ending::Finish { self.queue.ring.size() } else { 0 };
            self.left.get_or_insert(few);
        }
        self.left != Some(0)
    }

    /// Takes requests until the ring is empty or one has to wait for those before it.
    fn take(&mut self, stop: &Stop) {
        let limits = self.serving.limits();
        let mut slot: Slot = [0; size_of::<Slot>()];
        while self.takes(stop) && !self.queue.broken && self.waiting.is_none() && !self.barrier {
            let queue = &mut *self.queue;
            match queue.ring.pop(&*queue.memory, &mut slot) {
                Ok(true) => {
                    self.left = self.left.map(|left| left - 1);
                    self.judge(&slot, &limits);
                }
                Ok(false) => match self.ask() {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(e) => self.broken(e),
                },
                Err(e) => self.broken(e),
            }
        }
    }

    /// Asks to be notified of a batch of requests; true when it is there already.
    fn ask(&mut self) -> Result<bool, RingError> {
        let batch = u32::try_from(self.batch()).unwrap_or(1);
        self.queue.ring.final_check_for(&*self.queue.memory, batch)
    }

    fn broken(&mut self, e: RingError) {
        let why = DeviceError(format!("{}: {e}", self.queue.name));
        self.queue.give_up(why);
    }

    /// A request's copy: begins it, has it wait, or answers it.
    fn judge(&mut self, slot: &Slot, limits: &Limits) {
        let mut pieces = std::mem::take(&mut self.pieces);
        let Parsed { id, operation, work } = proto::parse(self.queue.abi, slot, limits, &mut pieces);
        let prepared = work.and_then(|work| self.prepare(id, operation, work, limits, &mut pieces));
        self.pieces = pieces;
        match prepared {
            Err(status) => self.answer(id, operation, status),
            Ok(flight) => {
                let after = match flight.operation {
                    BlkifOp::WRITE_BARRIER => After::All,
                    BlkifOp::FLUSH_DISKCACHE => After::Writes,
                    _ => After::Nothing,
                };
                if self.may_begin(after) {
                    self.begin(flight);
                } else {
                    self.waiting = Some((after, flight));
                }
            }
        }
    }

    fn may_begin(&self, after: After) -> bool {
        match after {
            After::Nothing => true,
            After::Writes => self.writes == 0,
            After::All => self.under_way() == 0,
        }
    }

    /// Finds out what a request needs, and pins and finds its memory; `pieces` is where a direct one has it.
    fn prepare(
        &mut self,
        id: u64,
        operation: BlkifOp,
        work: Work,
        limits: &Limits,
        pieces: &mut Vec<Piece>,
    ) -> Result<Flight, BlkifRsp> {
        let (at, steps) = match work {
            Work::Flush { .. } => (0, [Some(Op::Flush), None, None]),
            Work::Discard { at, len, secure } => (at, [Some(Op::Discard { len, secure }), None, None]),
            Work::Data { transfer, at } => (at, steps(transfer)),
            Work::Indirect { transfer, sector, count, page } => {
                let segments = self.segments(page, count)?;
                (proto::pieces(transfer, sector, segments, limits, pieces)?, steps(transfer))
            }
        };
        let mut flight = self.spare.pop().unwrap_or_else(|| Flight {
            id,
            operation,
            held: Vec::new(),
            at,
            data: None,
            steps,
            writes: false,
            barrier: false,
            begun: self.now,
        });
        (flight.id, flight.operation, flight.at, flight.steps) = (id, operation, at, steps);
        flight.barrier = operation == BlkifOp::WRITE_BARRIER;
        flight.writes = steps.iter().flatten().any(|op| matches!(op, Op::Write | Op::Discard { .. }));
        if self.pin(pieces, &mut flight) {
            return Ok(flight);
        }
        self.over(flight);
        Err(BlkifRsp::ERROR)
    }

    /// Lets go of what a flight holds, and keeps the flight for the next request.
    fn over(&mut self, mut flight: Flight) {
        flight.held.drain(..).for_each(|held| self.queue.pages.give(held));
        self.spare.push(flight);
    }

    /// Copies the segments of an indirect request out of their page, once.
    fn segments(&mut self, gref: Gref, count: u16) -> Result<impl Iterator<Item = Segment>, BlkifRsp> {
        let len = usize::from(count) * size_of::<Segment>();
        self.page.resize(len, 0);
        let queue = &mut *self.queue;
        let (page, held) = queue.pages.take(gref, false).map_err(|e| {
            limited!(warn, "{}: indirect page: {e}", queue.name);
            BlkifRsp::ERROR
        })?;
        let fits = usize::from(page.len) >= len;
        let read = fits && queue.memory.read(page.gpa, &mut self.page).is_ok();
        queue.pages.give(held);
        if read { Ok(proto::segments(&self.page)) } else { Err(BlkifRsp::ERROR) }
    }

    /// Pins all pieces and finds them in host memory; what was pinned is held either way.
    fn pin(&mut self, pieces: &[Piece], flight: &mut Flight) -> bool {
        let queue = &mut *self.queue;
        let data = flight.data.get_or_insert_with(|| Buffers::guest(queue.memory.clone()));
        data.clear();
        for piece in pieces {
            let (page, pin) = match queue.pages.take(piece.gref, !flight.writes) {
                Ok(pinned) => pinned,
                Err(e) => {
                    limited!(warn, "{}: {e}", queue.name);
                    return false;
                }
            };
            flight.held.push(pin);
            let inside = piece.offset.checked_add(piece.len).is_some_and(|end| end <= page.len);
            if !inside || data.push(page.gpa.offset(piece.offset.into()), piece.len.into()).is_err() {
                return false;
            }
        }
        if data.iovecs().1 < pieces.len() {
            queue.counters.merged.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn begin(&mut self, mut flight: Flight) {
        flight.begun = self.now;
        self.writes += usize::from(flight.writes);
        self.barrier |= flight.barrier;
        let tag = match self.free.pop() {
            Some(tag) => tag,
            None => {
                self.flights.push(None);
                u32::try_from(self.flights.len() - 1).unwrap_or(u32::MAX)
            }
        };
        if let Some(place) = self.flights.get_mut(tag as usize) {
            *place = Some(flight);
        }
        self.step(tag);
    }

    /// Hands a request's next step to the engine; false when there is none.
    fn step(&mut self, tag: u32) -> bool {
        let Some(Some(flight)) = self.flights.get_mut(tag as usize) else { return false };
        let Some(op) = flight.steps.iter_mut().find_map(Option::take) else { return false };
        let moves = matches!(op, Op::Read | Op::Write);
        let data = flight.data.take_if(|_| moves);
        let data = data.unwrap_or_else(|| Buffers::guest(self.queue.memory.clone()));
        self.engine.submit(Io::new(tag, op, flight.at, data));
        true
    }

    /// The engine is done with a step.
    fn ended(&mut self, done: Done) {
        if let Some(Some(flight)) = self.flights.get_mut(done.tag as usize) {
            flight.data.get_or_insert(done.data);
        }
        let status = match &done.result {
            Ok(()) if self.step(done.tag) => return,
            Ok(()) => BlkifRsp::OKAY,
            Err(e) => {
                limited!(warn, "{}: {e}", self.queue.name);
                let unknown =
                    e.kind() == io::ErrorKind::Unsupported || e.raw_os_error() == Some(libc::EOPNOTSUPP);
                if unknown { BlkifRsp::EOPNOTSUPP } else { BlkifRsp::ERROR }
            }
        };
        let Some(flight) = self.flights.get_mut(done.tag as usize).and_then(Option::take) else { return };
        self.free.push(done.tag);
        // A discard takes a time of its own, which says nothing of the others.
        if flight.operation != BlkifOp::DISCARD {
            self.pace = (self.pace * 7 + self.now.duration_since(flight.begun)) / 8;
        }
        self.writes -= usize::from(flight.writes);
        self.barrier &= !flight.barrier;
        self.answer(flight.id, flight.operation, status);
        // The guest may end its grants as soon as it sees the answer, which is not before the turn's end.
        self.over(flight);
        if let Some((after, flight)) = self.waiting.take() {
            if self.may_begin(after) {
                self.begin(flight);
            } else {
                self.waiting = Some((after, flight));
            }
        }
    }

    fn answer(&mut self, id: u64, operation: BlkifOp, status: BlkifRsp) {
        let queue = &mut *self.queue;
        queue.counters.requests.fetch_add(1, Ordering::Relaxed);
        if status != BlkifRsp::OKAY {
            queue.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        let (bytes, len) = queue.abi.response(id, operation, status);
        if let Err(e) = queue.ring.push(&*queue.memory, bytes.get(..len).unwrap_or_default()) {
            self.broken(e);
        }
    }

    /// Shows the guest what was answered.
    fn tell(&mut self) {
        let queue = &mut *self.queue;
        match queue.ring.publish(&*queue.memory) {
            Ok(false) => {}
            Ok(true) => {
                queue.counters.calls.fetch_add(1, Ordering::Relaxed);
                queue.counters.notifications.fetch_add(1, Ordering::Relaxed);
                if let Err(e) = nix::unistd::write(&queue.channel.notify, &1u64.to_ne_bytes()) {
                    limited!(warn, "{}: notification: {e}", queue.name);
                }
            }
            Err(e) => self.broken(e),
        }
    }

    /// Nothing touches guest memory any more after the engine is gone; then the pins go.
    pub fn abandon(self) {
        drop(self.engine);
        let under_way = self.flights.into_iter().flatten().chain(self.waiting.map(|(_, flight)| flight));
        under_way.flat_map(|flight| flight.held).for_each(|held| self.queue.pages.give(held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_patient_from_the_first_crowd_until_a_while_after_the_last() {
        assert_eq!(calm(None, false), None);
        let quiet: Vec<_> =
            std::iter::successors(calm(None, true), |turns| calm(Some(*turns), false)).collect();
        assert_eq!(quiet.len(), CALM as usize);
        assert_eq!(calm(quiet.last().copied(), true), Some(0));
    }
}
