//! Ring pages that are pulled away.
//!
//! A ring page is mapped, and whoever has its memfd may shorten it at any time: the next access raises SIGBUS. The program
//! handles that signal with [`pulled`], puts an empty page in the place of the lost one, and goes on; the ring says then
//! that it is lost. Everything here may be called in a signal handler.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::domain::DOMID_FIRST_RESERVED;

/// As many as there are domains, and some that are being replaced.
const SLOTS: usize = DOMID_FIRST_RESERVED as usize + 16;
const PAGE: usize = crate::ring::PAGE_SIZE;
/// In the place of the lowest bit of an address: the page is gone.
const PULLED: usize = 1;

/// Addresses of pages that are mapped, 0 where none is.
static PAGES: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
/// Where a free one is looked for first.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// One mapped page, as long as it is.
#[derive(Debug)]
pub(crate) struct Guard(&'static AtomicUsize);

impl Guard {
    /// A page is mapped at `address`.
    ///
    /// # Errors
    /// `OutOfMemory` if there are too many.
    pub(crate) fn new(address: usize) -> io::Result<Self> {
        let next = NEXT.load(Relaxed);
        let (before, after) = PAGES.split_at_checked(next).unwrap_or((&[], &PAGES));
        let mut slots = (next..).zip(after).chain((0..).zip(before));
        let free = |slot: &AtomicUsize| slot.compare_exchange(0, address, Relaxed, Relaxed).is_ok();
        let (at, slot) = slots.find(|(_, slot)| free(slot)).ok_or(io::ErrorKind::OutOfMemory)?;
        NEXT.store(at + 1, Relaxed);
        Ok(Self(slot))
    }

    /// Whether the page was lost.
    pub(crate) fn is_pulled(&self) -> bool {
        self.0.load(Relaxed) & PULLED != 0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.store(0, Relaxed);
    }
}

/// An access to `address` has raised SIGBUS: the beginning of the ring page that is lost, which the handler has to map
/// anew. None if it is no ring page.
#[must_use]
pub fn pulled(address: usize) -> Option<usize> {
    let page = address & !(PAGE - 1);
    let slot = PAGES.iter().find(|slot| slot.load(Relaxed) & !PULLED == page && page != 0)?;
    slot.fetch_or(PULLED, Relaxed);
    Some(page)
}
