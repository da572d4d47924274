//! Guest memory: RAM, the ACPI region, and the special pages with the places the guest gave them.
//!
//! RAM is anonymous, 2 MiB-aligned in both address spaces and huge-page backed: RAM of 4 KiB pages costs 16,000
//! nested faults and a second per boot. Special pages are mappings of their own; one placed inside RAM lives in
//! that RAM page until it is moved.
#![expect(unsafe_code, reason = "maps guest RAM with an alignment that vm-memory cannot ask for")]

mod granted;

use crate::backend::device::GuestRam;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};
use xen_domain::mem::{Fault, Gfn, Gpa, GuestMem, SpecialPage};

const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;
const HUGE: usize = 2 << 20;

/// A contiguous piece of guest-physical memory.
pub struct Region {
    /// First byte.
    pub base: u64,
    map: MmapRegion,
}

impl Region {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.map.size() as u64
    }

    /// Host address of the first byte.
    pub fn hva(&self) -> u64 {
        self.map.as_ptr() as u64
    }

    fn offset(&self, gpa: u64, len: usize) -> Option<usize> {
        let offset = usize::try_from(gpa.checked_sub(self.base)?).ok()?;
        (offset.checked_add(len)? <= self.map.size()).then_some(offset)
    }
}

/// Where a special page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Reachable by us alone.
    Home,
    /// At a frame outside RAM, through a memory slot of its own.
    Slot(Gfn),
    /// Its content lives in this RAM frame.
    Ram(Gfn),
}

struct Special {
    map: Arc<MmapRegion>,
    place: Place,
}

/// What a frame outside RAM shows besides special pages, or one of RAM that the guest has given up.
enum Alias {
    /// A frame of RAM.
    Ram(Gfn),
    /// A page of another domain.
    Foreign { map: Arc<MmapRegion>, write: bool },
}

/// What an access does; a page of another domain may be for reading only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

#[derive(Default)]
struct Specials {
    pages: BTreeMap<SpecialPage, Special>,
    slots: BTreeMap<u64, SpecialPage>,
    /// Frames that show something else.
    aliases: BTreeMap<u64, Alias>,
}

/// All memory of one guest.
pub struct Memory {
    regions: Vec<Region>,
    specials: RwLock<Specials>,
    /// Pages shared with other domains.
    granted: granted::Granted,
}

/// The host refused memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// More than there is.
    #[error("memory = {mib} MiB, but this host has only {available} MiB available")]
    Host {
        /// Asked for.
        mib: u64,
        /// MemAvailable of /proc/meminfo.
        available: u64,
    },
    /// mmap of RAM.
    #[error("the host cannot provide {mib} MiB of guest memory")]
    Ram {
        /// Asked for.
        mib: u64,
        #[source]
        source: std::io::Error,
    },
    /// memfd or its mapping.
    #[error("the host cannot provide a page for the guest")]
    Page(#[source] std::io::Error),
}

/// Refuse RAM that the host does not have: memory is taken at its first touch, so nobody else would.
pub fn check_available(mib: u64) -> Result<(), MemoryError> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available_mib(&text) {
        Some(available) if mib > available => Err(MemoryError::Host { mib, available }),
        _ => Ok(()),
    }
}

/// Give back the pages of the program's code. Those that a running domain needs come back from the page cache, the many
/// that only built it do not: with them a domain has twice the memory beside its guest's.
pub fn forget_code() -> std::io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for range in maps.lines().filter_map(code) {
        let start = std::ptr::with_exposed_provenance_mut(range.start);
        if let Some(start) = NonNull::new(start) {
            // SAFETY: a mapping of a file that can not be written: what is dropped is read again when it is needed.
            unsafe { madvise(start, range.len(), MmapAdvise::MADV_DONTNEED)? };
        }
    }
    Ok(())
}

/// Where a line of /proc/self/maps has code of a file.
fn code(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_whitespace();
    let (range, rights) = (fields.next()?, fields.next()?);
    let path = fields.nth(3)?;
    let (start, end) = range.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    (rights == "r-xp" && path.starts_with('/')).then_some(hex(start)?..hex(end)?)
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    kib.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib >> 10)
}

fn invalid(e: MmapRegionError) -> std::io::Error {
    std::io::Error::other(e)
}

/// Map `size` bytes at a 2 MiB boundary, advised to huge pages.
fn map_ram(size: usize) -> std::io::Result<MmapRegion> {
    let span = NonZeroUsize::new(size.saturating_add(HUGE)).ok_or(std::io::ErrorKind::InvalidInput)?;
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
    let raw = unsafe { mmap_anonymous(None, span, prot, flags)? };
    let lead = raw.as_ptr().align_offset(HUGE);
    let tail = HUGE - lead;
    // SAFETY: lead < HUGE, inside the mapping made above.
    let start = unsafe { raw.byte_add(lead) };
    // SAFETY: both pieces are whole pages at the ends of the mapping made above, and nothing refers to them.
    unsafe {
        if lead > 0 {
            munmap(raw, lead)?;
        }
        if tail > 0 {
            munmap(start.byte_add(size), tail)?;
        }
        // Advice only: without transparent huge pages the guest is slower, not wrong.
        let _ = madvise(start, size, MmapAdvise::MADV_HUGEPAGE);
    }
    // SAFETY: `start..start + size` is the mapping made above and lives as long as the process; a domain's
    // process has one guest.
    unsafe { MmapRegion::build_raw(start.as_ptr().cast(), size, prot.bits(), flags.bits()) }.map_err(invalid)
}

impl Memory {
    /// RAM at these (base, size) pairs, sizes in whole pages.
    pub fn new(regions: &[(u64, u64)]) -> Result<Memory, MemoryError> {
        let regions = regions
            .iter()
            .map(|&(base, size)| {
                let mib = size >> 20;
                let size = usize::try_from(size).map_err(std::io::Error::other);
                size.and_then(map_ram)
                    .map(|map| Region { base, map })
                    .map_err(|source| MemoryError::Ram { mib, source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Memory { regions, specials: RwLock::default(), granted: granted::Granted::default() })
    }

    /// RAM and whatever else was made by [`Memory::new`].
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// RAM as plain bytes, for unpacking a kernel into it; `None` where it is not all one region. Only while nobody else
    /// has the memory, that is, before there is a guest.
    pub fn boot_slice(&mut self, range: Range<u64>) -> Option<&mut [u8]> {
        let len = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        let (region, offset) = self.regions.iter().find_map(|r| Some((r, r.offset(range.start, len)?)))?;
        // SAFETY: in the mapping, which lives as long as the process; `&mut self` is the only way to it, as no VM has
        // been given its address yet.
        Some(unsafe { std::slice::from_raw_parts_mut(region.map.as_ptr().add(offset), len) })
    }

    fn specials(&self) -> RwLockReadGuard<'_, Specials> {
        self.specials.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Make a special page that another process will map: sealed against shrinking.
    pub fn share_special(&self, page: SpecialPage) -> Result<File, MemoryError> {
        let file = ring_memfd().map_err(MemoryError::Page)?;
        let clone = file.try_clone().map_err(MemoryError::Page)?;
        let map = MmapRegion::from_file(FileOffset::new(clone, 0), PAGE_LEN);
        let map = Arc::new(map.map_err(|e| MemoryError::Page(invalid(e)))?);
        let mut specials = self.specials.write().unwrap_or_else(PoisonError::into_inner);
        specials.pages.insert(page, Special { map, place: Place::Home });
        Ok(file)
    }

    /// The mapping of a special page, made when missing, and where it is.
    fn special(&self, page: SpecialPage) -> Result<(Arc<MmapRegion>, Place), Fault> {
        if let Some(special) = self.specials().pages.get(&page) {
            return Ok((special.map.clone(), special.place));
        }
        let mut specials = self.specials.write().unwrap_or_else(PoisonError::into_inner);
        let map = Arc::new(MmapRegion::new(PAGE_LEN).map_err(|_| Fault)?);
        let special = specials.pages.entry(page).or_insert(Special { map, place: Place::Home });
        Ok((special.map.clone(), special.place))
    }

    /// Whether this frame is backed by a region of ours.
    pub fn is_ram(&self, gfn: Gfn) -> bool {
        self.regions.iter().any(|r| r.offset(gfn.gpa().0, PAGE_LEN).is_some())
    }

    /// Record a special page's new place and move its content there. Returns the old place and the host
    /// address of the page's own mapping; the caller updates the memory slots first when placing, after when
    /// taking away.
    pub fn move_special(&self, page: SpecialPage, to: Place) -> Result<(Place, u64), Fault> {
        let (map, from) = self.special(page)?;
        let mut content = [0; PAGE_LEN];
        self.read(page.home(), &mut content)?;
        {
            let mut specials = self.specials.write().unwrap_or_else(PoisonError::into_inner);
            if let Place::Slot(gfn) = from {
                specials.slots.remove(&gfn.0);
            }
            if let Place::Slot(gfn) = to {
                specials.slots.insert(gfn.0, page);
            }
            if let Some(special) = specials.pages.get_mut(&page) {
                special.place = to;
            }
        }
        if from != to {
            self.write(page.home(), &content)?;
        }
        Ok((from, map.as_ptr() as u64))
    }

    /// Show a frame of RAM at a frame outside RAM too, or no longer (`None`). The host address of that RAM comes back.
    pub fn alias(&self, at: Gfn, frame: Option<Gfn>) -> Result<u64, Fault> {
        let Some(frame) = frame else { return self.set_alias(at, None).map(|()| 0) };
        let found = self.regions.iter().find_map(|r| Some((r, r.offset(frame.gpa().0, PAGE_LEN)?)));
        let (region, offset) = found.filter(|_| !self.is_ram(at)).ok_or(Fault)?;
        self.set_alias(at, Some(Alias::Ram(frame)))?;
        Ok(region.hva() + offset as u64)
    }

    /// Notes what a frame shows, where nothing was noted, or that it shows nothing else any more.
    fn set_alias(&self, at: Gfn, alias: Option<Alias>) -> Result<(), Fault> {
        let mut specials = self.specials.write().unwrap_or_else(PoisonError::into_inner);
        let Some(alias) = alias else {
            specials.aliases.remove(&at.0);
            return Ok(());
        };
        if specials.slots.contains_key(&at.0) || specials.aliases.contains_key(&at.0) {
            return Err(Fault);
        }
        specials.aliases.insert(at.0, alias);
        Ok(())
    }

    /// The host address of a guest-physical one, for the attributes that the kernel takes as addresses.
    pub fn hva(&self, gpa: Gpa) -> Result<u64, Fault> {
        self.with(gpa, 1, Access::Read, |map, offset| Ok(map.as_ptr() as u64 + offset as u64))
    }

    /// Give the host back the memory of these frames; they read as zeros afterwards.
    pub fn discard(&self, first: Gfn, frames: u64) {
        let Some(len) = frames.checked_mul(PAGE).and_then(|len| usize::try_from(len).ok()) else { return };
        for region in &self.regions {
            if let Some(offset) = region.offset(first.gpa().0, len)
                && let Some(start) = NonNull::new(region.map.as_ptr())
            {
                // SAFETY: the range lies in the mapping; its content is volatile guest memory that no
                // reference points into.
                let given = unsafe { madvise(start.byte_add(offset).cast(), len, MmapAdvise::MADV_DONTNEED) };
                if let Err(e) = given {
                    crate::log::limited!(warn, "madvise of {frames} frames from {:#x}: {e}", first.0);
                }
            }
        }
    }

    /// Give the host back all RAM, when no vCPU will run again.
    pub fn discard_all(&self) {
        self.regions.iter().for_each(|r| self.discard(Gpa(r.base).gfn(), r.size() / PAGE));
    }

    /// Run `f` on the mapping and offset behind `len` bytes that do not cross a page.
    fn with<R>(
        &self,
        gpa: Gpa,
        len: usize,
        access: Access,
        f: impl FnOnce(&MmapRegion, usize) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        let (address, special) = match SpecialPage::at_home(gpa) {
            Some((page, offset)) => match self.special(page)? {
                (_, Place::Ram(gfn)) => (gfn.gpa().0 + offset, None),
                (map, _) => (offset, Some(map)),
            },
            None => {
                let specials = self.specials();
                let page = specials.slots.get(&gpa.gfn().0).and_then(|page| specials.pages.get(page));
                match (page, specials.aliases.get(&gpa.gfn().0)) {
                    (Some(page), _) => (gpa.0 % PAGE, Some(page.map.clone())),
                    (_, Some(Alias::Ram(frame))) => (frame.gpa().0 + gpa.0 % PAGE, None),
                    (_, Some(Alias::Foreign { write: false, .. })) if access == Access::Write => {
                        return Err(Fault);
                    }
                    (_, Some(Alias::Foreign { map, .. })) => (gpa.0 % PAGE, Some(map.clone())),
                    (None, None) => (gpa.0, None),
                }
            }
        };
        if let Some(map) = special {
            let offset = usize::try_from(address).map_err(|_| Fault)?;
            return if offset + len <= map.size() { f(&map, offset) } else { Err(Fault) };
        }
        let found = self.regions.iter().find_map(|r| Some((r, r.offset(address, len)?)));
        let (region, offset) = found.ok_or(Fault)?;
        f(&region.map, offset)
    }

    /// Split into pieces that do not cross a page, unless all of it lies in one region of RAM.
    fn pieces(&self, gpa: Gpa, len: usize) -> impl Iterator<Item = (Gpa, std::ops::Range<usize>)> {
        let specials = self.specials();
        let whole = len as u64 > PAGE && specials.slots.is_empty() && specials.aliases.is_empty();
        drop(specials);
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == len {
                return None;
            }
            let at = gpa.offset(done as u64);
            let room = usize::try_from(PAGE - at.0 % PAGE).unwrap_or(0);
            let n = if whole { len } else { room.min(len - done) };
            done += n;
            Some((at, done - n..done))
        })
    }
}

/// A sealed page of shared memory.
fn ring_memfd() -> std::io::Result<File> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let fd: OwnedFd = memfd_create("xen-ring", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(PAGE)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
    Ok(file)
}

macro_rules! atomic {
    ($self:ident, $access:ident, $gpa:ident, $ty:ty, $bytes:expr, |$word:ident| $op:expr) => {
        $self.with($gpa, $bytes, Access::$access, |map, offset| {
            let $word = map.get_atomic_ref::<$ty>(offset).map_err(|_| Fault)?;
            Ok($op)
        })
    };
}

impl GuestRam for Memory {
    fn slice(&self, gpa: Gpa, len: usize) -> Result<VolatileSlice<'_>, Fault> {
        let crosses = gpa.0 % PAGE + len as u64 > PAGE;
        let found = self.regions.iter().find_map(|r| Some((r, r.offset(gpa.0, len)?)));
        let (region, offset) = found.filter(|_| !crosses && !self.is_overlaid(gpa.gfn())).ok_or(Fault)?;
        region.map.get_slice(offset, len).map_err(|_| Fault)
    }
}

impl GuestMem for Memory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        self.pieces(gpa, buf.len()).try_for_each(|(at, range)| {
            let part = buf.get_mut(range).ok_or(Fault)?;
            self.with(at, part.len(), Access::Read, |map, offset| {
                map.get_slice(offset, part.len()).map_err(|_| Fault)?.copy_to(part);
                Ok(())
            })
        })
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), Fault> {
        self.pieces(gpa, buf.len()).try_for_each(|(at, range)| {
            let part = buf.get(range).ok_or(Fault)?;
            self.with(at, part.len(), Access::Write, |map, offset| {
                map.get_slice(offset, part.len()).map_err(|_| Fault)?.copy_from(part);
                Ok(())
            })
        })
    }

    fn load_u32(&self, gpa: Gpa) -> Result<u32, Fault> {
        atomic!(self, Read, gpa, AtomicU32, 4, |w| w.load(Ordering::Acquire))
    }

    fn store_u32(&self, gpa: Gpa, value: u32) -> Result<(), Fault> {
        atomic!(self, Write, gpa, AtomicU32, 4, |w| w.store(value, Ordering::Release))
    }

    fn load_u64(&self, gpa: Gpa) -> Result<u64, Fault> {
        atomic!(self, Read, gpa, AtomicU64, 8, |w| w.load(Ordering::Acquire))
    }

    fn fetch_or_u8(&self, gpa: Gpa, bits: u8) -> Result<u8, Fault> {
        atomic!(self, Write, gpa, AtomicU8, 1, |w| w.fetch_or(bits, Ordering::SeqCst))
    }

    fn fetch_or_u32(&self, gpa: Gpa, bits: u32) -> Result<u32, Fault> {
        atomic!(self, Write, gpa, AtomicU32, 4, |w| w.fetch_or(bits, Ordering::SeqCst))
    }

    fn fetch_and_u32(&self, gpa: Gpa, bits: u32) -> Result<u32, Fault> {
        atomic!(self, Write, gpa, AtomicU32, 4, |w| w.fetch_and(bits, Ordering::SeqCst))
    }

    fn fetch_or_u64(&self, gpa: Gpa, bits: u64) -> Result<u64, Fault> {
        atomic!(self, Write, gpa, AtomicU64, 8, |w| w.fetch_or(bits, Ordering::SeqCst))
    }

    fn fetch_and_u64(&self, gpa: Gpa, bits: u64) -> Result<u64, Fault> {
        atomic!(self, Write, gpa, AtomicU64, 8, |w| w.fetch_and(bits, Ordering::SeqCst))
    }

    fn cas_u32(&self, gpa: Gpa, old: u32, new: u32) -> Result<Result<u32, u32>, Fault> {
        atomic!(self, Write, gpa, AtomicU32, 4, |w| w.compare_exchange(
            old,
            new,
            Ordering::SeqCst,
            Ordering::SeqCst
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_the_host_lacks_is_refused() {
        assert_eq!(available_mib("MemTotal: 4 kB\nMemAvailable:    2097152 kB\n"), Some(2048));
        check_available(1).unwrap();
        let error = check_available(1 << 40).unwrap_err().to_string();
        assert!(error.starts_with("memory = 1099511627776 MiB, but this host has only"), "{error}");
    }

    #[test]
    fn code_that_was_given_back_comes_back() {
        let line =
            "7f6838409000-7f683882d000 r-xp 00157000 00:02 66                         /usr/bin/xen-emu";
        assert_eq!(code(line), Some(0x7f68_3840_9000..0x7f68_3882_d000));
        let others =
            [line.replace("r-xp", "r--p"), line.replace("/usr/bin/xen-emu", "[vdso]"), "7f-8".into()];
        assert_eq!(others.iter().find_map(|line| code(line)), None);
        forget_code().unwrap();
        assert!(std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter_map(code).count() > 0);
    }

    #[test]
    fn a_frame_of_ram_is_seen_at_a_second_place() {
        let memory = Memory::new(&[(0, 4 << 20)]).unwrap();
        let at = Gfn(0x1_0000);
        assert_eq!(memory.alias(at, Some(Gfn(0x400))), Err(Fault));
        assert_eq!(memory.alias(Gfn(3), Some(Gfn(2))), Err(Fault));
        let hva = memory.alias(at, Some(Gfn(2))).unwrap();
        assert_eq!(memory.hva(Gpa(0x2000)), Ok(hva));
        assert_eq!(memory.alias(at, Some(Gfn(1))), Err(Fault), "taken");
        memory.store_u32(at.gpa().offset(8), 77).unwrap();
        assert_eq!(memory.load_u32(Gpa(0x2008)), Ok(77));
        assert_eq!(memory.read(at.gpa().offset(4000), &mut [0; 200]), Err(Fault), "one page");
        memory.alias(at, None).unwrap();
        assert_eq!(memory.load_u32(at.gpa()), Err(Fault));
    }

    #[test]
    fn a_special_page_keeps_its_content_wherever_it_is_placed() {
        let memory = Memory::new(&[(0, 4 << 20), (1 << 32, 1 << 20)]).unwrap();
        let (page, home) = (SpecialPage::SharedInfo, SpecialPage::SharedInfo.home());
        memory.write(home.offset(8), b"content").unwrap();
        let read = |at: Gpa| {
            let mut buf = [0; 7];
            memory.read(at, &mut buf).map(|()| buf)
        };
        let outside = Gfn(0xfeff8);
        assert_eq!(read(outside.gpa().offset(8)), Err(Fault));
        memory.move_special(page, Place::Slot(outside)).unwrap();
        assert_eq!(read(outside.gpa().offset(8)), Ok(*b"content"));
        memory.move_special(page, Place::Ram(Gfn(1))).unwrap();
        assert_eq!(read(outside.gpa().offset(8)), Err(Fault));
        assert_eq!(read(Gpa(4096 + 8)), Ok(*b"content"));
        assert_eq!(memory.fetch_or_u8(Gpa(4096 + 8), 0x20), Ok(b'c'));
        memory.move_special(page, Place::Home).unwrap();
        assert_eq!(read(home.offset(8)), Ok(*b"content"));
        assert_eq!(memory.load_u32(Gpa(3)), Err(Fault), "unaligned");
        let slice = memory.slice(Gpa(4096 + 8), 7).unwrap();
        slice.copy_from(b"in host");
        assert_eq!(read(Gpa(4096 + 8)), Ok(*b"in host"));
        let refused = [(Gpa(4096 + 8), 4096), (outside.gpa(), 1), (home, 1), (Gpa((4 << 20) - 1), 2)];
        assert!(
            refused.iter().all(|&(at, len)| memory.slice(at, len).is_err()),
            "not within one page of RAM"
        );
        memory.discard(Gfn(1), 1);
        assert_eq!(read(Gpa(4096 + 8)), Ok([0; 7]));
        assert!(read(Gpa((4 << 20) - 3)).is_err(), "past the end");
        assert_eq!(memory.regions()[0].hva() % (2 << 20), 0);
    }
}
