//! The file systems of a disk under GRUB's names, and paths on them.

use crate::disk::{Shared, Window};
use crate::files::{self, Files, Opened};
use crate::partitions::{self, Partition, Scheme};
use anyhow::{Context, bail};
use std::io::Read;

/// The largest menu or environment block that is read.
const MAX_TEXT: u64 = 1 << 20;

/// A path on one of the volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the volume.
    pub volume: usize,
    /// Absolute.
    pub path: String,
}

/// One file system.
pub struct Volume {
    /// Number of its partition; 0 = the whole disk.
    pub number: u32,
    /// It.
    pub files: Box<dyn Files>,
}

/// All file systems that can be read.
pub struct Volumes {
    scheme: Scheme,
    /// In the order of the partitions.
    pub list: Vec<Volume>,
    /// What there is besides, for messages.
    unread: Vec<String>,
}

fn named(number: u32) -> String {
    if number == 0 { "the whole disk".to_owned() } else { format!("partition {number}") }
}

impl Volumes {
    /// Open what is on `disk`; what cannot be read is remembered.
    pub fn open(disk: &Shared) -> Volumes {
        let mut first = None;
        for (scheme, table) in partitions::of(&**disk) {
            let volumes = Volumes::in_table(disk, scheme, &table);
            if !volumes.list.is_empty() {
                return volumes;
            }
            first.get_or_insert(volumes);
        }
        first.unwrap_or(Volumes { scheme: Scheme::Msdos, list: Vec::new(), unread: Vec::new() })
    }

    fn in_table(disk: &Shared, scheme: Scheme, table: &[Partition]) -> Volumes {
        let mut windows: Vec<_> =
            table.iter().map(|part| (part.number, Window::new(disk, part.start, part.size))).collect();
        if windows.is_empty() {
            windows.push((0, Window::new(disk, 0, disk.size())));
        }
        let mut volumes = Volumes { scheme, list: Vec::new(), unread: Vec::new() };
        for (number, window) in windows {
            match files::open(&window) {
                Ok(files) => volumes.list.push(Volume { number, files }),
                Err(error) => volumes.unread.push(format!("{}: {error:#}", named(number))),
            }
        }
        volumes
    }

    /// In memory.
    #[cfg(test)]
    pub fn of(list: Vec<Volume>) -> Volumes {
        Volumes { scheme: Scheme::Gpt, list, unread: Vec::new() }
    }

    /// One line: nothing to boot in all this.
    pub fn describe(&self) -> String {
        let read = self.list.iter().map(|v| format!("{}: {}, no boot menu", named(v.number), v.files.kind()));
        let all: Vec<_> = read.chain(self.unread.iter().cloned()).collect();
        format!("nothing to boot from ({})", all.join("; "))
    }

    /// What something may be on that is not found; to be put behind a message.
    pub fn not_read(&self) -> String {
        self.unread.iter().map(|what| format!("; {what}")).collect()
    }

    /// GRUB's name of a volume.
    pub fn name(&self, volume: usize) -> String {
        let kind = match self.scheme {
            Scheme::Gpt => "gpt",
            Scheme::Msdos => "msdos",
        };
        match self.list.get(volume).map_or(0, |volume| volume.number) {
            0 => "hd0".to_owned(),
            number => format!("hd0,{kind}{number}"),
        }
    }

    /// The volume that GRUB calls `name`, whatever it calls the disk.
    pub fn find(&self, name: &str) -> Option<usize> {
        let number = match name.rsplit_once(',') {
            None => 0,
            Some((_, part)) => part.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok()?,
        };
        self.list.iter().position(|volume| volume.number == number)
    }

    /// `path` or `(DEVICE)/path`; `root` is where paths without a device are, `home` where those on an unknown one are
    /// looked for: the disk may have had another name when the menu was written.
    pub fn place(&self, path: &str, root: &str, home: usize) -> Place {
        let (device, path) = match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device, path),
            None => (root, path),
        };
        let volume = self.find(device).unwrap_or(home);
        Place { volume, path: format!("/{}", path.trim_start_matches('/')) }
    }

    fn files(&self, volume: usize) -> Option<&dyn Files> {
        self.list.get(volume).map(|volume| &*volume.files)
    }

    /// Bytes of a file; `None` when it is not there or cannot be read.
    pub fn size(&self, place: &Place) -> Option<u64> {
        Some(self.files(place.volume)?.open(&place.path).ok()??.size)
    }

    /// Something is there: a file or a directory with something in it.
    pub fn is_dir(&self, place: &Place) -> bool {
        !self.list_dir(place).is_empty()
    }

    /// Names in a directory.
    pub fn list_dir(&self, place: &Place) -> Vec<String> {
        self.files(place.volume).and_then(|files| files.list(&place.path).ok()).unwrap_or_default()
    }

    /// A file to be handed over.
    ///
    /// # Errors
    /// With its name: not there, not readable.
    pub fn open_file(&self, place: &Place) -> anyhow::Result<Opened<'_>> {
        let (path, on) = (&place.path, self.name(place.volume));
        let Some(files) = self.files(place.volume) else { bail!("{path}: no volume {on}") };
        let opened = files.open(path).with_context(|| path.clone())?;
        opened.with_context(|| format!("{path}: no such file on {on}{}", self.not_read()))
    }

    /// A menu; bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    /// As [`Volumes::open_file`]; one that is too long.
    pub fn text(&self, place: &Place) -> anyhow::Result<String> {
        let file = self.open_file(place)?;
        if file.size > MAX_TEXT {
            bail!("{}: {} bytes are too long for a boot menu", place.path, file.size);
        }
        let mut bytes = Vec::new();
        file.bytes.take(MAX_TEXT).read_to_end(&mut bytes).with_context(|| place.path.clone())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The first volume whose file system `matches`.
    pub fn search(&self, matches: impl Fn(usize, &dyn Files) -> bool) -> Option<usize> {
        self.list.iter().enumerate().position(|(index, volume)| matches(index, &*volume.files))
    }
}
