//! qcow2 images by the crate imago, with their backing files, each of which is locked for reading.
//!
//! Before an image is written to, its reference counts are put right ([`repair`]); from then on its file is whole at every
//! moment ([`ordered`]).

mod layout;
mod ordered;
mod repair;
#[cfg(test)]
mod tests;
mod uses;

use super::sys::{self, Buffers};
use super::{Discard, DiskError, Image, Options, lock, open_file};
use imago::file::File;
use imago::format::PreallocateMode;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::{
    DynStorage, FormatAccess, FormatDriverBuilder, Mapping, PermissiveImplicitOpenGate, Storage,
    StorageOpenOptions,
};
use ordered::{Medium, Store, Tables};
use std::io;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use xen_emu_api::device::DiskCache;

type Layer = imago::qcow2::Qcow2<Store>;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Layers on top of each other.
const DEEPEST: usize = 200;
/// Bytes of tables that wait in memory for a flush, and discarded ranges that do; with more there is one unasked.
const HELD: usize = 16 << 20;
const DISCARDED: usize = 4096;

/// A qcow2 image and what is below it.
pub struct Qcow2 {
    access: RwLock<FormatAccess<Store>>,
    /// Of a writable image.
    tables: Option<Arc<Tables>>,
    /// Its data file, if it has one.
    data: Option<Medium>,
    /// Held by each write while it lasts, and by a flush while it takes what is to be written.
    writes: RwLock<()>,
    /// One flush at a time.
    turn: Mutex<()>,
    /// A flush failed: nobody knows what is on the disk.
    failed: AtomicBool,
    sector_size: u32,
    discard: Option<Discard>,
    /// The image's own file, if what it has of the disk lies in it.
    holes: Option<std::fs::File>,
    /// Ranges of the disk that read as zeros and still have their clusters, until the next flush.
    discarded: Mutex<Vec<(u64, u64)>>,
    _locks: Vec<std::fs::File>,
}

/// What is known of the layers above the one that is being opened.
struct Stack<'a> {
    options: &'a Options,
    files: Vec<std::fs::File>,
    seen: Vec<(u64, u64, PathBuf)>,
    tables: Option<Arc<Tables>>,
    /// A layer has its data in a file beside it.
    elsewhere: bool,
    /// The topmost one's.
    data: Option<Medium>,
    /// What lies between the writable image and its file.
    between: &'a dyn Fn(File) -> Box<dyn DynStorage>,
}

impl Qcow2 {
    /// Opens and locks the whole chain.
    ///
    /// # Errors
    /// Of the layer that is missing, broken, in use, or there twice.
    pub fn open(path: &Path, options: &Options) -> Result<Qcow2, DiskError> {
        Qcow2::open_through(path, options, &|file| Box::new(file))
    }

    /// The same with something between the writable image and its file.
    fn open_through(
        path: &Path,
        options: &Options,
        between: &dyn Fn(File) -> Box<dyn DynStorage>,
    ) -> Result<Qcow2, DiskError> {
        let mut stack = Stack {
            options,
            files: Vec::new(),
            seen: Vec::new(),
            tables: None,
            elsewhere: false,
            data: None,
            between,
        };
        let access = stack.layer(path, options.writable)?;
        if let Some(tables) = stack.tables.as_ref().filter(|tables| tables.held() > 0) {
            // The crate has cleared the features that a program must know to keep true (autoclear): on the disk before any data change.
            tables.seal();
            tables.commit().map_err(|e| DiskError::io(path, e))?;
        }
        // Version 2 cannot say that a cluster reads as zeros.
        let cluster = access.inner().zero_granularity().and_then(|bytes| u32::try_from(bytes).ok());
        let discard = cluster.map(|granularity| Discard { granularity, alignment: 0, secure: false });
        let sector_size = options.sector_size.unwrap_or(512);
        let own = stack.files.first().filter(|_| options.writable && !stack.elsewhere);
        let holes = own.and_then(|file| file.try_clone().ok());
        Ok(Qcow2 {
            access: RwLock::new(access),
            tables: stack.tables,
            data: stack.data,
            writes: RwLock::default(),
            turn: Mutex::default(),
            failed: AtomicBool::new(false),
            sector_size,
            discard,
            holes,
            discarded: Mutex::default(),
            _locks: stack.files,
        })
    }

    fn access(&self) -> RwLockReadGuard<'_, FormatAccess<Store>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing else happens meanwhile.
    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<Store>> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings everything to the disk that is sealed when `seal` is done; what that returns is kept as long. After an error it fails for
    /// ever: the host tells of lost bytes only once.
    fn settle<T>(&self, seal: impl FnOnce() -> io::Result<T>) -> io::Result<()> {
        let Some(tables) = &self.tables else { return Ok(()) };
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("an earlier flush failed"));
        }
        let settled = guarded(|| {
            let _held = seal()?;
            self.data.as_ref().map_or(Ok(()), |data| data.sync())?;
            tables.commit()
        });
        self.failed.store(settled.is_err(), Ordering::Relaxed);
        settled
    }

    /// What the crate keeps in memory becomes the next commit.
    fn seal(&self, access: &FormatAccess<Store>) -> io::Result<()> {
        access.flush()?;
        self.tables.iter().for_each(|tables| tables.seal());
        Ok(())
    }

    /// Frees clusters. To be called alone, and until a commit has brought what `f` did to the disk, nothing may be allocated: the image there
    /// still uses them.
    fn freeing<T>(&self, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.tables.iter().for_each(|tables| tables.freeing(true));
        let result = guarded(f);
        self.tables.iter().for_each(|tables| tables.freeing(false));
        result
    }
}

/// A guest need not flush before it goes.
impl Drop for Qcow2 {
    fn drop(&mut self) {
        if !self.failed.load(Ordering::Relaxed)
            && let Err(e) = self.flush()
        {
            tracing::error!("qcow2 image: the last writes are lost: {e}");
        }
    }
}

impl Qcow2 {
    /// Makes whole clusters read as zeros and gives the host back what they took of the image's file. They stay their owner's: others may
    /// have them when the file's tables do not say so any more, after a flush ([`Qcow2::release`]).
    fn punch(&self, access: &mut FormatAccess<Store>, mut at: u64, len: u64) -> io::Result<()> {
        let Some(Discard { granularity, .. }) = self.discard else { return Ok(()) };
        let cluster = u64::from(granularity);
        let (end, size) = (at.saturating_add(len), access.size());
        // The last cluster need not be whole.
        let end = if end < size { end / cluster * cluster } else { size };
        at = at.checked_next_multiple_of(cluster).unwrap_or(end);
        while at < end {
            let (mapping, len) = access.get_mapping(at, end - at)?;
            match (mapping, &self.holes) {
                (Mapping::Zero { .. }, _) => {}
                // What cannot be written to in place is another's too: a backing file's, or a snapshot's.
                (Mapping::Raw { offset, writable: true, .. }, Some(file)) => {
                    access.write_zeroes(at, len)?;
                    if let (Mapping::Zero { .. }, all) = access.get_mapping(at, len)?
                        && all == len
                    {
                        // Zeros it is in any case.
                        let _ = sys::punch(file, offset, len);
                        self.discarded().push((at, len));
                    }
                }
                _ => access.discard_to_any(at, len)?,
            }
            if len == 0 {
                break;
            }
            at += len;
        }
        Ok(())
    }

    /// Frees the clusters that were discarded and not written to since. It allocates none: their L2 tables are there, and this image's alone.
    fn release(access: &mut FormatAccess<Store>, discarded: &[(u64, u64)]) -> io::Result<()> {
        for (start, len) in discarded {
            let (mut at, end) = (*start, start + len);
            while at < end {
                let (mapping, len) = access.get_mapping(at, end - at)?;
                if let Mapping::Zero { .. } = mapping {
                    access.discard_to_any(at, len)?;
                }
                if len == 0 {
                    break;
                }
                at += len;
            }
        }
        Ok(())
    }

    fn discarded(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes when much waits for it.
    fn bound(&self) -> io::Result<()> {
        let held = self.tables.as_ref().is_some_and(|tables| tables.held() > HELD);
        if held || self.discarded().len() > DISCARDED { self.flush() } else { Ok(()) }
    }
}

impl Stack<'_> {
    fn layer(&mut self, path: &Path, writable: bool) -> Result<FormatAccess<Store>, DiskError> {
        let mut file = self.enter(path, writable)?;
        let mut magic = [0; 4];
        if file.read_exact(&mut magic).is_err() || magic != MAGIC {
            return Err(DiskError::format(path, "not a qcow2 image; for plain bytes say format=raw"));
        }
        if writable {
            self.repair(&file, path)?;
        }
        self.files.push(file);
        let opened = guarded(|| {
            let medium = self.medium(path, writable)?;
            let (tables, data) = match writable {
                true => (Store::tables(self.tables(medium.clone())?), Store::data(medium)),
                false => (Store::plain(medium.clone()), Store::plain(medium)),
            };
            let builder = Layer::builder(tables).write(writable).backing(None);
            builder.data_file(Some(data)).open(PermissiveImplicitOpenGate::default())
        });
        let mut layer =
            opened.map_err(|e| DiskError::format(path, format!("not a usable qcow2 image: {e}")))?;
        if layer.requires_external_data_file() {
            let name = layer.implicit_external_data_file().cloned();
            let name = name.ok_or_else(|| DiskError::format(path, "its data file has no name"))?;
            let data = beside(path, &name);
            let lock = self.enter(&data, writable)?;
            self.files.push(lock);
            self.elsewhere = true;
            let opened = File::open(storage(false).filename(&data).write(writable));
            let opened: Medium = Arc::new(Box::new(opened.map_err(|e| DiskError::io(&data, e))?));
            self.data = self.data.take().or_else(|| writable.then(|| opened.clone()));
            layer.set_data_file(Some(Store::plain(opened)));
        }
        if let Some(name) = layer.implicit_backing_file().cloned() {
            let format = layer.implicit_backing_format().cloned();
            layer.set_backing(Some(self.backing(path, &beside(path, &name), format.as_deref())?));
        }
        Ok(FormatAccess::new(layer))
    }

    /// The image below `above`, read-only.
    fn backing(
        &mut self,
        above: &Path,
        path: &Path,
        format: Option<&str>,
    ) -> Result<FormatAccess<Store>, DiskError> {
        match format {
            Some("qcow2") => self.layer(path, false),
            Some("raw" | "file") => self.raw(path),
            // Whoever could write to it as a raw disk may have made it look like qcow2, to read files of the host.
            None if !begins_as_qcow2(path) => self.raw(path),
            None => {
                let what = format!(
                    "the format of its backing file is not written in it: run qemu-img rebase -u -b {} -F FORMAT on it",
                    path.display()
                );
                Err(DiskError::format(above, what))
            }
            Some(format) => {
                let what = format!("its backing file has format {format}; raw and qcow2 are supported");
                Err(DiskError::format(above, what))
            }
        }
    }

    fn raw(&mut self, path: &Path) -> Result<FormatAccess<Store>, DiskError> {
        let file = self.enter(path, false)?;
        self.files.push(file);
        let opened = guarded(|| {
            let store = Store::plain(self.medium(path, false)?);
            imago::raw::Raw::builder(store).write(false).open(PermissiveImplicitOpenGate::default())
        });
        opened.map(FormatAccess::new).map_err(|e| DiskError::io(path, e))
    }

    /// A file of the chain for the crate; around the host's page cache if it may and can be.
    fn medium(&self, path: &Path, writable: bool) -> io::Result<Medium> {
        let open = |direct| File::open(storage(direct).filename(path).write(writable));
        let direct = self.options.cache == DiskCache::None;
        let file = direct.then(|| open(true).ok()).flatten().map_or_else(|| open(false), Ok)?;
        Ok(Arc::new(if writable { (self.between)(file) } else { Box::new(file) }))
    }

    /// Those of the writable image.
    fn tables(&mut self, medium: Medium) -> io::Result<Arc<Tables>> {
        let tables = Arc::new(Tables::new(medium)?);
        self.tables = Some(tables.clone());
        Ok(tables)
    }

    /// Before the crate sees the image.
    fn repair(&self, file: &std::fs::File, path: &Path) -> Result<(), DiskError> {
        let repaired = repair::repair(file, !self.options.force).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                DiskError::format(path, format!("a corrupt qcow2 image: {e}; try qemu-img check -r all"))
            }
            io::ErrorKind::Unsupported => DiskError::format(path, format!("not a usable qcow2 image: {e}")),
            _ => DiskError::io(path, e),
        })?;
        if repaired != repair::Repaired::default() {
            let repair::Repaired { raised, lowered } = repaired;
            tracing::info!("{}: was not closed: {raised} clusters counted, {lowered} freed", path.display());
        }
        Ok(())
    }

    /// Locks one file of the chain, which is not in it yet.
    fn enter(&mut self, path: &Path, writable: bool) -> Result<std::fs::File, DiskError> {
        let file = lock::open(path, writable, 0, self.options.force)?;
        let meta = file.metadata().map_err(|e| DiskError::io(path, e))?;
        let again = self.seen.iter().any(|(dev, ino, _)| (*dev, *ino) == (meta.dev(), meta.ino()));
        self.seen.push((meta.dev(), meta.ino(), path.to_owned()));
        if again {
            let chain: Vec<_> = self.seen.iter().map(|(.., path)| path.display().to_string()).collect();
            let first = self.seen.first().map_or(path, |(.., path)| path);
            return Err(DiskError::format(
                first,
                format!("its backing files form a loop: {}", chain.join(" -> ")),
            ));
        }
        if self.seen.len() > DEEPEST {
            return Err(DiskError::format(path, format!("more than {DEEPEST} images on top of each other")));
        }
        if !self.options.force {
            lock::lock(&file, path, writable)?;
        }
        Ok(file)
    }
}

fn storage(direct: bool) -> StorageOpenOptions {
    StorageOpenOptions::new().direct(direct)
}

/// A name in an image's header is relative to the image.
fn beside(image: &Path, name: &str) -> PathBuf {
    image.parent().unwrap_or(Path::new("/")).join(name.strip_prefix("file:").unwrap_or(name))
}

fn begins_as_qcow2(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = open_file(path, false, 0).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok());
    read && magic == MAGIC
}

/// A corrupt image may trip an assertion of the crate's: that is this image's error, not the domain's end.
fn guarded<T>(f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let broken = |_| Err(io::Error::other("the image is corrupt"));
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(broken)
}

impl Image for Qcow2 {
    fn len(&self) -> io::Result<u64> {
        Ok(self.access().size())
    }

    fn sector_sizes(&self) -> (u32, u32) {
        (self.sector_size, self.sector_size.max(4096))
    }

    fn discards(&self) -> Option<Discard> {
        self.discard
    }

    fn read(&self, at: u64, to: &mut Buffers) -> io::Result<()> {
        guarded(|| {
            let slices = to.slices();
            let (vector, _guard) = IoVectorMut::from_volatile_slice(&slices);
            self.access().readv(vector, at)
        })
    }

    fn write(&self, at: u64, from: &mut Buffers) -> io::Result<()> {
        guarded(|| {
            let slices = from.slices();
            let (vector, _guard) = IoVector::from_volatile_slice(&slices);
            let _write = self.writes.read().unwrap_or_else(PoisonError::into_inner);
            self.access().writev(vector, at)
        })?;
        self.bound()
    }

    fn flush(&self) -> io::Result<()> {
        self.settle(|| {
            if self.discarded().is_empty() {
                let _quiet = self.writes.write().unwrap_or_else(PoisonError::into_inner);
                return self.seal(&self.access()).map(|()| None);
            }
            let mut access = self.alone();
            let discarded = std::mem::take(&mut *self.discarded());
            if let Err(e) = self.freeing(|| Qcow2::release(&mut access, &discarded)) {
                tracing::warn!("qcow2 image: discarded clusters stay counted: {e}");
            }
            self.seal(&access)?;
            Ok(Some(access))
        })
    }

    fn discard(&self, at: u64, len: u64, secure: bool) -> io::Result<()> {
        if secure {
            return Err(io::ErrorKind::Unsupported.into());
        }
        guarded(|| self.punch(&mut self.alone(), at, len))?;
        self.bound()
    }

    fn grow(&self, bytes: u64) -> io::Result<()> {
        let mut grown = Ok(());
        self.settle(|| {
            // The old L1 table's clusters are free afterwards, and used by nobody before the new one is on the disk.
            let access = self.alone();
            grown = self.freeing(|| access.resize_grow(bytes, PreallocateMode::None));
            self.seal(&access)?;
            Ok(access)
        })?;
        grown
    }
}
