//! Single pages that two domains share: a frame of our RAM that another domain's process may map, and pages of other
//! domains that we show to our guest.
//!
//! A frame that is granted to another domain moves into a memfd of one page, which takes its place in our mapping of
//! RAM, and back when the grant is not in use any more. So nothing of our guest but the granted page is ever within
//! reach of the other process, and that only for the time it was granted.
#![expect(unsafe_code, reason = "a page takes the place of another in the mapping of guest RAM")]

use super::{Alias, Memory, PAGE, PAGE_LEN, Region};
use crate::guest::lock;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use xen_abi::Domid;
use xen_domain::mem::{Fault, Gfn};
use xen_domain::peer::Foreign;

/// Frames that can be shared at once: each takes a descriptor and two more pieces of our address space.
const SHARED_MAX: usize = 1024;
const ONE_PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_LEN).expect("not 0");
/// What a page from another process must have: one that shrinks would end us at the next access.
const FIXED_SIZE: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// A frame of ours in a memfd of its own.
struct Frame {
    file: File,
    writable: bool,
    /// All of one domain: who has the file keeps it, and one that was done with the frame would go on sharing it with
    /// the others.
    by: Domid,
    users: u32,
}

/// The shared pages of a domain, both ways.
#[derive(Default)]
pub(super) struct Granted {
    /// Locked while vCPUs are made to stand still and the grant table is locked, so neither a vCPU nor who has pinned a
    /// grant may want it.
    frames: Mutex<BTreeMap<u64, Frame>>,
    foreign: Mutex<BTreeMap<Foreign, Arc<MmapRegion>>>,
    /// Frames of RAM in whose place a page of another domain is.
    overlaid: AtomicUsize,
}

fn writable(write: bool) -> ProtFlags {
    if write { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ }
}

impl Memory {
    /// A frame of RAM as a file of its own that the process of domain `by` may map, for reading only or for writing too.
    /// As often as it is called, [`Memory::unshare`] is. `still` stops all who write to guest memory and lets them go on
    /// again.
    ///
    /// # Errors
    /// The host's; no RAM; shared already, but the other way or with another domain.
    pub fn share(
        &self,
        frame: Gfn,
        (by, writable): (Domid, bool),
        still: impl FnOnce(&mut dyn FnMut() -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<File> {
        let mut frames = lock(&self.granted.frames);
        if let Some(shared) = frames.get_mut(&frame.0) {
            if shared.by != by {
                return Err(io::Error::other(format!("it is shared with domain {}", shared.by)));
            }
            if shared.writable != writable {
                return Err(io::Error::other("it is shared for reading only, and for writing too"));
            }
            let file = shared.file.try_clone()?;
            shared.users = shared.users.checked_add(1).ok_or_else(|| io::Error::other("shared too often"))?;
            return Ok(file);
        }
        if frames.len() >= SHARED_MAX {
            return Err(io::Error::other(format!("more than {SHARED_MAX} frames are shared")));
        }
        let (region, offset) = self.ram(frame).map_err(io::Error::other)?;
        let file = page_memfd()?;
        still(&mut || move_out(region, offset, &file))?;
        let mut seals = FIXED_SIZE | SealFlag::F_SEAL_SEAL;
        if !writable {
            // Our own mapping was there before.
            seals |= SealFlag::F_SEAL_FUTURE_WRITE;
        }
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let clone = file.try_clone()?;
        frames.insert(frame.0, Frame { file, writable, by, users: 1 });
        Ok(clone)
    }

    /// One user fewer; without any the frame is ours alone again.
    ///
    /// # Errors
    /// The host's; the frame stays shared, and this user counts on.
    pub fn unshare(
        &self,
        frame: Gfn,
        still: impl FnOnce(&mut dyn FnMut() -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut frames = lock(&self.granted.frames);
        let Some(shared) = frames.get_mut(&frame.0) else { return Ok(()) };
        if shared.users > 1 {
            shared.users -= 1;
            return Ok(());
        }
        let (region, offset) = self.ram(frame).map_err(io::Error::other)?;
        still(&mut || move_in(region, offset))?;
        frames.remove(&frame.0);
        Ok(())
    }

    /// Takes a page of another domain in. What is not a page that keeps its size is refused.
    ///
    /// # Errors
    /// It is no such page, or may not be mapped like this.
    pub fn take_in(&self, page: Foreign, fd: OwnedFd, write: bool) -> io::Result<()> {
        let file = File::from(fd);
        let seals = SealFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GET_SEALS)?);
        if !seals.contains(FIXED_SIZE) || file.metadata()?.len() != PAGE {
            return Err(io::Error::other("no sealed page"));
        }
        let (prot, flags) = (writable(write).bits(), MapFlags::MAP_SHARED.bits());
        let map = MmapRegion::build(Some(FileOffset::new(file, 0)), PAGE_LEN, prot, flags);
        let map = map.map_err(io::Error::other)?;
        lock(&self.granted.foreign).insert(page, Arc::new(map));
        Ok(())
    }

    /// Forgets a page of another domain that is shown nowhere.
    pub fn let_go(&self, page: Foreign) {
        lock(&self.granted.foreign).remove(&page);
    }

    /// Notes that a page of another domain is at `at`, outside RAM, or no longer (`None`); its host address comes back.
    pub fn place_foreign(&self, at: Gfn, page: Option<(Foreign, bool)>) -> Result<u64, Fault> {
        let Some((page, write)) = page else { return self.set_alias(at, None).map(|()| 0) };
        let map = self.foreign(page).filter(|_| !self.is_ram(at)).ok_or(Fault)?;
        let hva = map.as_ptr() as u64;
        self.set_alias(at, Some(Alias::Foreign { map, write }))?;
        Ok(hva)
    }

    /// Puts a page of another domain in the place of a frame of RAM, or takes it away (`None`), which leaves a page of
    /// zeros. Only where nobody but the guest may be writing to that frame, and what was in it is lost.
    ///
    /// # Errors
    /// The host's, and all stays as it was; no RAM; no such page.
    pub fn overlay(&self, at: Gfn, page: Option<(Foreign, bool)>) -> io::Result<()> {
        let (region, offset) = self.ram(at).map_err(io::Error::other)?;
        let uncover = || {
            let done = self.set_alias(at, None);
            self.granted.overlaid.fetch_sub(1, Ordering::Release);
            done.map_err(io::Error::other)
        };
        let Some((page, write)) = page else {
            fresh(region, offset)?;
            return uncover();
        };
        let map = self.foreign(page).ok_or(io::ErrorKind::NotFound)?;
        let file = map.file_offset().ok_or(io::ErrorKind::NotFound)?.clone();
        self.set_alias(at, Some(Alias::Foreign { map, write })).map_err(io::Error::other)?;
        self.granted.overlaid.fetch_add(1, Ordering::Release);
        replace(region, offset, file.file(), write).inspect_err(|_| drop(uncover()))
    }

    /// Whether a frame of RAM has a page of another domain in its place, which may be for reading only.
    pub(super) fn is_overlaid(&self, frame: Gfn) -> bool {
        self.granted.overlaid.load(Ordering::Acquire) > 0 && self.specials().aliases.contains_key(&frame.0)
    }

    fn foreign(&self, page: Foreign) -> Option<Arc<MmapRegion>> {
        lock(&self.granted.foreign).get(&page).cloned()
    }

    fn ram(&self, frame: Gfn) -> Result<(&Region, usize), Fault> {
        let at = frame.0.checked_mul(PAGE).ok_or(Fault)?;
        self.regions.iter().find_map(|r| Some((r, r.offset(at, PAGE_LEN)?))).ok_or(Fault)
    }
}

fn page_memfd() -> io::Result<File> {
    let fd: OwnedFd = memfd_create("xen-grant", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(PAGE)?;
    Ok(file)
}

/// What is in a page of a region.
fn content(region: &Region, offset: usize) -> io::Result<[u8; PAGE_LEN]> {
    let mut bytes = [0; PAGE_LEN];
    region.map.get_slice(offset, PAGE_LEN).map_err(io::Error::other)?.copy_to(&mut bytes);
    Ok(bytes)
}

/// The place of a page of a region.
fn place(region: &Region, offset: usize) -> io::Result<NonZeroUsize> {
    region
        .map
        .as_ptr()
        .addr()
        .checked_add(offset)
        .and_then(NonZeroUsize::new)
        .ok_or_else(|| io::Error::other("no address"))
}

/// The page moves into `file`, which takes its place.
fn move_out(region: &Region, offset: usize, file: &File) -> io::Result<()> {
    file.write_all_at(&content(region, offset)?, 0)?;
    replace(region, offset, file, true)
}

/// The page of a file takes the place of a page of a region.
fn replace(region: &Region, offset: usize, file: &File, write: bool) -> io::Result<()> {
    let at = place(region, offset)?;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
    // SAFETY: a whole page inside the region's mapping is replaced by another, which is accessed as volatile memory only;
    // the mapping as a whole lives on.
    unsafe { mmap(Some(at), ONE_PAGE, writable(write), flags, file, 0)? };
    Ok(())
}

/// The page moves back into memory of its own.
fn move_in(region: &Region, offset: usize) -> io::Result<()> {
    let bytes = content(region, offset)?;
    fresh(region, offset)?;
    region.map.get_slice(offset, PAGE_LEN).map_err(io::Error::other)?.copy_from(&bytes);
    Ok(())
}

/// A page of a region is memory of its own again, of zeros.
fn fresh(region: &Region, offset: usize) -> io::Result<()> {
    let at = place(region, offset)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
    // SAFETY: as in `replace`.
    let page = unsafe { mmap_anonymous(Some(at), ONE_PAGE, writable(true), flags)? };
    // SAFETY: the page just mapped. As it was, so that it becomes one piece with its neighbours again.
    let _ = unsafe { madvise(NonNull::cast(page), PAGE_LEN, MmapAdvise::MADV_HUGEPAGE) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::device::GuestRam;
    use xen_domain::mem::{Gpa, GuestMem};

    const B: Domid = Domid(2);

    fn now(act: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        act()
    }

    /// Two domains: what the first shares, the second shows at frame 0x1000.
    fn pair() -> (Memory, Memory) {
        (Memory::new(&[(0, 4 << 20)]).unwrap(), Memory::new(&[(0, 2 << 20)]).unwrap())
    }

    #[test]
    fn a_shared_page_is_one_page_in_both_and_two_again_afterwards() {
        let (a, b) = pair();
        a.write(Gpa(0x5ff8), b"before, granted, after").unwrap();
        let file = a.share(Gfn(6), (B, true), now).unwrap();
        assert_eq!(a.share(Gfn(6), (B, true), now).unwrap().metadata().unwrap().len(), PAGE);
        b.take_in(Foreign(1), file.into(), true).unwrap();
        let hva = b.place_foreign(Gfn(0x1000), Some((Foreign(1), true))).unwrap();
        assert_ne!(hva, 0);
        let mut seen = [0; 4];
        b.read(Gpa(0x100_0000), &mut seen).unwrap();
        assert_eq!(seen, *b"gran", "from the page's first byte, and nothing before it");
        b.store_u32(Gpa(0x100_0010), 77).unwrap();
        assert_eq!(a.load_u32(Gpa(0x6010)), Ok(77));
        a.unshare(Gfn(6), now).unwrap();
        b.store_u32(Gpa(0x100_0010), 78).unwrap();
        assert_eq!(a.load_u32(Gpa(0x6010)), Ok(78), "there is another user");
        a.unshare(Gfn(6), now).unwrap();
        b.store_u32(Gpa(0x100_0010), 79).unwrap();
        assert_eq!(a.load_u32(Gpa(0x6010)), Ok(78));
        a.unshare(Gfn(6), now).unwrap();
        b.place_foreign(Gfn(0x1000), None).unwrap();
        assert!(b.load_u32(Gpa(0x100_0010)).is_err());
        let mut whole = [0; 22];
        a.read(Gpa(0x5ff8), &mut whole).unwrap();
        assert_eq!(whole, *b"before, granted, after");
    }

    #[test]
    fn a_page_is_shared_with_one_domain_until_it_is_back() {
        let (a, _) = pair();
        a.share(Gfn(6), (B, true), now).unwrap();
        assert!(a.share(Gfn(6), (Domid(3), true), now).is_err(), "the second would outlast the first");
        let busy =
            |_: &mut dyn FnMut() -> io::Result<()>| Err(io::Error::other("a vCPU does not stand still"));
        assert!(a.unshare(Gfn(6), busy).is_err());
        assert!(a.share(Gfn(6), (Domid(3), true), now).is_err(), "it is not back");
        a.unshare(Gfn(6), now).unwrap();
        a.share(Gfn(6), (Domid(3), false), now).unwrap();
    }

    #[test]
    fn a_page_granted_for_reading_cannot_be_written_to_by_any_means() {
        let (a, b) = pair();
        let file = a.share(Gfn(6), (B, false), now).unwrap();
        assert!(a.share(Gfn(6), (B, true), now).is_err(), "not both at once");
        let clone = || OwnedFd::from(file.try_clone().unwrap());
        assert!(b.take_in(Foreign(1), clone(), true).is_err());
        assert!(file.write_all_at(b"x", 0).is_err());
        let again = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", {
            use std::os::fd::AsRawFd;
            file.as_raw_fd()
        }));
        assert!(again.and_then(|file| file.write_all_at(b"x", 0)).is_err(), "nor when opened anew");
        b.take_in(Foreign(1), clone(), false).unwrap();
        b.place_foreign(Gfn(0x1000), Some((Foreign(1), false))).unwrap();
        a.write(Gpa(0x6000), b"told").unwrap();
        assert_eq!(b.load_u32(Gpa(0x100_0000)), Ok(u32::from_le_bytes(*b"told")));
        assert_eq!(b.write(Gpa(0x100_0000), b"x"), Err(Fault));
        assert_eq!(b.store_u32(Gpa(0x100_0000), 1), Err(Fault));
        assert_eq!(b.fetch_or_u8(Gpa(0x100_0000), 1), Err(Fault));
    }

    #[test]
    fn a_page_of_another_domain_takes_the_place_of_ram_and_leaves_zeros() {
        let (a, b) = pair();
        a.write(Gpa(0x6000), b"theirs").unwrap();
        b.write(Gpa(0x4ff8), b"before, ballooned").unwrap();
        let file = a.share(Gfn(6), (B, true), now).unwrap();
        b.take_in(Foreign(1), file.into(), true).unwrap();
        assert_eq!(b.place_foreign(Gfn(5), Some((Foreign(1), true))), Err(Fault), "no hole");
        assert!(b.overlay(Gfn(0x1000), Some((Foreign(1), true))).is_err(), "no RAM");
        b.overlay(Gfn(5), Some((Foreign(1), true))).unwrap();
        assert!(b.overlay(Gfn(5), Some((Foreign(1), true))).is_err(), "twice");
        assert!(b.slice(Gpa(0x5000), 1).is_err() && b.slice(Gpa(0x4000), 4096).is_ok(), "for backends");
        b.write(Gpa(0x4ffc), b"both").unwrap();
        b.write(Gpa(0x5002), b"INE").unwrap();
        let mut seen = [0; 14];
        b.read(Gpa(0x4ff8), &mut seen).unwrap();
        assert_eq!(&seen, b"befoboththINEs");
        // What the guest itself sees there, and not only we by the name of the frame.
        let offset = 5 * PAGE_LEN;
        assert_eq!(&content(&b.regions()[0], offset).unwrap()[..6], b"thINEs");
        b.overlay(Gfn(5), None).unwrap();
        assert_eq!(content(&b.regions()[0], offset).unwrap(), [0; PAGE_LEN]);
        b.write(Gpa(0x5000), b"ours").unwrap();
        assert!(b.slice(Gpa(0x5000), 4096).is_ok());
        assert_eq!(a.load_u32(Gpa(0x6000)), Ok(u32::from_le_bytes(*b"thIN")));

        let file = a.share(Gfn(7), (B, false), now).unwrap();
        b.take_in(Foreign(2), file.into(), false).unwrap();
        b.overlay(Gfn(5), Some((Foreign(2), false))).unwrap();
        assert_eq!((b.write(Gpa(0x5000), b"x"), b.load_u32(Gpa(0x5000))), (Err(Fault), Ok(0)));
        b.overlay(Gfn(5), None).unwrap();
    }

    #[test]
    fn what_is_no_sealed_page_is_not_taken_in() {
        let (_, b) = pair();
        let file = page_memfd().unwrap();
        assert!(b.take_in(Foreign(1), file.into(), true).is_err(), "it could shrink");
        let file = page_memfd().unwrap();
        file.set_len(2 * PAGE).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(FIXED_SIZE)).unwrap();
        assert!(b.take_in(Foreign(1), file.into(), true).is_err(), "two pages");
        assert!(b.take_in(Foreign(1), tempfile::tempfile().unwrap().into(), false).is_err(), "a file");
        assert!(b.place_foreign(Gfn(0x1000), Some((Foreign(1), true))).is_err());
    }
}
