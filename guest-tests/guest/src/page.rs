//! Pages the hypervisor or a back-end writes too: every access is atomic or volatile, never a reference to data.
#![expect(unsafe_code, reason = "views of shared memory as atomics of several widths")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use xen_abi::xen::{PAGE_SHIFT, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// One page of guest memory. Virtual and physical addresses are the same up to 4 GiB.
#[repr(C, align(4096))]
pub struct Page(UnsafeCell<[u8; PAGE_SIZE]>);

// SAFETY: all access is by atomics or volatile bytes; a torn read is a possible value of plain bytes.
unsafe impl Sync for Page {}

impl Page {
    /// A page of zeroes; as a `static`, a page of the kernel's own.
    #[must_use]
    pub const fn zero() -> Self {
        Self(UnsafeCell::new([0; PAGE_SIZE]))
    }

    /// The page at a physical address that is not the kernel's: a ring, a table, a device, a hole.
    ///
    /// The address is rounded down to its page and cut to 4 GiB, which is all that is mapped.
    #[must_use]
    pub fn at(addr: u64) -> &'static Self {
        let addr = usize::try_from(addr & 0xffff_f000).unwrap_or(0x1000);
        // SAFETY: everything below 4 GiB is mapped for ever, and such a page is only seen through this type. The
        // zero page is nobody's: it would be a null reference.
        unsafe { &*core::ptr::with_exposed_provenance::<Self>(addr.max(PAGE_SIZE)) }
    }

    /// Its physical address.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.0.get().expose_provenance() as u64
    }

    /// Its frame number.
    #[must_use]
    pub fn gfn(&self) -> u64 {
        self.addr() >> PAGE_SHIFT
    }

    /// The byte at an offset.
    #[must_use]
    pub fn u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: `place` checked alignment and bounds; shared memory is only accessed like this.
        unsafe { AtomicU8::from_ptr(self.place(offset, 1)) }
    }

    /// The 32-bit word at an offset.
    #[must_use]
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.place(offset, 4).cast()) }
    }

    /// The 64-bit word at an offset.
    #[must_use]
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.place(offset, 8).cast()) }
    }

    fn place(&self, offset: usize, size: usize) -> *mut u8 {
        assert!(
            offset.is_multiple_of(size) && offset <= PAGE_SIZE - size,
            "offset {offset:#x} of {size} bytes"
        );
        // SAFETY: inside the page.
        unsafe { self.0.get().cast::<u8>().add(offset) }
    }

    /// A copy of the bytes at an offset as `T`.
    #[must_use]
    pub fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let mut value = T::new_zeroed();
        self.copy_out(offset, value.as_mut_bytes());
        value
    }

    /// Copies bytes out.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) {
        for (i, byte) in to.iter_mut().enumerate() {
            // SAFETY: `place` checked the bounds.
            *byte = unsafe { self.place(offset + i, 1).read_volatile() };
        }
    }

    /// Puts the bytes of `value` at an offset.
    pub fn write<T: IntoBytes + Immutable + ?Sized>(&self, offset: usize, value: &T) {
        for (i, byte) in value.as_bytes().iter().enumerate() {
            // SAFETY: `place` checked the bounds.
            unsafe { self.place(offset + i, 1).write_volatile(*byte) };
        }
    }

    /// Fills the page.
    pub fn fill(&self, byte: u8) {
        self.write(0, &[byte; PAGE_SIZE]);
    }
}

/// A copy of physical memory below 4 GiB as `T` (ACPI tables, start info); what is above reads 0.
#[must_use]
pub fn read_phys<T: FromBytes + IntoBytes>(addr: u64) -> T {
    let mut value = T::new_zeroed();
    for (at, byte) in (addr..1 << 32).zip(value.as_mut_bytes()) {
        let at = usize::try_from(at).unwrap_or(0);
        // SAFETY: everything below 4 GiB is mapped, and the loader's data is nobody's in Rust.
        *byte = unsafe { core::ptr::with_exposed_provenance::<u8>(at).read_volatile() };
    }
    value
}
