//! Images whose bytes are the disk's: files and block devices.

use super::sys::{self, Buffers};
use super::{Discard, DiskError, Image, Options, lock};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use xen_emu_api::device::DiskCache;

/// A file or a block device.
pub struct Raw {
    file: File,
    block: bool,
    direct: Option<usize>,
    discard: Option<Discard>,
    sector_size: u32,
    physical: u32,
}

/// What O_DIRECT asks for: alignment of memory and of offsets.
#[derive(Clone, Copy)]
struct Alignment {
    memory: u32,
    offset: u32,
}

impl Raw {
    /// Opens and locks.
    ///
    /// # Errors
    /// There is no such image, or it is in use.
    pub fn open(path: &Path, options: &Options) -> Result<Raw, DiskError> {
        let failed = |e| DiskError::io(path, e);
        let flags = if options.cache == DiskCache::Writethrough { libc::O_DSYNC } else { 0 };
        let file = lock::open(path, options.writable, flags, options.force)?;
        if !options.force {
            lock::lock(&file, path, options.writable)?;
        }
        let block = file.metadata().map_err(failed)?.file_type().is_block_device();
        let (logical, physical) = if block { sys::block_sizes(&file).map_err(failed)? } else { (512, 512) };
        let sector_size = options.sector_size.unwrap_or(if logical == 4096 { 4096 } else { 512 });
        let direct = match options.cache {
            DiskCache::None => direct(&file, sector_size, block.then_some(logical)),
            _ => None,
        };
        let discard = discard(&file, block, options.writable).map_err(failed)?;
        let physical = physical.max(sector_size).max(direct.map_or(0, |d| d.offset));
        let direct = direct.and_then(|d| usize::try_from(d.memory).ok());
        Ok(Raw { file, block, direct, discard, sector_size, physical })
    }
}

/// Turns O_DIRECT on if every request of the guest will be aligned enough.
fn direct(file: &File, sector_size: u32, logical: Option<u32>) -> Option<Alignment> {
    let known = sys::direct_alignment(file).map(|(memory, offset)| Alignment { memory, offset });
    let known = known.or(logical.map(|size| Alignment { memory: size, offset: size }));
    let fits = |a: &Alignment| a.offset > 0 && a.offset <= sector_size && a.memory > 0;
    let plain = OFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GETFL).ok()?);
    if known.as_ref().is_some_and(|a| !fits(a)) {
        return None;
    }
    fcntl(file, FcntlArg::F_SETFL(plain | OFlag::O_DIRECT)).ok()?;
    let works = known.or_else(|| {
        let tried = [512, 4096].map(|n| Alignment { memory: n, offset: n });
        tried.into_iter().find(|a| reads_direct(file, *a)).filter(fits)
    });
    if works.is_none() {
        let _ = fcntl(file, FcntlArg::F_SETFL(plain));
    }
    works
}

/// Whether a read of this alignment is taken, or fails for its alignment.
fn reads_direct(file: &File, a: Alignment) -> bool {
    let Ok(len) = usize::try_from(a.offset) else { return false };
    match Buffers::own(len, len).read_from(file, 0) {
        Ok(()) => true,
        Err(e) => e.kind() == io::ErrorKind::UnexpectedEof,
    }
}

/// What discarding there is.
fn discard(file: &File, block: bool, writable: bool) -> io::Result<Option<Discard>> {
    let meta = file.metadata()?;
    if !writable {
        return Ok(None);
    }
    if !block {
        let granularity = u32::try_from(meta.blksize()).unwrap_or(4096);
        return Ok(Some(Discard { granularity, alignment: 0, secure: false }));
    }
    let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition's queue is its disk's.
    let queue =
        if device.join("partition").exists() { device.join("../queue") } else { device.join("queue") };
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
    let granularity = number(queue.join("discard_granularity")).unwrap_or(0);
    if granularity == 0 {
        return Ok(None);
    }
    let alignment = number(device.join("discard_alignment")).unwrap_or(0);
    // A range that is none: refused as such only by a device that could.
    let probe = sys::block_discard(file, 1, 1, true);
    let secure = probe.is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL));
    Ok(Some(Discard { granularity, alignment, secure }))
}

impl Image for Raw {
    fn len(&self) -> io::Result<u64> {
        if self.block { sys::block_len(&self.file) } else { Ok(self.file.metadata()?.len()) }
    }

    fn sector_sizes(&self) -> (u32, u32) {
        (self.sector_size, self.physical)
    }

    fn discards(&self) -> Option<Discard> {
        self.discard
    }

    fn read(&self, at: u64, to: &mut Buffers) -> io::Result<()> {
        to.read_from(&self.file, at)
    }

    fn write(&self, at: u64, from: &mut Buffers) -> io::Result<()> {
        from.write_to(&self.file, at)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, at: u64, len: u64, secure: bool) -> io::Result<()> {
        if self.block {
            return sys::block_discard(&self.file, at, len, secure);
        }
        sys::punch(&self.file, at, len)
    }

    fn grow(&self, bytes: u64) -> io::Result<()> {
        if self.block {
            let why = "a block device is resized by its own tools";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        self.file.set_len(bytes)
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn direct(&self) -> Option<usize> {
        self.direct
    }
}
