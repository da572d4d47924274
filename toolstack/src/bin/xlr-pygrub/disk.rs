//! The guest's disk as bytes: a raw image, or a qcow2 one through imago. And windows of it, for the file systems.

use anyhow::{Context, bail};
use imago::{
    FormatAccess, FormatDriverBuilder as _, PermissiveImplicitOpenGate, Storage as _, StorageOpenOptions,
};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use xen_emu_api::device::DiskFormat;

/// Bytes at offsets.
pub trait Disk {
    /// Bytes there are.
    fn size(&self) -> u64;
    /// Fill `buffer` from `offset` on; short of the end that is an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A disk in several hands.
pub type Shared = Rc<dyn Disk>;

struct Raw {
    file: File,
    size: u64,
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

type Bytes = imago::file::File;
type Qcow2 = imago::qcow2::Qcow2<Bytes>;

struct Mapped(FormatAccess<Bytes>);

impl Disk for Mapped {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match offset.checked_add(buffer.len() as u64) {
            Some(end) if end <= self.size() => self.0.read(buffer, offset),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
impl Disk for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.get(from..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Images on top of each other, as xen-emu has it.
const DEEPEST: usize = 200;

/// A file or block device; a FIFO would keep us waiting.
fn plain(path: &Path) -> anyhow::Result<File> {
    let opened = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = opened.with_context(|| path.display().to_string())?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        bail!("{}: neither a file nor a block device", path.display());
    }
    Ok(file)
}

/// A qcow2 image and what it stands on, by the rules of xen-emu.
fn qcow2(path: &Path, depth: usize) -> anyhow::Result<FormatAccess<Bytes>> {
    let name = path.display();
    if depth > DEEPEST {
        bail!("{name}: more than {DEEPEST} images on top of each other, or a loop of them");
    }
    plain(path)?;
    let builder = Qcow2::builder_path(path).write(false).backing(None).data_file(None);
    let opened = builder.open(PermissiveImplicitOpenGate::default());
    let mut image = opened.with_context(|| format!("{name}: qcow2"))?;
    if image.requires_external_data_file() {
        let data = image.implicit_external_data_file().cloned();
        let data = beside(path, &data.with_context(|| format!("{name}: its data file has no name"))?);
        plain(&data)?;
        let opened = Bytes::open(StorageOpenOptions::new().filename(&data));
        image.set_data_file(Some(opened.with_context(|| data.display().to_string())?));
    }
    if let Some(backing) = image.implicit_backing_file().cloned() {
        let below = beside(path, &backing);
        let layer = match image.implicit_backing_format().map(String::as_str) {
            Some("qcow2") => qcow2(&below, depth + 1)?,
            Some("raw" | "file") => raw(&below)?,
            // Who could write to it as a raw disk may have made it look like qcow2.
            None if !begins_as_qcow2(&below)? => raw(&below)?,
            None => bail!("{name}: the format of its backing file is not written in it"),
            Some(other) => bail!("{name}: its backing file has format {other}"),
        };
        image.set_backing(Some(layer));
    }
    Ok(FormatAccess::new(image))
}

fn raw(path: &Path) -> anyhow::Result<FormatAccess<Bytes>> {
    plain(path)?;
    let builder = imago::raw::Raw::<Bytes>::builder_path(path).write(false);
    let opened = builder.open(PermissiveImplicitOpenGate::default());
    Ok(FormatAccess::new(opened.with_context(|| path.display().to_string())?))
}

fn begins_as_qcow2(path: &Path) -> anyhow::Result<bool> {
    let mut magic = [0; 4];
    Ok(plain(path)?.read_exact_at(&mut magic, 0).is_ok() && &magic == b"QFI\xfb")
}

/// A name in an image's header is relative to the image.
fn beside(image: &Path, name: &str) -> PathBuf {
    image.parent().unwrap_or(Path::new("/")).join(name.strip_prefix("file:").unwrap_or(name))
}

/// Open an image for reading, and all that it stands on.
///
/// # Errors
/// The host's; neither a file nor a block device; not what `format` says.
pub fn open(image: &Path, format: DiskFormat) -> anyhow::Result<Shared> {
    let mut file = plain(image)?;
    Ok(match format {
        DiskFormat::Raw => {
            let size = file.seek(SeekFrom::End(0))?;
            Rc::new(Raw { file, size })
        }
        DiskFormat::Qcow2 => Rc::new(Mapped(qcow2(image, 1)?)),
    })
}

/// A part of a disk, which file systems take for all there is.
#[derive(Clone)]
pub struct Window {
    disk: Shared,
    start: u64,
    size: u64,
    at: u64,
}

impl Window {
    /// `size` bytes from `start` on, as far as there are so many.
    pub fn new(disk: &Shared, start: u64, size: u64) -> Self {
        let size = size.min(disk.size().saturating_sub(start));
        Window { disk: disk.clone(), start, size, at: 0 }
    }

    /// Fill `buffer` from `offset` on.
    ///
    /// # Errors
    /// The disk's; a read that leaves the window.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match offset.checked_add(buffer.len() as u64) {
            Some(end) if end <= self.size => self.disk.read_at(self.start.saturating_add(offset), buffer),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The bytes at `offset` are these.
    pub fn has(&self, offset: u64, magic: &[u8]) -> bool {
        let mut bytes = vec![0; magic.len()];
        self.read_at(offset, &mut bytes).is_ok() && bytes == magic
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        let Some(buffer) = buffer.get_mut(..count) else { return Ok(0) };
        self.read_at(self.at, buffer)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// The FAT crate asks for it.
impl Write for Window {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ext4_view::Ext4Read for Window {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.read_at(start_byte, dst)?)
    }
}
