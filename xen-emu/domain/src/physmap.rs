//! The guest's view of memory: which RAM frames it has, and where it has put the special pages.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::domain::MemmapEntry;
use crate::mem::{Gfn, SpecialPage};

/// E820 RAM.
pub(crate) const E820_RAM: u32 = 1;
/// Frame numbers from here on name no memory (52 address bits).
pub(crate) const GFN_LIMIT: u64 = 1 << 40;

/// A run of RAM frames and the frames of it that the guest has given up.
#[derive(Debug)]
struct Region {
    first: u64,
    frames: u64,
    /// One bit per frame, set = not there. Zero at first, so that untouched pages of it cost nothing.
    absent: Vec<u64>,
}

/// The physmap.
#[derive(Debug)]
pub(crate) struct Physmap {
    regions: Vec<Region>,
    /// Frames of the regions that are not absent.
    present: u64,
    /// Of these, how many the domain was not given at start: a domain built with less memory than its map shows
    /// (memory < maxmem) populates on demand, and what it gives up first counts against these.
    on_demand: u64,
    placed: BTreeMap<SpecialPage, Gfn>,
    at: BTreeMap<Gfn, SpecialPage>,
}

impl Physmap {
    pub(crate) fn new(map: &[MemmapEntry], pages: u64) -> Physmap {
        let regions: Vec<Region> = map.iter().filter(|e| e.kind == E820_RAM).filter_map(region).collect();
        let present = regions.iter().map(|r| r.frames).sum::<u64>();
        Physmap {
            regions,
            present,
            on_demand: present.saturating_sub(pages),
            placed: BTreeMap::new(),
            at: BTreeMap::new(),
        }
    }

    /// RAM frames that count as the domain's.
    pub(crate) fn pages(&self) -> u64 {
        self.present - self.on_demand
    }

    /// One more than the highest frame that is mapped, RAM or special (XENMEM_maximum_gpfn + 1).
    pub(crate) fn end(&self) -> u64 {
        let ram = self.ram_end();
        self.at.keys().next_back().map_or(ram, |gfn| ram.max(gfn.0 + 1))
    }

    /// One more than the highest RAM frame of the layout.
    pub(crate) fn ram_end(&self) -> u64 {
        self.regions.iter().map(|r| r.first + r.frames).max().unwrap_or(0)
    }

    /// Whether the frame lies in RAM, present or given up.
    pub(crate) fn is_ram(&self, gfn: Gfn) -> bool {
        self.regions.iter().any(|r| r.contains(gfn))
    }

    /// Whether the guest has RAM there.
    pub(crate) fn is_present(&self, gfn: Gfn) -> bool {
        self.regions.iter().any(|r| r.contains(gfn) && !r.is_absent(gfn))
    }

    /// The guest gives the frame up; false if it has no RAM there.
    pub(crate) fn take(&mut self, gfn: Gfn) -> bool {
        let Some(region) = self.regions.iter_mut().find(|r| r.contains(gfn)) else { return false };
        let taken = region.set_absent(gfn, true);
        if taken {
            self.present -= 1;
            self.on_demand = self.on_demand.saturating_sub(1);
        }
        taken
    }

    /// The guest gets the frame back; false if the layout has no RAM there or it has it already.
    pub(crate) fn give(&mut self, gfn: Gfn) -> bool {
        let Some(region) = self.regions.iter_mut().find(|r| r.contains(gfn)) else { return false };
        let given = region.set_absent(gfn, false);
        self.present += u64::from(given);
        given
    }

    /// Where a special page is.
    pub(crate) fn gfn_of(&self, page: SpecialPage) -> Option<Gfn> {
        self.placed.get(&page).copied()
    }

    /// All special pages that are somewhere.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (SpecialPage, Gfn)> + '_ {
        self.placed.iter().map(|(page, gfn)| (*page, *gfn))
    }

    /// The special page at a frame.
    pub(crate) fn special_at(&self, gfn: Gfn) -> Option<SpecialPage> {
        self.at.get(&gfn).copied()
    }

    /// Notes a special page's new place, or that it has none; the caller has emptied that place.
    pub(crate) fn place(&mut self, page: SpecialPage, gfn: Option<Gfn>) {
        if let Some(old) = self.placed.remove(&page) {
            self.at.remove(&old);
        }
        if let Some(gfn) = gfn {
            self.placed.insert(page, gfn);
            self.at.insert(gfn, page);
        }
    }

    pub(crate) fn describe(&self, out: &mut String) {
        let _ = writeln!(out, "{} pages, {} populated on demand", self.pages(), self.on_demand);
        for region in &self.regions {
            let absent: u32 = region.absent.iter().map(|word| word.count_ones()).sum();
            let _ = writeln!(out, "ram {:#x}+{:#x}, {absent} given up", region.first, region.frames);
        }
        for (page, gfn) in &self.placed {
            let _ = writeln!(out, "{page:?} at {:#x}", gfn.0);
        }
    }
}

/// The whole frames of a map entry.
fn region(entry: &MemmapEntry) -> Option<Region> {
    let first = entry.addr.div_ceil(4096);
    let end = entry.addr.saturating_add(entry.size) / 4096;
    let frames = end.checked_sub(first)?;
    let words = usize::try_from(frames.div_ceil(64)).ok()?;
    Some(Region { first, frames, absent: vec![0; words] })
}

impl Region {
    fn contains(&self, gfn: Gfn) -> bool {
        gfn.0.checked_sub(self.first).is_some_and(|index| index < self.frames)
    }

    fn word(&self, gfn: Gfn) -> (usize, u64) {
        let index = gfn.0 - self.first;
        (usize::try_from(index / 64).unwrap_or(usize::MAX), 1 << (index % 64))
    }

    fn is_absent(&self, gfn: Gfn) -> bool {
        let (word, bit) = self.word(gfn);
        self.absent.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Sets or clears the bit of a contained frame; true if that changed it.
    fn set_absent(&mut self, gfn: Gfn, absent: bool) -> bool {
        let (word, bit) = self.word(gfn);
        let Some(word) = self.absent.get_mut(word) else { return false };
        let changed = (*word & bit != 0) != absent;
        if changed {
            *word ^= bit;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(addr: u64, size: u64) -> MemmapEntry {
        MemmapEntry { addr, size, kind: E820_RAM }
    }

    #[test]
    fn frames_are_given_up_and_come_back_once() {
        let mut map = Physmap::new(&[ram(0, 0x9_f000), ram(0x10_0000, 0x10_0000)], 415);
        assert_eq!((map.pages(), map.end()), (0x9f + 0x100, 0x200));
        assert!(!map.is_ram(Gfn(0x9f)) && map.is_ram(Gfn(0x1ff)) && !map.is_ram(Gfn(0x200)));
        assert!(map.take(Gfn(0x140)) && !map.take(Gfn(0x140)));
        assert!(!map.is_present(Gfn(0x140)) && map.is_present(Gfn(0x141)));
        assert_eq!(map.pages(), 414);
        assert!(map.give(Gfn(0x140)) && !map.give(Gfn(0x140)) && !map.give(Gfn(0x9f)));
        assert_eq!(map.pages(), 415);
    }

    #[test]
    fn populate_on_demand_absorbs_the_first_balloon() {
        let mut map = Physmap::new(&[ram(0, 0x10_0000)], 0xf0);
        assert_eq!(map.pages(), 0xf0);
        for gfn in 0..0x10 {
            assert!(map.take(Gfn(gfn)));
        }
        assert_eq!(map.pages(), 0xf0);
        assert!(map.take(Gfn(0x10)));
        assert_eq!(map.pages(), 0xef);
    }
}
