//! Node paths, and the wider class of names that can be watched.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use xen_abi::io::xs_wire::XENSTORE_ABS_PATH_MAX;

use crate::DomId;
use crate::wire::{Errno, number};

/// The absolute, valid path of a node that may or may not exist.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(Arc<str>);

impl Path {
    /// `/`
    #[must_use]
    pub fn root() -> Self {
        Self(Arc::from("/"))
    }

    /// `/local/domain/N`
    #[must_use]
    pub fn home(domid: DomId) -> Self {
        Self(home(domid).into())
    }

    /// Reads a request's path argument; a relative one begins at the caller's home.
    ///
    /// `path_max` limits the part behind `/local/domain/N/`, for callers that have such a limit.
    ///
    /// # Errors
    /// `EINVAL` for a character that is not allowed, an empty component, a slash at the end, too many bytes.
    pub fn parse(arg: &[u8], caller: DomId, path_max: Option<usize>) -> Result<Self, Errno> {
        Ok(Self(resolve(arg, caller, path_max)?.into()))
    }

    /// A text that [`resolve`] answered, or a beginning of one.
    pub(crate) fn of(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Whether this is `/`.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.len() == 1
    }

    /// The names from the root down; none for `/`.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        components(self)
    }

    /// The last name, empty for `/`.
    #[must_use]
    pub fn name(&self) -> &str {
        name(self)
    }

    /// The path of the parent; none for `/`.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() { None } else { parent(self).map(|path| Self(path.into())) }
    }

    /// The path of the first `depth` components, all of them if there are fewer.
    #[must_use]
    pub fn prefix(&self, depth: usize) -> Self {
        Self(prefix(self, depth).into())
    }

    /// The path of a child. `name` is a single valid name.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        let parent = if self.is_root() { "" } else { self };
        Self(format!("{parent}/{name}").into())
    }
}

impl std::borrow::Borrow<str> for Path {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Deref for Path {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// What WATCH, GET_PERMS and SET_PERMS accept: a node's path or a special name such as `@releaseDomain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A node.
    Node(Path),
    /// An event that is no node; with the `@`.
    Special(Arc<str>),
}

impl Name {
    /// Reads a request's argument, see [`Path::parse`].
    ///
    /// # Errors
    /// `EINVAL` as there.
    pub fn parse(arg: &[u8], caller: DomId, path_max: Option<usize>) -> Result<Self, Errno> {
        if arg.first() != Some(&b'@') {
            return Path::parse(arg, caller, path_max).map(Self::Node);
        }
        let text = std::str::from_utf8(arg).map_err(|_| Errno::EINVAL)?;
        let shape = !text.ends_with('/') && !text.contains("//") && arg.len() > 1;
        let fits = arg.len() <= path_max.unwrap_or(XENSTORE_ABS_PATH_MAX);
        let valid = shape && fits && text.bytes().all(valid_char);
        if valid { Ok(Self::Special(text.into())) } else { Err(Errno::EINVAL) }
    }

    /// The name as one string; special ones begin with `@`, paths with `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Node(path) => path,
            Self::Special(name) => name,
        }
    }
}

/// Reads a request's path argument, see [`Path::parse`]; one that is absolute is not copied.
pub(crate) fn resolve(arg: &[u8], caller: DomId, path_max: Option<usize>) -> Result<Cow<'_, str>, Errno> {
    let text = std::str::from_utf8(arg).map_err(|_| Errno::EINVAL)?;
    let path = match arg.first() {
        Some(b'/') => Cow::Borrowed(text),
        None | Some(b'@') => return Err(Errno::EINVAL),
        Some(_) => Cow::Owned(below_home(caller, text)),
    };
    let within = |max: usize| path.len() <= max || path.len() <= max + home_prefix_len(&path);
    let fits = path.len() <= XENSTORE_ABS_PATH_MAX && path_max.is_none_or(within);
    if fits && is_well_formed(&path) { Ok(path) } else { Err(Errno::EINVAL) }
}

/// Characters that are allowed, no empty name, no slash at the end but that of `/`.
fn is_well_formed(path: &str) -> bool {
    let (mut wrong, mut before) = (0, 0);
    for byte in path.bytes() {
        let kind = KINDS.get(usize::from(byte)).copied().unwrap_or(INVALID);
        wrong |= kind & (INVALID | before);
        before = kind;
    }
    wrong == 0 && (before != SLASH || path.len() == 1)
}

/// Where the homes of domains are.
const HOMES: &str = "/local/domain/";

/// As [`components`], in bytes.
pub(crate) fn names(path: &str) -> impl Iterator<Item = &[u8]> {
    let mut rest = path.as_bytes();
    std::iter::from_fn(move || {
        let (_, below) = rest.split_first().filter(|(_, below)| !below.is_empty())?;
        let end = below.iter().position(|&byte| byte == b'/').unwrap_or(below.len());
        let (name, others) = below.split_at_checked(end)?;
        rest = others;
        Some(name)
    })
}

/// The names of an absolute path from the root down; none for `/`.
pub(crate) fn components(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('/').filter(|rest| !rest.is_empty())?;
        let end = rest.bytes().position(|byte| byte == b'/').unwrap_or(rest.len());
        let (name, others) = rest.split_at_checked(end)?;
        rest = others;
        Some(name)
    })
}

/// The last name of an absolute path, empty for `/`.
pub(crate) fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// The first `depth` names of an absolute path, all of them if there are fewer.
pub(crate) fn prefix(path: &str, depth: usize) -> &str {
    if depth == 0 {
        return "/";
    }
    let end = path.match_indices('/').nth(depth).map_or(path.len(), |(at, _)| at);
    path.get(..end).unwrap_or(path)
}

/// The parent of an absolute path other than `/`.
pub(crate) fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 => Some("/"),
        end => path.get(..end),
    }
}

/// The path of a domain's home as text.
pub(crate) fn home(domid: DomId) -> String {
    let mut text = below_home(domid, "");
    text.pop();
    text
}

/// `/local/domain/N/` and `rest`. Every request of a guest asks for it: no formatting.
fn below_home(domid: DomId, rest: &str) -> String {
    let mut text = String::with_capacity(HOMES.len() + 6 + rest.len());
    text.push_str(HOMES);
    let mut unit = [10_000, 1000, 100, 10].into_iter().find(|unit| domid >= *unit).unwrap_or(1);
    while unit > 0 {
        text.push(char::from_digit(u32::from(domid / unit % 10), 10).unwrap_or('0'));
        unit /= 10;
    }
    text.push('/');
    text.push_str(rest);
    text
}

/// Bytes of `/local/domain/N/` at the front of `path`, 0 if it begins otherwise.
fn home_prefix_len(path: &str) -> usize {
    let domid = path.strip_prefix(HOMES).and_then(|rest| rest.split_once('/'));
    match domid {
        Some((digits, rest)) if number::<DomId>(digits.as_bytes()).is_ok() => path.len() - rest.len(),
        _ => 0,
    }
}

const INVALID: u8 = 1;
const SLASH: u8 = 2;

/// By the byte: whether it may not be in a path, whether two of it may not follow each other.
const KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut byte = 0u8;
    loop {
        kinds[byte as usize] = match byte {
            b'/' => SLASH,
            _ if valid_char(byte) => 0,
            _ => INVALID,
        };
        if byte == u8::MAX {
            break kinds;
        }
        byte += 1;
    }
};

const fn valid_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_' | b'@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arg: &str, path_max: Option<usize>) -> Result<String, Errno> {
        Path::parse(arg.as_bytes(), 7, path_max).map(|path| path.to_string())
    }

    #[test]
    fn p1_p2_p3_paths() {
        for (arg, want) in [
            ("/", "/"),
            ("/a-b_c@d/0", "/a-b_c@d/0"),
            ("a", "/local/domain/7/a"),
            ("a/@b", "/local/domain/7/a/@b"),
        ] {
            assert_eq!(parse(arg, None).as_deref(), Ok(want));
        }
        for bad in ["", "//", "/a/", "/a//b", "a/", "/a b", "/a.b", "/ä", "@x", "/a\n"] {
            assert_eq!(parse(bad, None), Err(Errno::EINVAL), "{bad:?}");
        }
        let long = |prefix: &str, total: usize| format!("{prefix}{}", "a".repeat(total - prefix.len()));
        assert!(parse(&long("/", 3072), None).is_ok());
        assert!(parse(&long("/", 3073), None).is_err());
        assert!(parse(&long("/", 2048), Some(2048)).is_ok());
        assert!(parse(&long("/", 2049), Some(2048)).is_err());
        assert!(parse(&long("a", 2048), Some(2048)).is_ok());
        assert!(parse(&long("a", 2049), Some(2048)).is_err());
        assert!(parse(&long("/local/domain/12/", 2048 + 17), Some(2048)).is_ok());
        assert!(parse(&long("/local/domain/x2/", 2048 + 17), Some(2048)).is_err());
    }

    #[test]
    fn p3_special_names() {
        assert_eq!(Name::parse(b"@releaseDomain/3", 0, None).unwrap().as_str(), "@releaseDomain/3");
        for bad in [&b"@"[..], b"@a/", b"@a//b", b"@a b", b"@\xff"] {
            assert_eq!(Name::parse(bad, 0, None), Err(Errno::EINVAL), "{bad:?}");
        }
    }

    #[test]
    fn families() {
        let path = Path::parse(b"/a/b", 0, None).unwrap();
        assert_eq!(path.components().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((path.name(), path.parent().unwrap().to_string()), ("b", "/a".into()));
        assert_eq!(path.parent().unwrap().parent(), Some(Path::root()));
        assert_eq!((Path::root().parent(), Path::root().join("a").to_string()), (None, "/a".into()));
        assert_eq!([0, 1, 2, 9].map(|n| path.prefix(n).to_string()), ["/", "/a", "/a/b", "/a/b"]);
        assert_eq!(Path::home(3).join("x").to_string(), "/local/domain/3/x");
        for domid in [0, 9, 10, 99, 100, 4095, 9999, 10_000, 10_001, u16::MAX] {
            assert_eq!(home(domid), format!("/local/domain/{domid}"));
        }
        for path in ["/", "/a", "/a/bc", "/a/bc/d-e"] {
            assert!(names(path).eq(components(path).map(str::as_bytes)), "{path}");
        }
    }
}
