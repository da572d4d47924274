//! Freed memory goes back to the system.
//!
//! The allocator of glibc keeps what lies below anything that is still in use, and a store that was emptied has
//! connections above its nodes: it has to be asked.
#![expect(unsafe_code, reason = "the allocator is asked in C")]

unsafe extern "C" {
    /// glibc's `malloc.h`.
    fn malloc_trim(pad: usize) -> std::ffi::c_int;
}

/// Gives back all pages in which nothing is in use.
pub fn trim() {
    // SAFETY: it may be called at any time, from any thread, and touches no memory that is in use.
    unsafe { malloc_trim(0) };
}
