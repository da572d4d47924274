//! The domains the store knows, and their lives.
//!
//! No hypervisor tells which domains exist, so existence begins with the toolstack's first act: a privileged client
//! creates `/local/domain/N`, or introduces the domain. It ends with RELEASE or with the domain's life line. A domid
//! that is used again begins a new life, to which permissions of the one before say nothing.

use std::collections::BTreeMap;

use crate::DomId;
use crate::changes::Changes;
use crate::perms::{Caller, Life};
use crate::store::ConnId;
use crate::wire::number;

/// The first domid that is no domain's (`DOMID_FIRST_RESERVED`).
pub const DOMID_FIRST_RESERVED: DomId = 0x7ff0;

/// A domain's own name for itself (`DOMID_SELF`).
pub const DOMID_SELF: DomId = 0x7ff0;

/// Features of this store: reconnection, error word, watch depth, `DOMID_ANY`.
pub const FEATURES: u32 = xen_abi::io::xs_wire::XENSTORE_SERVER_FEATURE_RECONNECTION
    | xen_abi::io::xs_wire::XENSTORE_SERVER_FEATURE_ERROR
    | xen_abi::io::xs_wire::XENSTORE_SERVER_FEATURE_WATCHDEPTH
    | xen_abi::io::xs_wire::XENSTORE_SERVER_FEATURE_DOMID_ANY;

/// What is known of a domain that exists.
#[derive(Clone, Debug)]
pub struct Domain {
    /// Which of the domid's lives.
    pub life: Life,
    /// Its ring's connection, once it is introduced.
    pub conn: Option<ConnId>,
    /// The domain whose rights it has, and that one's life then.
    pub target: Option<(DomId, Life)>,
    /// It has shut down, and that was announced.
    pub shutdown: bool,
}

/// All domains but 0.
#[derive(Debug, Default)]
pub struct Domains {
    known: BTreeMap<DomId, Domain>,
    lives: u32,
    /// Domains that came or went, or whose features did.
    pub(crate) changes: Changes,
    /// Features withheld from a domain by SET_FEATURE, before its introduction.
    features: BTreeMap<DomId, u32>,
}

impl Domains {
    /// A domain that exists; none for 0, which always does.
    #[must_use]
    pub fn get(&self, domid: DomId) -> Option<&Domain> {
        self.known.get(&domid)
    }

    /// As [`Domains::get`], to change it.
    pub fn get_mut(&mut self, domid: DomId) -> Option<&mut Domain> {
        self.known.get_mut(&domid)
    }

    /// All domains that exist, in order.
    pub fn all(&self) -> impl Iterator<Item = DomId> {
        self.known.keys().copied()
    }

    /// The introduced domains.
    pub fn introduced(&self) -> impl Iterator<Item = (DomId, ConnId)> {
        self.known.iter().filter_map(|(&domid, domain)| Some((domid, domain.conn?)))
    }

    /// Whether the domain is introduced, as 0 always is.
    #[must_use]
    pub fn is_introduced(&self, domid: DomId) -> bool {
        domid == 0 || self.get(domid).is_some_and(|domain| domain.conn.is_some())
    }

    /// The present life of a domid.
    #[must_use]
    pub fn life(&self, domid: DomId) -> Option<Life> {
        if domid == 0 { Some(Life(0)) } else { self.get(domid).map(|domain| domain.life) }
    }

    /// How a domain's own requests are judged.
    #[must_use]
    pub fn caller(&self, domid: DomId) -> Caller {
        let life = self.life(domid).unwrap_or(Life::NEVER);
        let target = self.get(domid).and_then(|domain| domain.target);
        Caller { domid, life, target, privileged: domid == 0 }
    }

    /// A privileged client created `path`, of which the first `depth` names existed: if the home of a domain came that
    /// is not introduced, a life begins, and it is answered which.
    pub fn home_created(&mut self, path: &str, depth: usize) -> Option<DomId> {
        let domid = home_of(path).filter(|&domid| depth < HOME_DEPTH && !self.is_introduced(domid))?;
        self.begin(domid);
        Some(domid)
    }

    /// The domain, which begins to exist if it does not yet.
    pub fn ensure(&mut self, domid: DomId) -> &mut Domain {
        if !self.known.contains_key(&domid) {
            self.begin(domid);
        }
        self.known.entry(domid).or_insert_with(|| Domain::new(Life::NEVER))
    }

    /// The domain's life ends.
    pub fn end(&mut self, domid: DomId) -> Option<Domain> {
        self.changes.note(Some(domid));
        self.features.remove(&domid);
        self.known.remove(&domid)
    }

    /// The features a domain is offered in its ring page.
    #[must_use]
    pub fn features(&self, domid: DomId) -> u32 {
        self.features.get(&domid).copied().unwrap_or(FEATURES)
    }

    /// Whether a domain has what a bit of the features stands for.
    #[must_use]
    pub fn has_feature(&self, domid: DomId, bit: u32) -> bool {
        self.features(domid) & bit != 0
    }

    /// Limits the features a domain will be offered.
    pub fn set_features(&mut self, domid: DomId, features: u32) {
        self.changes.note(Some(domid));
        self.features.insert(domid, features & FEATURES);
    }

    fn begin(&mut self, domid: DomId) {
        self.changes.note(Some(domid));
        // Life::NEVER stays out of reach.
        self.lives = (self.lives + 1) % Life::NEVER.0;
        self.known.insert(domid, Domain::new(Life(self.lives)));
    }
}

impl Domain {
    fn new(life: Life) -> Self {
        Self { life, conn: None, target: None, shutdown: false }
    }
}

/// Names in the path of a domain's home.
const HOME_DEPTH: usize = 3;

/// `N` of `/local/domain/N` and paths below, for domains other than 0.
fn home_of(path: &str) -> Option<DomId> {
    let domid = number(path.strip_prefix("/local/domain/")?.split('/').next()?.as_bytes()).ok()?;
    (domid != 0 && domid < DOMID_FIRST_RESERVED).then_some(domid)
}
