//! Arguments in guest memory: copied in and out through the caller's page tables, page by page.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use xen_abi::errno::Errno;

use crate::hypercall::{Cx, Width};
use crate::mem::{Fault, Gpa};

impl From<Fault> for Errno {
    fn from(_: Fault) -> Errno {
        Errno::EFAULT
    }
}

/// Bytes from `gva` to the end of its page.
fn to_page_end(gva: u64) -> usize {
    usize::try_from(4096 - gva % 4096).unwrap_or(4096)
}

impl Cx<'_> {
    /// Copies from guest-virtual memory.
    pub(crate) fn copy_in(&self, mut gva: u64, mut buf: &mut [u8]) -> Result<(), Errno> {
        while !buf.is_empty() {
            let here = to_page_end(gva).min(buf.len());
            let (head, tail) = buf.split_at_mut(here);
            self.mem.read(self.gva.translate(gva)?, head)?;
            gva = gva.wrapping_add(here as u64);
            buf = tail;
        }
        Ok(())
    }

    /// Copies to guest-virtual memory; where a later page faults the earlier ones have been written.
    pub(crate) fn copy_out(&self, mut gva: u64, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let (head, tail) = bytes.split_at(to_page_end(gva).min(bytes.len()));
            self.mem.write(self.gva.translate(gva)?, head)?;
            gva = gva.wrapping_add(head.len() as u64);
            bytes = tail;
        }
        Ok(())
    }

    /// A struct that both widths lay out alike.
    pub(crate) fn get<T: FromBytes + IntoBytes>(&self, gva: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.copy_in(gva, value.as_mut_bytes())?;
        Ok(value)
    }

    /// A struct whose 32-bit form is `C`.
    pub(crate) fn get_twin<T, C>(&self, width: Width, gva: u64) -> Result<T, Errno>
    where
        T: FromBytes + IntoBytes + From<C>,
        C: FromBytes + IntoBytes,
    {
        match width {
            Width::Bits64 => self.get::<T>(gva),
            Width::Bits32 => self.get::<C>(gva).map(T::from),
        }
    }

    /// Answers with a struct.
    pub(crate) fn put<T: IntoBytes + Immutable>(&self, gva: u64, value: &T) -> Result<(), Errno> {
        self.copy_out(gva, value.as_bytes())
    }

    /// Element `index` of an array of `unsigned long`s.
    pub(crate) fn get_long(&self, width: Width, array: u64, index: u64) -> Result<u64, Errno> {
        match width {
            Width::Bits64 => self.get::<u64>(array.wrapping_add(index.wrapping_mul(8))),
            Width::Bits32 => self.get::<u32>(array.wrapping_add(index.wrapping_mul(4))).map(u64::from),
        }
    }

    /// Writes element `index` of an array of `unsigned long`s; a 32-bit one gets the low half.
    #[expect(clippy::cast_possible_truncation, reason = "as a 32-bit guest sees it")]
    pub(crate) fn put_long(&self, width: Width, array: u64, index: u64, value: u64) -> Result<(), Errno> {
        match width {
            Width::Bits64 => self.put(array.wrapping_add(index.wrapping_mul(8)), &value),
            Width::Bits32 => self.put(array.wrapping_add(index.wrapping_mul(4)), &(value as u32)),
        }
    }

    /// The guest-physical address of `size` bytes at `gva`, at most a page. `None` if they are not there, or not contiguous.
    pub(crate) fn contiguous(&self, gva: u64, size: usize) -> Option<Gpa> {
        let start = self.gva.translate(gva).ok()?;
        let in_page = to_page_end(gva);
        if in_page >= size {
            return Some(start);
        }
        let next = self.gva.translate(gva.wrapping_add(in_page as u64)).ok()?;
        (next == start.offset(in_page as u64)).then_some(start)
    }
}
