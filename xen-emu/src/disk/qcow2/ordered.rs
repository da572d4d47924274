//! Where the crate writes a qcow2 image to. Data go to the file at once. Tables stay in memory until a flush, which brings them to
//! the file in an order in which each step holds without the next: counts that rise, then L2 tables, L1 table, header, then
//! counts that fall; a sync between any two. So whenever the process is killed or the host loses its power, the tables in the file
//! refer to nothing that is not there, with at most clusters that are counted and not used; all that was flushed is there.
//!
//! This holds as long as no cluster is used anew that the file's tables still refer to: two L2 tables are written in no order. So what is
//! replaced stays counted, and what is discarded is freed by a commit during which nothing is allocated ([`Tables::freeing`]).
//!
//! The crate itself writes references at once and counts later (a new L2 table's), and orders writes without a sync.
#![expect(unsafe_code, reason = "the crate's trait for storage has methods that are unsafe to call")]

use super::layout::{COUNTS, HEADER, Layout, OFFSET, words};
use super::repair::{get, put};
use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{DynStorage, Storage, StorageExt, StorageOpenOptions};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A file; in tests, one that remembers.
pub type Medium = Arc<Box<dyn DynStorage>>;

/// Pieces of tables by their offsets.
type Pieces = BTreeMap<u64, Vec<u8>>;

/// One file of an image as the crate sees it.
#[derive(Debug)]
pub struct Store {
    medium: Medium,
    /// This is the file's view for tables; else it is that for data.
    tables: Option<Arc<Tables>>,
    helper: CommonStorageHelper,
    /// The format's data end where they end; the file is not cut there.
    shared: bool,
}

/// What a writable image's tables will be.
pub struct Tables {
    medium: Medium,
    /// Bytes of a piece.
    piece: u64,
    state: Mutex<State>,
    held: AtomicUsize,
    freeing: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Since the last flush began.
    pending: Pieces,
    /// What that flush writes.
    sealed: Arc<Pieces>,
    /// The blocks of counts that the file's table has.
    blocks: HashSet<u64>,
}

impl Store {
    /// A file that is read, or holds nothing but data.
    pub fn plain(medium: Medium) -> Store {
        Store { medium, tables: None, helper: CommonStorageHelper::default(), shared: false }
    }

    /// The data in an image's file.
    pub fn data(medium: Medium) -> Store {
        Store { shared: true, ..Store::plain(medium) }
    }

    /// The tables in an image's file.
    pub fn tables(tables: Arc<Tables>) -> Store {
        Store { tables: Some(tables.clone()), ..Store::plain(tables.medium.clone()) }
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").field("medium", &self.medium).finish_non_exhaustive()
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.medium)
    }
}

impl Tables {
    /// Of an image whose counts are right.
    ///
    /// # Errors
    /// The host's, or the header is damaged.
    pub fn new(medium: Medium) -> io::Result<Tables> {
        let nothing = Pieces::new();
        let layout = layout(&medium, &nothing)?;
        let blocks = blocks(&medium, &nothing, &layout)?;
        let state = Mutex::new(State { blocks, ..State::default() });
        let piece = layout.cluster().min(4096);
        Ok(Tables { medium, piece, state, held: AtomicUsize::new(0), freeing: AtomicBool::new(false) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in memory that no flush has begun to write.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether clusters that become free are counted as free: only where nothing is allocated before all that is written here is on the disk,
    /// which until then uses them. Others are lost until the image is opened again.
    pub fn freeing(&self, may: bool) {
        self.freeing.store(may, Ordering::Relaxed);
    }

    /// What has been written so far is what the next [`Tables::commit`] writes. Between operations on the image only.
    pub fn seal(&self) {
        let mut state = self.state();
        let mut pending = std::mem::take(&mut state.pending);
        if !state.sealed.is_empty() {
            // The last one failed.
            let mut all = Pieces::clone(&state.sealed);
            all.append(&mut pending);
            pending = all;
        }
        state.sealed = Arc::new(pending);
        self.held.store(0, Ordering::Relaxed);
    }

    /// Brings all data and the sealed tables to the disk. One at a time.
    ///
    /// # Errors
    /// The host's; what is on the disk is not known then.
    pub fn commit(&self) -> io::Result<()> {
        let (sealed, known) = {
            let state = self.state();
            (state.sealed.clone(), state.blocks.clone())
        };
        if sealed.is_empty() {
            return self.medium.sync();
        }
        let plan = Plan::new(&self.medium, self.piece, &sealed, known)?;
        for (n, step) in plan.steps.iter().enumerate().filter(|(_, step)| !step.is_empty()) {
            if n > 0 {
                self.medium.sync()?;
            }
            write(&self.medium, step)?;
        }
        self.medium.sync()?;
        write(&self.medium, &plan.fallen)?;
        let mut state = self.state();
        state.sealed = Arc::default();
        state.blocks = plan.blocks;
        Ok(())
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        look(&self.medium, &state.sealed, at, bytes)?;
        overlay(&state.pending, at, bytes);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let end = at.saturating_add(bytes.len() as u64);
        let mut start = at / self.piece * self.piece;
        while start < end {
            let size = usize::try_from(self.piece).unwrap_or(0);
            let mut piece = vec![0; size];
            if start < at || start + self.piece > end {
                look(&self.medium, &state.sealed, start, &mut piece)?;
                overlay(&state.pending, start, &mut piece);
            }
            paste(&mut piece, start, at, bytes);
            if state.pending.insert(start, piece).is_none() {
                self.held.fetch_add(size, Ordering::Relaxed);
            }
            start += self.piece;
        }
        Ok(())
    }
}

/// The writes of a commit, in their order; each but the first begins when the last is on the disk.
struct Plan {
    steps: [Pieces; STEPS],
    /// Counts as they end; until now each was as high as before and after.
    fallen: Pieces,
    blocks: HashSet<u64>,
}

/// Counts; the table of their blocks; the header's pointer to that; L2 tables; the L1 table; the header.
const STEPS: usize = 6;

impl Plan {
    fn new(medium: &Medium, piece: u64, sealed: &Pieces, known: HashSet<u64>) -> io::Result<Plan> {
        let (old, new) = (layout(medium, &Pieces::new())?, layout(medium, sealed)?);
        let moved = old.counts != new.counts;
        let within = |range: &Range<u64>, at: u64| at < range.end && at + piece > range.start;
        let grown = moved || sealed.keys().any(|at| within(&new.counts, *at));
        let blocks = if grown { blocks(medium, sealed, &new)? } else { known.clone() };
        let mut plan = Plan { steps: Default::default(), fallen: Pieces::new(), blocks };
        let length = medium.size()?;
        for (&at, bytes) in sealed {
            let mut before = vec![0; bytes.len()];
            medium.read(&mut before[..], at)?;
            if before == *bytes && at + piece <= length {
                continue;
            }
            let block = at & !(new.cluster() - 1);
            let step = match at {
                0 => 5,
                _ if plan.blocks.contains(&block) => 0,
                _ if within(&new.counts, at) => 1,
                _ if within(&new.l1, at) => 4,
                _ => 3,
            };
            let mut bytes = bytes.clone();
            if step == 0 && known.contains(&block) {
                let highest = highest(&before, &bytes, new.order)?;
                if highest != bytes {
                    plan.fallen.insert(at, std::mem::replace(&mut bytes, highest));
                }
            }
            if step == 5
                && moved
                && let (Some(from), Some(to)) = (bytes.get(COUNTS), before.get_mut(COUNTS))
            {
                to.copy_from_slice(from);
                plan.steps[2].insert(at, before);
            }
            if let Some(step) = plan.steps.get_mut(step) {
                step.insert(at, bytes);
            }
        }
        Ok(plan)
    }
}

/// Each count as it is in the one or the other, whichever is higher.
fn highest(a: &[u8], b: &[u8], order: u32) -> io::Result<Vec<u8>> {
    let mut highest = b.to_vec();
    for index in 0..(b.len() * 8) >> order {
        let (before, after) = (get(a, order, index), get(b, order, index));
        if before > after {
            put(&mut highest, order, index, before)?;
        }
    }
    Ok(highest)
}

fn layout(medium: &Medium, pieces: &Pieces) -> io::Result<Layout> {
    let mut header = [0; HEADER];
    look(medium, pieces, 0, &mut header)?;
    Layout::of(&header)
}

fn blocks(medium: &Medium, pieces: &Pieces, layout: &Layout) -> io::Result<HashSet<u64>> {
    let size = usize::try_from(layout.counts.end - layout.counts.start).map_err(io::Error::other)?;
    let mut table = vec![0; size];
    look(medium, pieces, layout.counts.start, &mut table)?;
    Ok(words(&table).map(|entry| entry & OFFSET).filter(|block| *block != 0).collect())
}

/// The file's bytes as they will be when these pieces are in it.
fn look(medium: &Medium, pieces: &Pieces, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    medium.read(&mut *bytes, at)?;
    overlay(pieces, at, bytes);
    Ok(())
}

fn overlay(pieces: &Pieces, at: u64, bytes: &mut [u8]) {
    let end = at.saturating_add(bytes.len() as u64);
    // No piece is larger than this.
    for (start, piece) in pieces.range(at.saturating_sub(4095)..end) {
        paste(bytes, at, *start, piece);
    }
}

/// Copies what both have: `to` begins at `at`, `from` at `start`.
fn paste(to: &mut [u8], at: u64, start: u64, from: &[u8]) {
    let skip = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let to = to.get_mut(skip(start.saturating_sub(at))..).unwrap_or_default();
    let from = from.get(skip(at.saturating_sub(start))..).unwrap_or_default();
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

/// Writes pieces, those that follow each other at once.
fn write(medium: &Medium, pieces: &Pieces) -> io::Result<()> {
    let mut run: (u64, Vec<u8>) = (0, Vec::new());
    for (&at, piece) in pieces {
        if at != run.0 + run.1.len() as u64 {
            medium.write(&run.1[..], run.0)?;
            run = (at, Vec::new());
        }
        run.1.extend_from_slice(piece);
    }
    medium.write(&run.1[..], run.0)
}

impl Storage for Store {
    fn open(options: StorageOpenOptions) -> io::Result<Store> {
        Ok(Store::plain(Arc::new(Box::new(File::open(options)?))))
    }

    fn mem_align(&self) -> usize {
        if self.tables.is_some() { 1 } else { self.medium.mem_align() }
    }

    fn req_align(&self) -> usize {
        if self.tables.is_some() { 1 } else { self.medium.req_align() }
    }

    fn zero_align(&self) -> usize {
        if self.tables.is_some() { 1 } else { self.medium.zero_align() }
    }

    fn discard_align(&self) -> usize {
        if self.tables.is_some() { 1 } else { self.medium.discard_align() }
    }

    fn size(&self) -> io::Result<u64> {
        self.medium.size()
    }

    unsafe fn pure_readv(&self, mut to: IoVectorMut<'_>, at: u64) -> io::Result<()> {
        let Some(tables) = &self.tables else {
            // SAFETY: the caller's promise, handed on: alignments and helper are the medium's.
            return unsafe { self.medium.pure_readv(to, at) };
        };
        let mut bytes = vec![0; usize::try_from(to.len()).map_err(io::Error::other)?];
        tables.read(at, &mut bytes)?;
        to.copy_from_slice(&bytes);
        Ok(())
    }

    unsafe fn pure_writev(&self, from: IoVector<'_>, at: u64) -> io::Result<()> {
        let Some(tables) = &self.tables else {
            // SAFETY: as for reading.
            return unsafe { self.medium.pure_writev(from, at) };
        };
        let mut bytes = vec![0; usize::try_from(from.len()).map_err(io::Error::other)?];
        from.copy_into_slice(&mut bytes);
        tables.write(at, &bytes)
    }

    unsafe fn pure_write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        if self.tables.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: as for reading.
        unsafe { self.medium.pure_write_zeroes(at, len) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        if self.tables.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: as for reading.
        unsafe { self.medium.pure_write_allocated_zeroes(at, len) }
    }

    unsafe fn pure_discard(&self, at: u64, len: u64) -> io::Result<()> {
        if self.tables.is_some() {
            return Ok(());
        }
        // SAFETY: as for reading.
        unsafe { self.medium.pure_discard(at, len) }
    }

    fn flush(&self) -> io::Result<()> {
        if self.tables.is_some() { Ok(()) } else { self.medium.flush() }
    }

    fn sync(&self) -> io::Result<()> {
        if self.tables.is_some() { Ok(()) } else { self.medium.sync() }
    }

    /// The crate asks before it frees clusters.
    fn settle_writes(&self) -> io::Result<()> {
        match &self.tables {
            Some(tables) if !tables.freeing.load(Ordering::Relaxed) => {
                Err(io::Error::other("what is free is used after the image is opened again"))
            }
            _ => self.medium.settle_writes(),
        }
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        if self.tables.is_some() { &self.helper } else { self.medium.get_storage_helper() }
    }

    fn resize(&self, size: u64, mode: PreallocateMode) -> io::Result<()> {
        if self.shared { Ok(()) } else { self.medium.resize(size, mode) }
    }
}
