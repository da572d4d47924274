//! qcow2 images by the crate imago, with their backing files, each of which is locked for reading.

use super::sys::{self, Buffers};
use super::{Discard, DiskError, Image, Options, lock, open_file, refcount};
use imago::file::File;
use imago::format::PreallocateMode;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::{
    FormatAccess, FormatDriverBuilder, Mapping, PermissiveImplicitOpenGate, Storage, StorageOpenOptions,
};
use std::io;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use xen_emu_api::device::DiskCache;

type Layer = imago::qcow2::Qcow2<File>;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Layers on top of each other.
const DEEPEST: usize = 200;

/// A qcow2 image and what is below it.
pub struct Qcow2 {
    access: RwLock<FormatAccess<File>>,
    sector_size: u32,
    discard: Option<Discard>,
    /// The image's own file, if what it has of the disk lies in it.
    holes: Option<std::fs::File>,
    _locks: Vec<std::fs::File>,
}

/// What is known of the layers above the one that is being opened.
struct Stack<'a> {
    options: &'a Options,
    files: Vec<std::fs::File>,
    seen: Vec<(u64, u64, PathBuf)>,
    /// A layer has its data in a file beside it.
    elsewhere: bool,
}

impl Qcow2 {
    /// Opens and locks the whole chain.
    ///
    /// # Errors
    /// Of the layer that is missing, broken, in use, or there twice.
    pub fn open(path: &Path, options: &Options) -> Result<Qcow2, DiskError> {
        let mut stack = Stack { options, files: Vec::new(), seen: Vec::new(), elsewhere: false };
        let access = stack.layer(path, options.writable)?;
        // Version 2 cannot say that a cluster reads as zeros.
        let cluster = access.inner().zero_granularity().and_then(|bytes| u32::try_from(bytes).ok());
        let discard = cluster.map(|granularity| Discard { granularity, alignment: 0, secure: false });
        let sector_size = options.sector_size.unwrap_or(512);
        let own = stack.files.first().filter(|_| options.writable && !stack.elsewhere);
        let holes = own.and_then(|file| file.try_clone().ok());
        Ok(Qcow2 { access: RwLock::new(access), sector_size, discard, holes, _locks: stack.files })
    }

    fn access(&self) -> RwLockReadGuard<'_, FormatAccess<File>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Qcow2 {
    /// Discards whole clusters, and gives the host back what they took of the image's file: the crate counts them as free, and
    /// leaves what is in them. Nobody else may allocate meanwhile.
    fn punch(&self, access: &mut FormatAccess<File>, at: u64, len: u64) -> io::Result<()> {
        let (Some(file), Some(Discard { granularity, .. })) = (&self.holes, self.discard) else {
            return Ok(());
        };
        let cluster = u64::from(granularity);
        let end = at.saturating_add(len).min(access.size()) / cluster * cluster;
        let mut at = at.next_multiple_of(cluster);
        while at < end {
            let (mapping, len) = access.get_mapping(at, end - at)?;
            // What cannot be written to in place is another's too: a backing file's, or a snapshot's.
            if let Mapping::Raw { offset, writable: true, .. } = mapping {
                access.discard_to_any(at, len)?;
                if let (Mapping::Zero { .. }, all) = access.get_mapping(at, len)?
                    && all == len
                {
                    // Free in the image it is in any case.
                    let _ = sys::punch(file, offset, len);
                }
            }
            if len == 0 {
                break;
            }
            at += len;
        }
        Ok(())
    }
}

impl Stack<'_> {
    fn layer(&mut self, path: &Path, writable: bool) -> Result<FormatAccess<File>, DiskError> {
        let mut file = self.enter(path, writable)?;
        let mut magic = [0; 4];
        if file.read_exact(&mut magic).is_err() || magic != MAGIC {
            return Err(DiskError::format(path, "not a qcow2 image; for plain bytes say format=raw"));
        }
        let counted = !writable || refcount::counts_what_it_uses(&file).unwrap_or(false);
        self.files.push(file);
        let opened = guarded(|| {
            let open = |direct| {
                let builder = Layer::builder_path(path).write(writable).backing(None).data_file(None);
                builder.storage_open_options(storage(direct)).open(PermissiveImplicitOpenGate::default())
            };
            self.direct().then(|| open(true).ok()).flatten().map_or_else(|| open(false), Ok)
        });
        let mut layer =
            opened.map_err(|e| DiskError::format(path, format!("not a usable qcow2 image: {e}")))?;
        if !counted {
            let what =
                "a corrupt qcow2 image: its reference counts deny what it uses; try qemu-img check -r all";
            return Err(DiskError::format(path, what));
        }
        if layer.requires_external_data_file() {
            let name = layer.implicit_external_data_file().cloned();
            let name = name.ok_or_else(|| DiskError::format(path, "its data file has no name"))?;
            let data = beside(path, &name);
            let lock = self.enter(&data, writable)?;
            self.files.push(lock);
            self.elsewhere = true;
            let opened = File::open(storage(false).filename(&data).write(writable));
            layer.set_data_file(Some(opened.map_err(|e| DiskError::io(&data, e))?));
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
    ) -> Result<FormatAccess<File>, DiskError> {
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

    fn raw(&mut self, path: &Path) -> Result<FormatAccess<File>, DiskError> {
        let file = self.enter(path, false)?;
        self.files.push(file);
        let opened = guarded(|| {
            let open = |direct| {
                let builder = imago::raw::Raw::<File>::builder_path(path).write(false);
                builder.storage_open_options(storage(direct)).open(PermissiveImplicitOpenGate::default())
            };
            self.direct().then(|| open(true).ok()).flatten().map_or_else(|| open(false), Ok)
        });
        opened.map(FormatAccess::new).map_err(|e| DiskError::io(path, e))
    }

    fn direct(&self) -> bool {
        self.options.cache == DiskCache::None
    }

    /// Locks one file of the chain, which is not in it yet.
    fn enter(&mut self, path: &Path, writable: bool) -> Result<std::fs::File, DiskError> {
        let file = open_file(path, writable, 0)?;
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
            self.access().writev(vector, at)
        })
    }

    fn flush(&self) -> io::Result<()> {
        guarded(|| {
            self.access().flush()?;
            self.access().sync()
        })
    }

    fn discard(&self, at: u64, len: u64, secure: bool) -> io::Result<()> {
        if secure {
            return Err(io::ErrorKind::Unsupported.into());
        }
        guarded(|| {
            let access = &mut *self.access.write().unwrap_or_else(PoisonError::into_inner);
            self.punch(access, at, len)?;
            access.discard_to_any(at, len)
        })
    }

    fn grow(&self, bytes: u64) -> io::Result<()> {
        guarded(|| self.access().resize_grow(bytes, PreallocateMode::None))
    }
}
