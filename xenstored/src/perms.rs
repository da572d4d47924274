//! Permissions of a node: who owns it, who may read and write it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::DomId;
use crate::wire::{Errno, number};

/// Entry that means "every domain" in a permission list (`DOMID_ANY`).
pub const DOMID_ANY: DomId = 0x7ff5;

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

/// Which life of a domid is meant: a number that a later domain with the same domid does not share.
///
/// Domain 0 has life 0 for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Life(pub u32);

impl Life {
    /// Of a domain that does not exist: matches no domain ever. Of `DOMID_ANY`: the entry does not apply.
    pub const NEVER: Self = Self(u32::MAX);
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The domain.
    pub domid: DomId,
    /// Its life.
    pub life: Life,
    /// The domain whose rights it has too.
    pub target: Option<(DomId, Life)>,
    /// May do everything: domain 0 and all clients on the socket.
    pub privileged: bool,
}

impl Caller {
    /// A client on the socket.
    pub const PRIVILEGED: Self = Self { domid: 0, life: Life(0), target: None, privileged: true };
}

/// A stored entry: an entry for a domid is one for the domain that had the domid when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As set.
    pub perm: Perm,
    /// The domain's life then.
    pub life: Life,
}

impl Entry {
    fn names(&self, caller: &Caller) -> bool {
        let own = |(domid, life)| self.perm.domid == domid && self.life == life;
        let all = self.perm.domid == DOMID_ANY && self.life != Life::NEVER;
        all || own((caller.domid, caller.life)) || caller.target.is_some_and(own)
    }
}

/// The permissions of a node; never empty. Nodes that inherit them share them.
#[derive(Clone, Debug, Eq)]
pub struct Perms(Arc<[Entry]>);

impl PartialEq for Perms {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Perms {
    /// `n0`: for domain 0 only.
    #[must_use]
    pub fn private() -> Self {
        let entry = Entry { perm: Perm::new(Access::None, 0), life: Life(0) };
        Self(Arc::new([entry]))
    }

    /// A list as set by a client; `None` if it is empty.
    #[must_use]
    pub fn new(entries: Vec<Entry>) -> Option<Self> {
        if entries.is_empty() { None } else { Some(Self(entries.into())) }
    }

    /// The entries, owner first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// The domain that owns the node and is charged for it.
    #[must_use]
    pub fn owner(&self) -> DomId {
        self.0.first().map_or(0, |entry| entry.perm.domid)
    }

    /// What `caller` may do: owner and privileged callers everything, else the first entry that names the caller
    /// decides, else the owner's entry says what everybody may.
    #[must_use]
    pub fn access(&self, caller: &Caller) -> Access {
        let Some((owner, others)) = self.0.split_first() else { return Access::None };
        if self.owned_by(caller) {
            return Access::Both;
        }
        others.iter().find(|entry| entry.names(caller)).unwrap_or(owner).perm.access
    }

    /// Whether `caller` may change the permissions.
    #[must_use]
    pub fn owned_by(&self, caller: &Caller) -> bool {
        caller.privileged
            || self.0.first().is_some_and(|owner| owner.perm.domid != DOMID_ANY && owner.names(caller))
    }

    /// What a node that `caller` creates below gets: the same, but an unprivileged creator becomes the owner.
    #[must_use]
    pub fn inherited_by(&self, caller: &Caller) -> Self {
        let own = |entry: &Entry| entry.perm.domid == caller.domid && entry.life == caller.life;
        if caller.privileged || self.0.first().is_some_and(own) {
            return self.clone();
        }
        self.owned_now_by(caller)
    }

    /// The same with another owner.
    #[must_use]
    pub fn owned_now_by(&self, new: &Caller) -> Self {
        let mut entries = self.0.to_vec();
        if let Some(owner) = entries.first_mut() {
            (owner.perm.domid, owner.life) = (new.domid, new.life);
        }
        Self(entries.into())
    }

    /// The list as GET_PERMS answers it.
    #[must_use]
    pub fn to_wire(&self) -> String {
        self.0.iter().map(|entry| format!("{}\0", entry.perm)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(domid: DomId, life: u32) -> Caller {
        Caller { domid, life: Life(life), target: None, privileged: false }
    }

    /// `n1 r2`, with lives equal to domids.
    fn list(text: &str) -> Perms {
        let entry = |perm: Perm| Entry { perm, life: Life(perm.domid.into()) };
        Perms::new(text.split(' ').map(|perm| entry(perm.parse().unwrap())).collect()).unwrap()
    }

    #[test]
    fn a1_a4_first_match_decides() {
        for (perms, who, want) in [
            ("n1 r2", guest(1, 1), 'b'),
            ("n1 r2", guest(2, 2), 'r'),
            ("n1 r2", guest(3, 3), 'n'),
            ("w1 r2 b2", guest(2, 2), 'r'),
            ("b1 n2", guest(2, 2), 'n'),
            ("w1", guest(2, 2), 'w'),
            ("n1 r32757 b2", guest(2, 2), 'r'),
            ("n1 b2 r32757", guest(2, 2), 'b'),
            ("n1", Caller { target: Some((1, Life(1))), ..guest(2, 2) }, 'b'),
            ("n0 r1", Caller { target: Some((1, Life(1))), ..guest(2, 2) }, 'r'),
            ("n1", Caller::PRIVILEGED, 'b'),
        ] {
            assert_eq!(list(perms).access(&who).letter(), want, "{perms} for {who:?}");
        }
    }

    #[test]
    fn a3_xsa322_rights_die_with_the_domain() {
        assert_eq!(list("n0 r2").access(&guest(2, 99)), Access::None);
        assert_eq!(list("n2").access(&guest(2, 99)), Access::None);
        assert!(!list("n2").owned_by(&guest(2, 99)));
    }

    #[test]
    fn s2_unprivileged_creators_become_owners() {
        assert_eq!(list("r0 b5").inherited_by(&guest(2, 2)), list("r2 b5"));
        assert_eq!(list("r0 b5").inherited_by(&Caller::PRIVILEGED), list("r0 b5"));
    }

    #[test]
    fn a2_texts() {
        assert_eq!("b17".parse(), Ok(Perm::new(Access::Both, 17)));
        for bad in ["", "b", "x1", "r-1", "r70000", "r1 ", "R1"] {
            assert_eq!(bad.parse::<Perm>(), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(list("n1 r2 w3 b4").to_wire(), "n1\0r2\0w3\0b4\0");
    }
}
