//! Error numbers as guests see them (`public/errno.h`).
//!
//! Hypercalls return them negated in the result register; they are Xen's numbers, not the host's.

open_enum! {
    /// A positive Xen error number. `-errno` is what a hypercall returns.
    pub struct Errno(i32) {
        /// Operation not permitted
        EPERM = 1,
        /// No such file or directory
        ENOENT = 2,
        /// No such process (or domain)
        ESRCH = 3,
        /// Interrupted system call
        EINTR = 4,
        /// I/O error
        EIO = 5,
        /// No such device or address
        ENXIO = 6,
        /// Argument list too long
        E2BIG = 7,
        /// Exec format error
        ENOEXEC = 8,
        /// Bad file number
        EBADF = 9,
        /// No child processes
        ECHILD = 10,
        /// Try again
        EAGAIN = 11,
        /// Out of memory
        ENOMEM = 12,
        /// Permission denied
        EACCES = 13,
        /// Bad address
        EFAULT = 14,
        /// Device or resource busy
        EBUSY = 16,
        /// File exists
        EEXIST = 17,
        /// Cross-device link
        EXDEV = 18,
        /// No such device
        ENODEV = 19,
        /// Not a directory
        ENOTDIR = 20,
        /// Is a directory
        EISDIR = 21,
        /// Invalid argument
        EINVAL = 22,
        /// File table overflow
        ENFILE = 23,
        /// Too many open files
        EMFILE = 24,
        /// No space left on device
        ENOSPC = 28,
        /// Read-only file system
        EROFS = 30,
        /// Too many links
        EMLINK = 31,
        /// Math argument out of domain of function
        EDOM = 33,
        /// Math result not representable
        ERANGE = 34,
        /// Resource deadlock would occur
        EDEADLK = 35,
        /// File name too long
        ENAMETOOLONG = 36,
        /// No record locks available
        ENOLCK = 37,
        /// Function not implemented
        ENOSYS = 38,
        /// Directory not empty
        ENOTEMPTY = 39,
        /// Invalid request code
        EBADRQC = 56,
        /// Invalid slot
        EBADSLT = 57,
        /// No data available
        ENODATA = 61,
        /// Timer expired
        ETIME = 62,
        /// Not a data message
        EBADMSG = 74,
        /// Value too large for defined data type
        EOVERFLOW = 75,
        /// Illegal byte sequence
        EILSEQ = 84,
        /// Interrupted system call should be restarted
        ERESTART = 85,
        /// Too many users
        EUSERS = 87,
        /// Socket operation on non-socket
        ENOTSOCK = 88,
        /// Message too large
        EMSGSIZE = 90,
        /// Operation not supported on transport endpoint
        EOPNOTSUPP = 95,
        /// Address already in use
        EADDRINUSE = 98,
        /// Cannot assign requested address
        EADDRNOTAVAIL = 99,
        /// No buffer space available
        ENOBUFS = 105,
        /// Transport endpoint is already connected
        EISCONN = 106,
        /// Transport endpoint is not connected
        ENOTCONN = 107,
        /// Cannot send after transport endpoint shutdown
        ESHUTDOWN = 108,
        /// Too many references: cannot splice
        ETOOMANYREFS = 109,
        /// Connection timed out
        ETIMEDOUT = 110,
        /// Connection refused
        ECONNREFUSED = 111,
    }
}

impl Errno {
    /// The highest number a result register may carry negated; results above `-MAX` are values, not errors.
    pub const MAX: i32 = 4095;

    /// The value a hypercall returns for this error: `-errno`, sign-extended to the result register.
    #[must_use]
    pub const fn to_ret(self) -> i64 {
        -(self.0 as i64)
    }

    /// The value of one 32-bit status field (`status`, `rc`) that carries an error negated.
    #[must_use]
    pub const fn neg(self) -> i32 {
        self.0.wrapping_neg()
    }

    /// Splits a hypercall's result register: `Ok` is the value, `Err` the error it carries.
    ///
    /// # Errors
    /// The error in `ret`, if `ret` lies in `-MAX..0`.
    pub const fn from_ret(ret: i64) -> Result<i64, Self> {
        if ret < 0 && ret >= -(Self::MAX as i64) {
            #[expect(clippy::cast_possible_truncation, reason = "the range was checked")]
            return Err(Self(-ret as i32));
        }
        Ok(ret)
    }
}

impl From<Errno> for i64 {
    fn from(e: Errno) -> Self {
        e.to_ret()
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn negative_in_the_result_register_and_back() {
        assert_eq!(Errno::ENOSYS.to_ret(), -38);
        assert_eq!(Errno::from_ret(-38), Err(Errno::ENOSYS));
        assert_eq!(Errno::from_ret(0), Ok(0));
        assert_eq!(Errno::from_ret(0x4_0011), Ok(0x4_0011));
        assert_eq!(Errno::from_ret(-4096), Ok(-4096));
        assert_eq!(Errno::EINVAL.neg(), -22);
    }

    #[test]
    fn names() {
        assert_eq!(Errno::EACCES.name(), Some("EACCES"));
        assert_eq!(Errno(200).name(), None);
        assert_eq!(format!("{} {}", Errno::EBUSY, Errno(200)), "EBUSY Errno(200)");
    }
}
