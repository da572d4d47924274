//! The wire codec: headers, payload arguments and error names (`public/io/xs_wire.h`).

use std::fmt;
use std::str::FromStr;

use xen_abi::io::xs_wire::XsdSockmsg;
pub use xen_abi::io::xs_wire::{XENSTORE_PAYLOAD_MAX as PAYLOAD_MAX, XsdSockmsgType as MsgType};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the header before every payload.
pub const HEADER_LEN: usize = size_of::<XsdSockmsg>();

/// The header of a message, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked or answered.
    pub kind: MsgType,
    /// Chosen by the client, echoed in the reply.
    pub req_id: u32,
    /// Transaction, 0 for none.
    pub tx_id: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl Header {
    /// The 16 bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let raw = XsdSockmsg { r#type: self.kind.0, req_id: self.req_id, tx_id: self.tx_id, len: self.len };
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Reads the header at the front of `bytes`; `None` if there are fewer than 16.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (raw, _) = XsdSockmsg::read_from_prefix(bytes).ok()?;
        Some(Self { kind: MsgType(raw.r#type), req_id: raw.req_id, tx_id: raw.tx_id, len: raw.len })
    }
}

/// The peer announced a payload longer than the protocol allows: nothing after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message of {0} bytes, the limit is {PAYLOAD_MAX}")]
pub struct TooLong(pub u32);

/// Takes the message at the front of `bytes` apart: header and payload. `None` while it is incomplete.
///
/// # Errors
/// [`TooLong`] as soon as the header says so.
pub fn split(bytes: &[u8]) -> Result<Option<(Header, &[u8])>, TooLong> {
    let Some(header) = Header::decode(bytes) else { return Ok(None) };
    let len = usize::try_from(header.len).unwrap_or(usize::MAX);
    if len > PAYLOAD_MAX {
        return Err(TooLong(header.len));
    }
    Ok(bytes.get(HEADER_LEN..HEADER_LEN + len).map(|payload| (header, payload)))
}

/// Appends one message to `out`. The payload is the concatenation of `parts`, at most [`PAYLOAD_MAX`] bytes in all.
///
/// # Errors
/// [`TooLong`], and `out` is unchanged, if the parts are longer.
pub fn put(
    out: &mut Vec<u8>,
    kind: MsgType,
    req_id: u32,
    tx_id: u32,
    parts: &[&[u8]],
) -> Result<(), TooLong> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let len = u32::try_from(total).unwrap_or(u32::MAX);
    if total > PAYLOAD_MAX {
        return Err(TooLong(len));
    }
    out.extend_from_slice(&Header { kind, req_id, tx_id, len }.encode());
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(())
}

/// The payload of requests that take one argument: exactly one NUL, at the end.
///
/// # Errors
/// `EINVAL` otherwise.
pub fn one_arg(payload: &[u8]) -> Result<&[u8], Errno> {
    match payload.split_last() {
        Some((0, arg)) if !arg.contains(&0) => Ok(arg),
        _ => Err(Errno::EINVAL),
    }
}

/// The payload of requests that take several arguments, each ended by a NUL.
///
/// # Errors
/// `EINVAL` if the last byte is no NUL.
pub fn args(payload: &[u8]) -> Result<Vec<&[u8]>, Errno> {
    match payload.split_last() {
        Some((0, list)) => Ok(list.split(|&byte| byte == 0).collect()),
        _ => Err(Errno::EINVAL),
    }
}

/// The arguments of a payload that are ended by a NUL; what follows the last one is passed over.
#[must_use]
pub fn whole_args(payload: &[u8]) -> Vec<&[u8]> {
    let end = payload.iter().rposition(|&byte| byte == 0);
    let list = end.and_then(|end| payload.get(..end));
    list.map_or_else(Vec::new, |list| list.split(|&byte| byte == 0).collect())
}

/// The first argument of a payload and everything behind its NUL.
///
/// # Errors
/// `EINVAL` without a NUL.
pub fn first_arg(payload: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let end = payload.iter().position(|&byte| byte == 0).ok_or(Errno::EINVAL)?;
    let (arg, rest) = payload.split_at(end);
    Ok((arg, rest.get(1..).unwrap_or_default()))
}

/// A decimal number argument.
///
/// # Errors
/// `EINVAL` for anything but digits, or a number that does not fit.
pub fn number<T: FromStr>(arg: &[u8]) -> Result<T, Errno> {
    if !arg.iter().all(u8::is_ascii_digit) {
        return Err(Errno::EINVAL);
    }
    std::str::from_utf8(arg).ok().and_then(|text| text.parse().ok()).ok_or(Errno::EINVAL)
}

macro_rules! errnos {
    ($($name:ident $text:literal,)*) => {
        /// The errors the protocol can name (`xsd_errors`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Errno { $(#[doc = $text] $name,)* }

        impl Errno {
            const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name as ERROR replies carry it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What it means, for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

errnos! {
    EINVAL "Invalid argument",
    EACCES "Permission denied",
    EEXIST "File exists",
    EISDIR "Is a directory",
    ENOENT "No such file or directory",
    ENOMEM "Cannot allocate memory",
    ENOSPC "No space left on device",
    EIO "Input/output error",
    ENOTEMPTY "Directory not empty",
    ENOSYS "Function not implemented",
    EROFS "Read-only file system",
    EBUSY "Device or resource busy",
    EAGAIN "Resource temporarily unavailable",
    EISCONN "Transport endpoint is already connected",
    E2BIG "Argument list too long",
    EPERM "Operation not permitted",
}

impl Errno {
    /// The error of a name in an ERROR reply.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|errno| errno.name() == name)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text(), self.name())
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_abi::io::xs_wire::XSD_ERRORS;

    #[test]
    fn w5_the_error_names_are_those_of_the_protocol() {
        let names: Vec<&str> = Errno::ALL.iter().map(|errno| errno.name()).collect();
        assert_eq!(names, XSD_ERRORS);
        assert_eq!(Errno::from_name("EQUOTA"), None);
        assert_eq!(Errno::from_name("E2BIG"), Some(Errno::E2BIG));
    }

    #[test]
    fn w2_w3_messages_come_in_pieces_and_have_a_limit() {
        let mut bytes = Vec::new();
        put(&mut bytes, MsgType::READ, 7, 9, &[b"/a", b"\0"]).unwrap();
        for end in 0..bytes.len() {
            assert_eq!(split(&bytes[..end]), Ok(None), "{end} bytes");
        }
        let header = Header { kind: MsgType::READ, req_id: 7, tx_id: 9, len: 3 };
        assert_eq!(split(&bytes), Ok(Some((header, &b"/a\0"[..]))));
        for len in [4097, 0x8000_0000, u32::MAX] {
            assert_eq!(split(&Header { len, ..header }.encode()), Err(TooLong(len)));
        }
        assert_eq!(put(&mut bytes, MsgType::READ, 0, 0, &[&[0; 4097]]), Err(TooLong(4097)));
        assert_eq!(put(&mut bytes, MsgType::READ, 0, 0, &[&[0; 4096]]), Ok(()));
    }

    #[test]
    fn w6_arguments_end_with_nul() {
        assert_eq!(one_arg(b"a\0"), Ok(&b"a"[..]));
        assert_eq!(one_arg(b"\0"), Ok(&b""[..]));
        for bad in [&b""[..], b"a", b"a\0b\0", b"a\0\0"] {
            assert_eq!(one_arg(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(args(b"a\0b\0"), Ok(vec![&b"a"[..], b"b"]));
        assert_eq!(args(b"a\0b"), Err(Errno::EINVAL));
        assert_eq!(first_arg(b"a\0b\0c"), Ok((&b"a"[..], &b"b\0c"[..])));
        assert_eq!(number::<u16>(b"17"), Ok(17));
        for bad in [&b""[..], b"-1", b"+1", b"65536", b"1 ", b"x"] {
            assert_eq!(number::<u16>(bad), Err(Errno::EINVAL), "{bad:?}");
        }
    }
}
