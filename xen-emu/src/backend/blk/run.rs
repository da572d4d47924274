//! What a queue's thread does.
//!
//! A turn takes every request from the ring, hands it to the engine, and then waits for ends and for the guest's
//! notifications in one system call. A guest that breaks its ring has its device closed; whatever else it does wrong
//! is that request's error.

use super::pins::Held;
use super::proto::{self, Limits, Parsed, Slot, Transfer, Work};
use super::queue::{Ending, Queue, Serving, Stop};
use crate::backend::device::DeviceError;
use crate::disk::engine::{Done, Engine, Io, Op};
use crate::disk::sys::Buffers;
use crate::log::limited;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use xen_abi::Gref;
use xen_abi::io::blkif::{BlkifOp, BlkifRsp, SEGMENTS_PER_INDIRECT_PAGE, Segment};
use xen_domain::ring::RingError;

/// A step of a request.
#[derive(Clone, Copy, Debug)]
enum Step {
    Flush,
    Data(Op),
    Discard { len: u64, secure: bool },
}

/// A request under way.
struct Flight {
    id: u64,
    operation: BlkifOp,
    held: Vec<Held>,
    at: u64,
    data: Option<Buffers>,
    steps: VecDeque<Step>,
    writes: bool,
    barrier: bool,
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
    writes: usize,
    barrier: bool,
    /// How many requests are still taken, once it is to end.
    left: Option<u32>,
    /// A request that waits for those before it.
    waiting: Option<(After, Flight)>,
}

impl<'a> Run<'a> {
    /// Nothing is under way yet.
    pub fn new(queue: &'a mut Queue, serving: Serving, engine: Box<dyn Engine>) -> Run<'a> {
        let (flights, free) = (Vec::new(), Vec::new());
        Run { queue, serving, engine, flights, free, writes: 0, barrier: false, left: None, waiting: None }
    }

    /// Serves the ring until asked to stop, and then until nothing is under way.
    ///
    /// # Errors
    /// The engine is broken.
    pub fn turns(&mut self, stop: &Stop) -> io::Result<()> {
        let mut done = Vec::new();
        loop {
            if let Some(how) = stop.asked() {
                let few = if how == Ending::Finish { self.queue.ring.size() } else { 0 };
                self.left.get_or_insert(few);
            }
            self.take();
            self.tell();
            if self.left.is_some() && self.idle() {
                return Ok(());
            }
            let counters = &self.queue.counters;
            counters.turns.fetch_add(1, Ordering::Relaxed);
            let calls = self.engine.wait(&mut done)?;
            counters.calls.fetch_add(calls.into(), Ordering::Relaxed);
            done.drain(..).for_each(|done| self.ended(done));
        }
    }

    fn idle(&self) -> bool {
        self.waiting.is_none() && self.free.len() == self.flights.len()
    }

    /// Takes requests until the ring is empty or one has to wait for those before it.
    fn take(&mut self) {
        let mut slot: Slot = [0; size_of::<Slot>()];
        while !self.queue.broken && self.waiting.is_none() && !self.barrier && self.left != Some(0) {
            let queue = &mut *self.queue;
            match queue.ring.pop(&*queue.memory, &mut slot) {
                Ok(true) => {
                    self.left = self.left.map(|left| left - 1);
                    self.judge(&slot);
                }
                Ok(false) => match queue.ring.final_check_for_requests(&*queue.memory) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(e) => self.broken(e),
                },
                Err(e) => self.broken(e),
            }
        }
    }

    fn broken(&mut self, e: RingError) {
        let why = DeviceError(format!("{}: {e}", self.queue.name));
        self.queue.give_up(why);
    }

    /// A request's copy: begins it, has it wait, or answers it.
    fn judge(&mut self, slot: &Slot) {
        let limits = self.serving.limits();
        let Parsed { id, operation, work } = proto::parse(self.queue.abi, slot, &limits);
        let prepared = work.and_then(|work| self.prepare(id, operation, work, &limits));
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
            After::All => self.free.len() == self.flights.len(),
        }
    }

    /// Pins and finds memory for a request.
    fn prepare(
        &mut self,
        id: u64,
        operation: BlkifOp,
        work: Work,
        limits: &Limits,
    ) -> Result<Flight, BlkifRsp> {
        let mut flight = Flight {
            id,
            operation,
            held: Vec::new(),
            at: 0,
            data: None,
            steps: VecDeque::new(),
            writes: false,
            barrier: operation == BlkifOp::WRITE_BARRIER,
        };
        let (transfer, at, pieces) = match work {
            Work::Flush { .. } => {
                flight.steps.push_back(Step::Flush);
                return Ok(flight);
            }
            Work::Discard { at, len, secure } => {
                (flight.at, flight.writes) = (at, true);
                flight.steps.push_back(Step::Discard { len, secure });
                return Ok(flight);
            }
            Work::Data { transfer, at, pieces } => (transfer, at, pieces),
            Work::Indirect { transfer, sector, count, pages } => {
                let segments = self.segments(&pages, count)?;
                let (at, pieces) = proto::pieces(transfer, sector, &segments, limits)?;
                (transfer, at, pieces)
            }
        };
        flight.at = at;
        flight.writes = transfer != Transfer::Read;
        let (read, write) = (Step::Data(Op::Read), Step::Data(Op::Write));
        flight.steps = match transfer {
            Transfer::Read => [read].into(),
            Transfer::Write => [write].into(),
            Transfer::FlushWrite => [Step::Flush, write].into(),
            Transfer::Barrier => [Step::Flush, write, Step::Flush].into(),
        };
        match self.pin(&pieces, !flight.writes, &mut flight.held) {
            Some(data) => {
                flight.data = Some(data);
                Ok(flight)
            }
            None => {
                flight.held.drain(..).for_each(|held| self.queue.pages.give(held));
                Err(BlkifRsp::ERROR)
            }
        }
    }

    /// Copies the segments of an indirect request out of their pages, once.
    fn segments(&mut self, pages: &[Gref], count: u16) -> Result<Vec<Segment>, BlkifRsp> {
        let mut all = Vec::new();
        let mut left = usize::from(count);
        for gref in pages {
            let here = left.min(SEGMENTS_PER_INDIRECT_PAGE);
            left -= here;
            let mut bytes = vec![0; here * size_of::<Segment>()];
            let queue = &mut *self.queue;
            let refused = |e| {
                limited!(warn, "{}: indirect page: {e}", queue.name);
                BlkifRsp::ERROR
            };
            let (page, held) = queue.pages.take(*gref, false).map_err(refused)?;
            let fits = usize::from(page.len) >= bytes.len();
            let read = if fits { queue.memory.read(page.gpa, &mut bytes).is_ok() } else { false };
            queue.pages.give(held);
            if !read {
                return Err(BlkifRsp::ERROR);
            }
            all.extend(proto::segments(&bytes));
        }
        Ok(all)
    }

    /// Pins all pieces and finds them in host memory; what was pinned is in `held` either way.
    fn pin(&mut self, pieces: &[proto::Piece], write: bool, held: &mut Vec<Held>) -> Option<Buffers> {
        let mut data = Buffers::guest(self.queue.memory.clone());
        for piece in pieces {
            let (page, pin) = match self.queue.pages.take(piece.gref, write) {
                Ok(pinned) => pinned,
                Err(e) => {
                    limited!(warn, "{}: {e}", self.queue.name);
                    return None;
                }
            };
            held.push(pin);
            if piece.offset.checked_add(piece.len).is_none_or(|end| end > page.len) {
                return None;
            }
            data.push(page.gpa.offset(piece.offset.into()), piece.len.into()).ok()?;
        }
        if data.iovecs().1 < pieces.len() {
            self.queue.counters.merged.fetch_add(1, Ordering::Relaxed);
        }
        Some(data)
    }

    fn begin(&mut self, flight: Flight) {
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
        let Some(step) = flight.steps.pop_front() else { return false };
        let none = || Buffers::guest(self.queue.memory.clone());
        let (op, data) = match step {
            Step::Flush => (Op::Flush, none()),
            Step::Discard { len, secure } => (Op::Discard { len, secure }, none()),
            Step::Data(op) => (op, flight.data.take().unwrap_or_else(none)),
        };
        self.engine.submit(Io::new(tag, op, flight.at, data));
        true
    }

    /// The engine is done with a step.
    fn ended(&mut self, done: Done) {
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
        self.writes -= usize::from(flight.writes);
        self.barrier &= !flight.barrier;
        // The guest may end its grants as soon as it sees the answer.
        flight.held.into_iter().for_each(|held| self.queue.pages.give(held));
        self.answer(flight.id, flight.operation, status);
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
