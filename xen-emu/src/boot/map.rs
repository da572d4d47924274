//! Memory for the boot: kernel and ramdisk files as bytes, without a copy, and room to unpack.
#![expect(unsafe_code, reason = "mapping a file is unsafe: another process may change it meanwhile")]

use memmap2::{Advice, Mmap, MmapMut};
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

/// Zero memory of this process, in huge pages where the host gives them: unpacking a kernel into small ones takes a
/// quarter longer.
///
/// # Errors
/// Out of memory.
pub fn anonymous(length: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(length)?;
    // A host built without huge pages refuses; then they are small.
    let _ = memory.advise(Advice::HugePage);
    Ok(memory)
}
