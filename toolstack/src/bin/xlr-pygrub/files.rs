//! The file systems a kernel may lie on, read-only, by their crates.

use crate::disk::Window;
use crate::journal;
use anyhow::{Context, anyhow, bail};
use ext4_view::{Ext4, Ext4Error};
use std::io::{self, Read, Seek, SeekFrom};

/// A file to be read from its start.
pub struct Opened<'a> {
    /// Bytes it says to have.
    pub size: u64,
    /// Those.
    pub bytes: Box<dyn Read + 'a>,
}

/// A file system. Paths are absolute.
pub trait Files {
    /// What messages call it.
    fn kind(&self) -> &'static str;
    /// As `search --fs-uuid` knows it, in lower case.
    fn uuid(&self) -> String;
    /// As `search --label` knows it.
    fn label(&self) -> String;
    /// A regular file; `None` when there is none of that name.
    fn open(&self, path: &str) -> io::Result<Option<Opened<'_>>>;
    /// Names of what is in a directory; none when it is not there.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
}

/// No directory that matters has more.
const MOST_NAMES: usize = 4096;

/// What is recognised but cannot be read: offset, magic, name.
const FOREIGN: &[(u64, &[u8], &str)] = &[
    (0, b"XFSB", "XFS"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (512, b"LABELONE", "LVM"),
    (4086, b"SWAPSPACE2", "swap"),
    (32769, b"CD001", "ISO 9660"),
    (3, b"NTFS    ", "NTFS"),
    (0, b"hsqs", "squashfs"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
];

/// The file system in `window`.
///
/// # Errors
/// With its name where it is known: one that cannot be read, or a damaged one.
pub fn open(window: &Window) -> anyhow::Result<Box<dyn Files>> {
    if window.has(1024 + 0x38, &[0x53, 0xef]) {
        let bytes = journal::replayed(window).context("ext4")?;
        let ext = Ext4::load(bytes).map_err(|e| anyhow!("ext4: {e}"))?;
        return Ok(Box::new(ext));
    }
    if let Some((.., name)) = FOREIGN.iter().find(|(at, magic, _)| window.has(*at, magic)) {
        bail!("{name}, which cannot be read");
    }
    if window.has(54, b"FAT") || window.has(82, b"FAT") {
        let options = fatfs::FsOptions::new();
        let fat = fatfs::FileSystem::new(window.clone(), options).context("FAT")?;
        return Ok(Box::new(fat));
    }
    bail!("no file system known here")
}

/// Not there, as opposed to not readable.
fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn found<T>(result: Result<T, Ext4Error>) -> io::Result<Option<T>> {
    match result.map_err(io::Error::from) {
        Ok(found) => Ok(Some(found)),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Files for Ext4 {
    fn kind(&self) -> &'static str {
        "ext4"
    }

    fn uuid(&self) -> String {
        Ext4::uuid(self).to_string()
    }

    fn label(&self) -> String {
        Ext4::label(self).to_str().unwrap_or_default().to_owned()
    }

    fn open(&self, path: &str) -> io::Result<Option<Opened<'_>>> {
        let Some(metadata) = found(Ext4::metadata(self, path))? else { return Ok(None) };
        if !metadata.file_type().is_regular_file() {
            return Ok(None);
        }
        let file = Ext4::open(self, path).map_err(io::Error::from)?;
        Ok(Some(Opened { size: metadata.len(), bytes: Box::new(file) }))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let Some(entries) = found(self.read_dir(path))? else { return Ok(Vec::new()) };
        let names = entries.take(MOST_NAMES).map(|entry| {
            let entry = entry.map_err(io::Error::from)?;
            Ok(entry.file_name().as_str().unwrap_or_default().to_owned())
        });
        names.collect()
    }
}

impl Files for fatfs::FileSystem<Window> {
    fn kind(&self) -> &'static str {
        "FAT"
    }

    fn uuid(&self) -> String {
        let id = self.volume_id();
        format!("{:04x}-{:04x}", id >> 16, id & 0xffff)
    }

    fn label(&self) -> String {
        self.volume_label()
    }

    fn open(&self, path: &str) -> io::Result<Option<Opened<'_>>> {
        let mut file = match self.root_dir().open_file(path.trim_matches('/')) {
            Ok(file) => file,
            // What is a directory is said in `Other` here.
            Err(error) if absent(&error) || error.kind() == io::ErrorKind::Other => return Ok(None),
            Err(error) => return Err(error),
        };
        let size = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Some(Opened { size, bytes: Box::new(file) }))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let dir = match self.root_dir().open_dir(path.trim_matches('/')) {
            Ok(dir) => dir,
            Err(error) if absent(&error) || error.kind() == io::ErrorKind::Other => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        dir.iter().take(MOST_NAMES).map(|entry| Ok(entry?.file_name())).collect()
    }
}
