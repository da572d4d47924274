//! Disk images: raw files, block devices and qcow2 behind one interface, and the engines that carry out requests on
//! them without copying the guest's bytes.
//!
//! A [`Disk`] is shared by the queues of a device. Each queue has an [`engine::Engine`] of its own: io_uring on raw
//! images where the host has it, else threads.

pub mod engine;
mod lock;
mod qcow2;
mod raw;
pub mod sys;
mod threads;
mod uring;

use crate::backend::device::DeviceError;
use engine::{Io, Op};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use sys::Buffers;
use xen_emu_api::device::{DiskCache, DiskConfig, DiskFormat};

/// Why there is no disk, in one line.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host's.
    #[error("disk image {}: {source}", path.display())]
    Io {
        /// The image, or one of its backing files.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("disk image {}: {what} cannot be a disk; give a file or a block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Somebody else has it open.
    #[error("disk image {} is in use by {holder}; add `!` to the disk's mode to share it all the same", path.display())]
    InUse {
        /// The image, or one of its backing files.
        path: PathBuf,
        /// Who.
        holder: String,
    },
    /// The image's format is broken, or of a kind that is not supported.
    #[error("disk image {}: {what}", path.display())]
    Format {
        /// The image, or one of its backing files.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl DiskError {
    fn io(path: &Path, source: io::Error) -> DiskError {
        DiskError::Io { path: path.to_owned(), source }
    }

    fn format(path: &Path, what: impl Into<String>) -> DiskError {
        DiskError::Format { path: path.to_owned(), what: what.into() }
    }
}

impl From<DiskError> for DeviceError {
    fn from(error: DiskError) -> DeviceError {
        DeviceError(error.to_string())
    }
}

/// How an image is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Format.
    pub format: DiskFormat,
    /// For writing too.
    pub writable: bool,
    /// How writes reach it.
    pub cache: DiskCache,
    /// Logical sector size, 512 or 4096; none = what the image has.
    pub sector_size: Option<u32>,
    /// Without locks.
    pub force: bool,
}

impl From<&DiskConfig> for Options {
    fn from(config: &DiskConfig) -> Options {
        Options {
            format: config.format,
            writable: config.writable,
            cache: config.cache,
            sector_size: config.sector_size,
            force: config.force,
        }
    }
}

/// What discarding an image offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Bytes that are discarded at once.
    pub granularity: u32,
    /// Where the first such piece begins, bytes.
    pub alignment: u32,
    /// Secure discard.
    pub secure: bool,
}

/// The operations on an image of any format; all block, from any thread.
trait Image: Send + Sync {
    /// Bytes it has now.
    fn len(&self) -> io::Result<u64>;
    /// Logical and physical sector size, bytes.
    fn sector_sizes(&self) -> (u32, u32);
    /// None = it cannot.
    fn discards(&self) -> Option<Discard>;
    /// Fill the buffers from offset `at` on.
    fn read(&self, at: u64, to: &mut Buffers) -> io::Result<()>;
    /// Write the buffers from offset `at` on.
    fn write(&self, at: u64, from: &mut Buffers) -> io::Result<()>;
    /// What was written before is on the disk afterwards.
    fn flush(&self) -> io::Result<()>;
    /// The bytes are not needed any more.
    fn discard(&self, at: u64, len: u64, secure: bool) -> io::Result<()>;
    /// Become larger.
    fn grow(&self, bytes: u64) -> io::Result<()>;
    /// The file that is the disk, byte by byte.
    fn file(&self) -> Option<&File> {
        None
    }
    /// O_DIRECT is on, and asks for memory of this alignment.
    fn direct(&self) -> Option<usize> {
        None
    }
}

/// An open, locked image.
pub struct Disk {
    image: Box<dyn Image>,
    path: PathBuf,
    cache: DiskCache,
    writable: bool,
    bytes: AtomicU64,
    bounces: AtomicU64,
    flushes: Flushes,
}

impl Disk {
    /// Opens and locks an image with all its backing files.
    ///
    /// # Errors
    /// One line that says which file and what is wrong with it.
    pub fn open(path: &Path, options: &Options) -> Result<Disk, DiskError> {
        let image: Box<dyn Image> = match options.format {
            DiskFormat::Raw => Box::new(raw::Raw::open(path, options)?),
            DiskFormat::Qcow2 => Box::new(qcow2::Qcow2::open(path, options)?),
        };
        let disk = Disk {
            image,
            path: path.to_owned(),
            cache: options.cache,
            writable: options.writable,
            bytes: AtomicU64::new(0),
            bounces: AtomicU64::new(0),
            flushes: Flushes::default(),
        };
        disk.refresh().map_err(|e| DiskError::io(path, e))?;
        Ok(disk)
    }

    /// The image.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes, a multiple of the sector size.
    pub fn len(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Logical and physical sector size, bytes.
    pub fn sector_sizes(&self) -> (u32, u32) {
        self.image.sector_sizes()
    }

    /// None = it cannot.
    pub fn discards(&self) -> Option<Discard> {
        self.image.discards().filter(|_| self.writable)
    }

    /// `MAJOR:MINOR` in hexadecimal if it is a block device.
    pub fn device(&self) -> Option<String> {
        use std::os::unix::fs::MetadataExt;
        let known = self.image.file()?.metadata().ok()?;
        let number = known.rdev();
        known
            .file_type()
            .is_block_device()
            .then(|| format!("{:x}:{:x}", libc::major(number), libc::minor(number)))
    }

    /// Transfers go around the host's page cache.
    #[cfg(test)]
    pub fn direct(&self) -> bool {
        self.image.direct().is_some()
    }

    /// Requests whose memory had to be copied for O_DIRECT, so far.
    #[cfg(test)]
    pub fn bounces(&self) -> u64 {
        self.bounces.load(Ordering::Relaxed)
    }

    /// Looks again how long the image is.
    ///
    /// # Errors
    /// The host's.
    pub fn refresh(&self) -> io::Result<u64> {
        let sector = u64::from(self.image.sector_sizes().0);
        let bytes = self.image.len()? / sector * sector;
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Makes the image longer.
    ///
    /// # Errors
    /// The host's, or it would become shorter.
    pub fn grow(&self, bytes: u64) -> io::Result<u64> {
        let invalid = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if !self.writable {
            return invalid("it is read-only and cannot be resized");
        }
        if bytes < self.image.len()? {
            return invalid("a disk in use is not made smaller: what is behind its new end would be lost");
        }
        self.image.grow(bytes)?;
        self.refresh()
    }

    /// Carries out a request in this thread.
    fn perform(&self, io: &mut Io) -> io::Result<()> {
        match io.op {
            Op::Read => self.image.read(io.at, &mut io.data),
            Op::Write => {
                self.image.write(io.at, &mut io.data)?;
                // A raw image is open with O_DSYNC then.
                let through = self.cache == DiskCache::Writethrough && self.image.file().is_none();
                if through { self.flush() } else { Ok(()) }
            }
            Op::Flush if self.cache == DiskCache::Unsafe => Ok(()),
            Op::Flush => self.flush(),
            Op::Discard { len, secure } => self.image.discard(io.at, len, secure),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.begin()?;
        let result = self.image.flush();
        self.flushes.end(result.is_ok());
        result
    }

    /// Puts memory of our own in the place of the guest's where O_DIRECT asks for better alignment.
    fn align(&self, io: &mut Io) {
        let Some(align) = self.image.direct() else { return };
        if !matches!(io.op, Op::Read | Op::Write) || io.data.aligned(align) {
            return;
        }
        self.bounces.fetch_add(1, Ordering::Relaxed);
        let own = Buffers::own(io.data.len(), align);
        if io.op == Op::Write {
            io.data.copy_to(&own);
        }
        io.bounced = Some(std::mem::replace(&mut io.data, own));
    }

    /// After the request: what was read into our memory goes to the guest's.
    fn settle(io: &mut Io, result: &io::Result<()>) {
        let Some(guest) = io.bounced.take() else { return };
        if io.op == Op::Read && result.is_ok() {
            io.data.rewind();
            io.data.copy_to(&guest);
        }
        io.data = guest;
    }
}

/// Whose turn it is to flush. The host tells of bytes that it could not write only once for an open file, whoever asks: so
/// no two flushes are under way at once, and after one that failed all fail until the image is opened again.
#[derive(Default)]
struct Flushes {
    state: Mutex<FlushState>,
    ended: Condvar,
}

#[derive(Default)]
struct FlushState {
    busy: bool,
    failed: bool,
}

impl Flushes {
    fn state(&self) -> MutexGuard<'_, FlushState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn; [`Flushes::end`] ends it.
    ///
    /// # Errors
    /// An earlier one failed; it is nobody's turn then.
    fn begin(&self) -> io::Result<()> {
        let busy = |state: &mut FlushState| state.busy && !state.failed;
        let state = self.ended.wait_while(self.state(), busy);
        state.unwrap_or_else(PoisonError::into_inner).begin()
    }

    /// Takes the turn if that needs no waiting; false: it does.
    ///
    /// # Errors
    /// As [`Flushes::begin`].
    fn try_begin(&self) -> io::Result<bool> {
        let mut state = self.state();
        if state.busy && !state.failed { Ok(false) } else { state.begin().map(|()| true) }
    }

    fn end(&self, well: bool) {
        let mut state = self.state();
        state.busy = false;
        state.failed |= !well;
        drop(state);
        self.ended.notify_all();
    }
}

impl FlushState {
    fn begin(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier flush failed; what was written before it may be lost"));
        }
        self.busy = true;
        Ok(())
    }
}

/// Opens a file or block device, and nothing else.
fn open_file(path: &Path, writable: bool, flags: i32) -> Result<File, DiskError> {
    let failed = |e| DiskError::io(path, e);
    // Judged before it is opened: opening a FIFO waits, opening a tape winds.
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    let what = [
        (kind.is_dir(), "a directory"),
        (kind.is_char_device(), "a character device"),
        (kind.is_fifo(), "a FIFO"),
        (kind.is_socket(), "a socket"),
    ];
    if let Some((_, what)) = what.into_iter().find(|(is, _)| *is) {
        return Err(DiskError::Kind { path: path.to_owned(), what });
    }
    let mut options = File::options();
    options.read(true).write(writable).custom_flags(flags | libc::O_NONBLOCK | libc::O_CLOEXEC);
    options.open(path).map_err(failed)
}

#[cfg(test)]
pub mod tests;
