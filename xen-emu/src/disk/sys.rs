//! The system calls of disks that nobody wraps safely: vectored transfers between an image and volatile memory, and what
//! block devices answer to ioctls.
#![expect(unsafe_code, reason = "iovecs into guest memory, ioctls and statx")]

use crate::backend::device::GuestRam;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vm_memory::VolatileSlice;
use xen_domain::mem::{Fault, Gpa};

/// Where the bytes of a transfer are. Guest memory is only ever reached through these addresses, never by reference.
pub struct Buffers {
    iov: Vec<libc::iovec>,
    len: usize,
    hold: Hold,
}

/// What keeps the addresses valid.
enum Hold {
    Guest(Arc<dyn GuestRam>),
    /// The bytes wanted are those of the range, whose beginning is aligned.
    Own(Vec<u8>, Range<usize>),
}

// SAFETY: the addresses lead into mappings that `hold` keeps, or into its own heap memory, wherever it is moved to;
// nobody else has references into them.
unsafe impl Send for Buffers {}

impl Buffers {
    /// None yet, of this guest.
    pub fn guest(memory: Arc<dyn GuestRam>) -> Buffers {
        Buffers { iov: Vec::new(), len: 0, hold: Hold::Guest(memory) }
    }

    /// Memory of our own, zeroed, at a multiple of `align`.
    pub fn own(len: usize, align: usize) -> Buffers {
        let mut bytes = vec![0; len.saturating_add(align)];
        let start = bytes.as_ptr().align_offset(align).min(align);
        let base = bytes.as_mut_ptr().wrapping_add(start).cast();
        let hold = Hold::Own(bytes, start..start + len);
        Buffers { iov: vec![libc::iovec { iov_base: base, iov_len: len }], len, hold }
    }

    /// None again. Buffers of our own cannot be filled again.
    pub fn clear(&mut self) {
        self.iov.clear();
        self.len = 0;
    }

    /// Adds `len` bytes of the guest at `gpa`, within one page; pieces that follow each other become one.
    ///
    /// # Errors
    /// No RAM there.
    pub fn push(&mut self, gpa: Gpa, len: usize) -> Result<(), Fault> {
        let Hold::Guest(memory) = &self.hold else { return Err(Fault) };
        let slice = memory.slice(gpa, len)?;
        if slice.len() != len {
            return Err(Fault);
        }
        let base = slice.ptr_guard_mut().as_ptr();
        self.len += len;
        match self.iov.last_mut() {
            Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base => {
                last.iov_len += len
            }
            _ => self.iov.push(libc::iovec { iov_base: base.cast(), iov_len: len }),
        }
        Ok(())
    }

    /// Bytes not transferred yet.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The pieces not transferred yet, and their number, as system calls take them.
    pub fn iovecs(&self) -> (*const libc::iovec, usize) {
        (self.iov.as_ptr(), self.iov.len())
    }

    /// The only piece not transferred yet; `None` when there are more, or none.
    pub fn single(&self) -> Option<(*mut u8, u32)> {
        let [piece] = self.iov.as_slice() else { return None };
        Some((piece.iov_base.cast(), u32::try_from(piece.iov_len).ok()?))
    }

    /// Every piece begins and ends at a multiple of `align`.
    pub fn aligned(&self, align: usize) -> bool {
        let fits = |n: usize| n.is_multiple_of(align);
        self.iov.iter().all(|piece| fits(piece.iov_base.addr()) && fits(piece.iov_len))
    }

    /// The first `done` bytes have been transferred.
    pub fn skip(&mut self, mut done: usize) {
        self.len = self.len.saturating_sub(done);
        let whole = self.iov.iter().take_while(|piece| {
            let all = piece.iov_len <= done;
            done -= if all { piece.iov_len } else { 0 };
            all
        });
        let whole = whole.count();
        self.iov.drain(..whole);
        if let Some(first) = self.iov.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(done);
            first.iov_len -= done;
        }
    }

    /// The pieces not transferred yet.
    pub fn slices(&self) -> Vec<VolatileSlice<'_>> {
        let slice = |piece: &libc::iovec| {
            // SAFETY: valid as long as `hold`, which is borrowed with self; accesses of others are the guest's, and a
            // volatile slice is made for that.
            unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
        };
        self.iov.iter().map(slice).collect()
    }

    /// All of our own memory again, after a transfer.
    pub fn rewind(&mut self) {
        if let Hold::Own(bytes, range) = &mut self.hold {
            let base = bytes.as_mut_ptr().wrapping_add(range.start);
            self.len = range.len();
            self.iov = vec![libc::iovec { iov_base: base.cast(), iov_len: self.len }];
        }
    }

    /// Copies what both have, in order.
    pub fn copy_to(&self, to: &Buffers) {
        let (from, to) = (self.slices(), to.slices());
        let mut to = to.into_iter();
        let mut room = to.next();
        for mut piece in from {
            while let Some(space) = room {
                let n = piece.len().min(space.len());
                piece.copy_to_volatile_slice(space);
                let rests = (piece.offset(n), space.offset(n));
                let (Ok(rest), Ok(space)) = rests else { return };
                (piece, room) = (rest, if space.is_empty() { to.next() } else { Some(space) });
                if piece.is_empty() {
                    break;
                }
            }
        }
    }

    /// Reads from `file` at `at` until full.
    ///
    /// # Errors
    /// The system call's, or the file ends before.
    pub fn read_from(&mut self, file: &File, at: u64) -> io::Result<()> {
        self.transfer(at, |iov, count, at| {
            // SAFETY: valid iovecs, kept by self for the time of the call.
            unsafe { libc::preadv(file.as_raw_fd(), iov, count, at) }
        })
    }

    /// Writes all to `file` at `at`.
    ///
    /// # Errors
    /// The system call's.
    pub fn write_to(&mut self, file: &File, at: u64) -> io::Result<()> {
        self.transfer(at, |iov, count, at| {
            // SAFETY: as for reading.
            unsafe { libc::pwritev(file.as_raw_fd(), iov, count, at) }
        })
    }

    fn transfer(
        &mut self,
        mut at: u64,
        call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
    ) -> io::Result<()> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        while self.len > 0 {
            let count =
                libc::c_int::try_from(self.iov.len().min(1024)).map_err(|_| io::ErrorKind::InvalidInput)?;
            let n = call(self.iov.as_ptr(), count, libc::off_t::try_from(at).map_err(invalid)?);
            match usize::try_from(n) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.skip(n);
                    at += n as u64;
                }
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
            }
        }
        Ok(())
    }
}

mod ioctl {
    nix::ioctl_read_bad!(logical_block, libc::BLKSSZGET, libc::c_int);
    nix::ioctl_read_bad!(physical_block, libc::BLKPBSZGET, libc::c_uint);
    nix::ioctl_read!(size, 0x12, 114, u64);
    nix::ioctl_write_ptr_bad!(discard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(discard_secure, nix::request_code_none!(0x12, 125), [u64; 2]);
}

/// Logical and physical block size of a block device, bytes.
///
/// # Errors
/// It is none.
pub fn block_sizes(device: &File) -> io::Result<(u32, u32)> {
    let (mut logical, mut physical) = (0, 0);
    // SAFETY: an open file and integers of the ioctls' types.
    unsafe {
        ioctl::logical_block(device.as_raw_fd(), &raw mut logical)?;
        ioctl::physical_block(device.as_raw_fd(), &raw mut physical)?;
    }
    Ok((u32::try_from(logical).unwrap_or(512), physical))
}

/// Bytes of a block device.
///
/// # Errors
/// It is none.
pub fn block_len(device: &File) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: an open file and an integer of the ioctl's type (BLKGETSIZE64; the header's `size_t` is a known slip).
    unsafe { ioctl::size(device.as_raw_fd(), &raw mut bytes)? };
    Ok(bytes)
}

/// Discards a range of a block device.
///
/// # Errors
/// It cannot do that, or the range is none.
pub fn block_discard(device: &File, at: u64, len: u64, secure: bool) -> io::Result<()> {
    let range = [at, len];
    // SAFETY: an open file and the pair of integers that BLKDISCARD and BLKSECDISCARD read.
    unsafe {
        if secure {
            ioctl::discard_secure(device.as_raw_fd(), &raw const range)?;
        } else {
            ioctl::discard(device.as_raw_fd(), &raw const range)?;
        }
    }
    Ok(())
}

/// Takes a range out of a file: it reads as zeros then, and the host has its room back.
///
/// # Errors
/// The file system cannot do that.
pub fn punch(file: &File, at: u64, len: u64) -> io::Result<()> {
    let offset = |n| i64::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, hole, offset(at)?, offset(len)?)?)
}

/// What O_DIRECT asks of memory addresses and of file offsets, bytes; offset 0 = it is not possible. `None` when the
/// kernel does not say.
pub fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    // SAFETY: plain integers, all of which may be zero.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an open file, an empty path as AT_EMPTY_PATH wants it, and a buffer of the call's type.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut stat)
    };
    let told = result == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0;
    told.then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn transfers_go_on_where_they_stopped_and_copies_keep_the_order() {
        let mut file = tempfile::tempfile().unwrap();
        let mut from = Buffers::own(3000, 512);
        assert!(
            from.iovecs().0.is_aligned() && from.slices()[0].ptr_guard().as_ptr().addr().is_multiple_of(512)
        );
        let pattern: Vec<u8> = (0..3000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        from.slices()[0].copy_from(&pattern);
        from.skip(1000);
        from.write_to(&file, 0).unwrap();
        assert_eq!(from.len(), 0);
        let mut found = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut found).unwrap();
        assert!(found == pattern[1000..]);
        from.rewind();
        let mut to = Buffers::own(3000, 4096);
        from.copy_to(&to);
        to.skip(2500);
        to.read_from(&file, 0).unwrap();
        to.rewind();
        let mut found = vec![0; 3000];
        to.slices()[0].copy_to(&mut found);
        assert!(found == [&pattern[..2500], &pattern[1000..1500]].concat());
        let short = to.read_from(&file, 0).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }
}
