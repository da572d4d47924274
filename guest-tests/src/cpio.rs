//! Initramfs images: cpio "newc" as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

const DIR: u32 = 0o040_000;
const CHAR: u32 = 0o020_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive being written; folders above an entry are added by themselves. Paths are relative to the root, without a leading slash.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    folders: BTreeSet<String>,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An archive with nothing in it.
    pub fn new(out: W) -> Self {
        Self { out, folders: BTreeSet::new(), entries: 0 }
    }

    /// A folder of mode 0755.
    pub fn dir(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() || !self.folders.insert(path.to_owned()) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, DIR | 0o755, (0, 0), &[])
    }

    /// A regular file with the permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, FILE | mode, (0, 0), data)
    }

    /// A copy of the host's file at `from`, executable for all.
    pub fn copy(&mut self, path: &str, from: &Path) -> io::Result<()> {
        let data =
            fs::read(from).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", from.display())))?;
        self.file(path, 0o755, &data)
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device of mode 0600.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, CHAR | 0o600, (major, minor), &[])
    }

    /// Writes the end mark and gives the output back.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.dir(parent))
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) -> io::Result<()> {
        let too_large =
            |_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} is too large for an initramfs"));
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name = u32::try_from(path.len() + 1).map_err(too_large)?;
        self.entries += 1;
        let links = if mode & DIR == DIR { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device, device of a node, name with its NUL, checksum (unused)
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name, 0];
        let header: String = fields.iter().map(|f| format!("{f:08x}")).collect();
        write!(self.out, "070701{header}{path}\0")?;
        self.pad(6 + header.len() + path.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    /// Headers with their name, and contents, end on a multiple of four.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        let zeros = [0; 3];
        self.out.write_all(zeros.get(..written.next_multiple_of(4) - written).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_newc() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a/b", 0o644, b"hello").expect("a vector takes all");
        let bytes = archive.finish().expect("a vector takes all");
        assert!(
            bytes.starts_with(b"07070100000001000041ed"),
            "the folder comes first: a directory of mode 0755"
        );
        assert_eq!(
            bytes.get(94..112),
            Some(b"0000000200000000a\0".as_slice()),
            "name length, checksum, name"
        );
        let second = bytes.get(112..).expect("a second entry");
        assert!(second.starts_with(b"07070100000002000081a4"), "a regular file of mode 0644");
        assert_eq!(second.get(54..62), Some(b"00000005".as_slice()), "its size");
        assert_eq!(
            second.get(110..124),
            Some(b"a/b\0\0\0hello\0\0\0".as_slice()),
            "name and contents, padded to four"
        );
        assert_eq!(bytes.len() % 4, 0);
    }
}
