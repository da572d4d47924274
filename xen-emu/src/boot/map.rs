//! Kernel and ramdisk files as bytes, without a copy.
#![expect(unsafe_code, reason = "mapping a file is unsafe: another process may change it meanwhile")]

use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::path::Path;

/// Map a whole file read-only; an empty file maps to no bytes.
///
/// # Errors
/// Whatever opening or mapping says: no such file, no permission, a directory.
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the mapping is private and only ever read as plain bytes: whoever rewrites the file during the build
    // changes which bytes the guest gets, as with read(), and every number found in them is checked on a copy.
    unsafe { Mmap::map(&file) }
}
