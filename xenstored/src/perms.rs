//! Permissions of a node: who owns it, who may read and write it.

use std::fmt;
use std::str::FromStr;

use crate::DomId;
use crate::wire::{Errno, number};

/// Entry that means "every domain" in a permission list (`DOMID_ANY`).
pub const DOMID_ANY: DomId = 0x7ff4;

/// Rights of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `n`
    None,
    /// `r`
    Read,
    /// `w`
    Write,
    /// `b`
    Both,
}

impl Access {
    const LETTERS: [(char, Self); 4] =
        [('n', Self::None), ('r', Self::Read), ('w', Self::Write), ('b', Self::Both)];

    /// The letter on the wire.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::None => 'n',
            Self::Read => 'r',
            Self::Write => 'w',
            Self::Both => 'b',
        }
    }

    /// May read.
    #[must_use]
    pub const fn read(self) -> bool {
        matches!(self, Self::Read | Self::Both)
    }

    /// May write.
    #[must_use]
    pub const fn write(self) -> bool {
        matches!(self, Self::Write | Self::Both)
    }
}

/// One entry of a permission list, `r5` on the wire.
///
/// The first entry of a list names the owner, and as its access what everybody not named has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Perm {
    /// What the domain may do (in the first entry: what all others may do).
    pub access: Access,
    /// The domain.
    pub domid: DomId,
}

impl Perm {
    /// An entry; `Perm::new(Access::None, 0)` is `n0`.
    #[must_use]
    pub const fn new(access: Access, domid: DomId) -> Self {
        Self { access, domid }
    }

    /// Reads `r5`.
    ///
    /// # Errors
    /// `EINVAL` for another letter, or a number that is no domid.
    pub fn parse(text: &[u8]) -> Result<Self, Errno> {
        let (&letter, digits) = text.split_first().ok_or(Errno::EINVAL)?;
        let known = Access::LETTERS.into_iter().find(|(known, _)| *known == char::from(letter));
        let (_, access) = known.ok_or(Errno::EINVAL)?;
        Ok(Self { access, domid: number(digits)? })
    }
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.access.letter(), self.domid)
    }
}

impl FromStr for Perm {
    type Err = Errno;
    fn from_str(text: &str) -> Result<Self, Errno> {
        Self::parse(text.as_bytes())
    }
}
