//! The records: layouts of `xenstore-migration.md`, where that and C xenstored differ those of the latter.

use super::fields::Fields;
use crate::DomId;

const GLOBAL: u32 = 1;
const CONN: u32 = 2;
const WATCH: u32 = 3;
const TRANSACTION: u32 = 4;
const NODE: u32 = 5;
const GLOBAL_QUOTA: u32 = 6;
const DOMAIN: u32 = 7;
const WATCH_EXT: u32 = 8;
/// Ours, far from those to come: `xl` in front.
const RING: u32 = 0x786c_0001;
const LOCK: u32 = 0x786c_0002;
const LIVES: u32 = 0x786c_0003;
const REMOVED: u32 = 0x786c_0004;
const DOMAIN_GONE: u32 = 0x786c_0005;
const DORMANT: u32 = 0x786c_0006;
const NO_WATCHES: u32 = 0x786c_0007;
const SETTING: u32 = 0x786c_0008;
const TARGET: u32 = 0x786c_0009;
const UNWATCHED: u32 = 0x786c_000a;

/// No target (`DOMID_INVALID`).
const DOMID_INVALID: DomId = 0x7ff4;
const DEPTH_UNLIMITED: u16 = 0xffff;
/// The entry's domain is no more: it does not apply to the one that has the domid now.
const PERM_STALE: u8 = 1;

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnSpec {
    Ring { domid: DomId, target: Option<DomId>, evtchn: u32 },
    Socket { fd: i32 },
}

/// One permission of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodePerm {
    pub(crate) letter: u8,
    pub(crate) stale: bool,
    pub(crate) domid: DomId,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    Global {
        socket: i32,
        evtchn: i32,
    },
    /// `partial`: bytes at the front of `output` that are the rest of a message sent in part.
    Conn {
        id: u32,
        spec: ConnSpec,
        input: &'a [u8],
        output: &'a [u8],
        partial: u16,
    },
    Watch {
        conn: u32,
        path: &'a [u8],
        token: &'a [u8],
        depth: Option<u16>,
    },
    Transaction {
        conn: u32,
        id: u32,
    },
    /// `conn` and `tx` are 0 for a node that everybody sees.
    Node {
        conn: u32,
        tx: u32,
        access: u16,
        perms: Vec<NodePerm>,
        path: &'a [u8],
        value: &'a [u8],
    },
    GlobalQuota(Vec<(&'a [u8], u32)>),
    Domain {
        domid: DomId,
        features: u32,
        quotas: Vec<(&'a [u8], u32)>,
    },
    /// Descriptors of a ring (the life line's is -1 without one), and what else is known of its domain.
    Ring {
        conn: u32,
        page: i32,
        kick: i32,
        notify: i32,
        lifeline: i32,
        faulty: bool,
        shutdown: bool,
    },
    /// The listening socket's lock and path.
    Lock {
        fd: i32,
        path: &'a [u8],
    },
    /// How far generations of nodes have come, and an identity of the host's boot.
    Lives {
        generation: u64,
        boot: &'a [u8],
    },
    /// A node went, with all below.
    Removed {
        path: &'a [u8],
    },
    /// A domain went.
    DomainGone {
        domid: DomId,
    },
    /// A watch of a domain that is not attached.
    Dormant {
        domid: DomId,
        path: &'a [u8],
        token: &'a [u8],
        depth: Option<u16>,
    },
    /// All watches of a domain are gone; those that follow are its watches.
    NoWatches {
        domid: DomId,
    },
    /// One of them went.
    Unwatched {
        domid: DomId,
        path: &'a [u8],
        token: &'a [u8],
    },
    /// A domain has the rights of another, attached or not.
    Target {
        domid: DomId,
        target: DomId,
    },
    /// Something that this daemon alone has to know of the one before.
    Setting {
        name: &'a [u8],
        value: &'a [u8],
    },
    Unknown(u32),
}

impl<'a> Record<'a> {
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Self::Global { .. } => GLOBAL,
            Self::Conn { .. } => CONN,
            Self::Watch { depth: None, .. } => WATCH,
            Self::Watch { .. } => WATCH_EXT,
            Self::Transaction { .. } => TRANSACTION,
            Self::Node { .. } => NODE,
            Self::GlobalQuota(_) => GLOBAL_QUOTA,
            Self::Domain { .. } => DOMAIN,
            Self::Ring { .. } => RING,
            Self::Lock { .. } => LOCK,
            Self::Lives { .. } => LIVES,
            Self::Removed { .. } => REMOVED,
            Self::DomainGone { .. } => DOMAIN_GONE,
            Self::Dormant { .. } => DORMANT,
            Self::NoWatches { .. } => NO_WATCHES,
            Self::Setting { .. } => SETTING,
            Self::Target { .. } => TARGET,
            Self::Unwatched { .. } => UNWATCHED,
            Self::Unknown(kind) => *kind,
        }
    }

    /// Appends the body.
    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        let word = |to: &mut Vec<u8>, word: u32| to.extend_from_slice(&word.to_le_bytes());
        let half = |to: &mut Vec<u8>, half: u16| to.extend_from_slice(&half.to_le_bytes());
        match self {
            Self::Global { socket, evtchn } => {
                [socket, evtchn].into_iter().for_each(|fd| word(to, fd.cast_unsigned()));
            }
            Self::Conn { id, spec, input, output, partial } => {
                word(to, *id);
                spec.encode(to);
                half(to, len16(input));
                half(to, *partial);
                word(to, u32::try_from(output.len()).unwrap_or(u32::MAX));
                to.extend_from_slice(input);
                to.extend_from_slice(output);
            }
            Self::Watch { conn, path, token, depth } => {
                word(to, *conn);
                half(to, len16(path) + 1);
                half(to, len16(token) + 1);
                if let Some(depth) = depth {
                    half(to, *depth);
                    half(to, 0);
                }
                strings(to, &[path, token]);
            }
            Self::Transaction { conn, id } => [conn, id].into_iter().for_each(|&id| word(to, id)),
            Self::Node { conn, tx, access, perms, path, value } => {
                word(to, *conn);
                word(to, *tx);
                let count = u16::try_from(perms.len()).unwrap_or(u16::MAX);
                [len16(path) + 1, len16(value), *access, count].into_iter().for_each(|field| half(to, field));
                for perm in perms {
                    to.extend_from_slice(&[perm.letter, if perm.stale { PERM_STALE } else { 0 }]);
                    half(to, perm.domid);
                }
                strings(to, &[path]);
                to.extend_from_slice(value);
            }
            Self::GlobalQuota(quotas) => {
                half(to, u16::try_from(quotas.len()).unwrap_or(u16::MAX));
                half(to, 0);
                named(to, quotas);
            }
            Self::Domain { domid, features, quotas } => {
                half(to, *domid);
                half(to, u16::try_from(quotas.len()).unwrap_or(u16::MAX));
                word(to, *features);
                named(to, quotas);
            }
            Self::Ring { conn, page, kick, notify, lifeline, faulty, shutdown } => {
                word(to, *conn);
                [page, kick, notify, lifeline].into_iter().for_each(|fd| word(to, fd.cast_unsigned()));
                word(to, u32::from(*faulty) | u32::from(*shutdown) << 1);
            }
            Self::Lock { fd, path } => {
                word(to, fd.cast_unsigned());
                half(to, len16(path) + 1);
                strings(to, &[path]);
            }
            Self::Lives { generation, boot } => {
                to.extend_from_slice(&generation.to_le_bytes());
                half(to, len16(boot) + 1);
                strings(to, &[boot]);
            }
            Self::Removed { path } => {
                half(to, len16(path) + 1);
                strings(to, &[path]);
            }
            Self::DomainGone { domid } | Self::NoWatches { domid } => half(to, *domid),
            Self::Dormant { domid, path, token, depth } => {
                let depth = depth.unwrap_or(DEPTH_UNLIMITED);
                [*domid, depth, len16(path) + 1, len16(token) + 1]
                    .into_iter()
                    .for_each(|field| half(to, field));
                strings(to, &[path, token]);
            }
            Self::Target { domid, target } => [domid, target].into_iter().for_each(|&field| half(to, field)),
            Self::Unwatched { domid, path, token } => {
                [*domid, len16(path) + 1, len16(token) + 1].into_iter().for_each(|field| half(to, field));
                strings(to, &[path, token]);
            }
            Self::Setting { name, value } => {
                [name, value].into_iter().for_each(|text| half(to, len16(text) + 1));
                strings(to, &[name, value]);
            }
            Self::Unknown(_) => {}
        }
    }

    pub(super) fn decode(kind: u32, body: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(body);
        Some(match kind {
            GLOBAL => Self::Global { socket: fields.i32()?, evtchn: fields.i32()? },
            CONN => {
                let (id, spec) = (fields.u32()?, ConnSpec::decode(&mut fields)?);
                let (input, partial, output) = (fields.u16()?, fields.u16()?, fields.u32()?);
                let (input, output) =
                    (fields.bytes(input.into())?, fields.bytes(usize::try_from(output).ok()?)?);
                Self::Conn { id, spec, input, output, partial }
            }
            WATCH | WATCH_EXT => decode_watch(kind, fields)?,
            TRANSACTION => Self::Transaction { conn: fields.u32()?, id: fields.u32()? },
            NODE => {
                let (conn, tx) = (fields.u32()?, fields.u32()?);
                let (path, value, access, count) =
                    (fields.u16()?, fields.u16()?, fields.u16()?, fields.u16()?);
                let perms = (0..count).map(|_| NodePerm::decode(&mut fields)).collect::<Option<_>>()?;
                let (path, value) = (fields.string(path)?, fields.bytes(value.into())?);
                Self::Node { conn, tx, access, perms, path, value }
            }
            GLOBAL_QUOTA => {
                let (domain, global) = (fields.u16()?, fields.u16()?);
                Self::GlobalQuota(fields.named(domain.checked_add(global)?)?)
            }
            DOMAIN => {
                let (domid, count, features) = (fields.u16()?, fields.u16()?, fields.u32()?);
                Self::Domain { domid, features, quotas: fields.named(count)? }
            }
            RING => {
                let conn = fields.u32()?;
                let (page, kick, notify, lifeline) =
                    (fields.i32()?, fields.i32()?, fields.i32()?, fields.i32()?);
                let flags = fields.u32()?;
                let (faulty, shutdown) = (flags & 1 != 0, flags & 2 != 0);
                Self::Ring { conn, page, kick, notify, lifeline, faulty, shutdown }
            }
            LOCK => {
                let (fd, len) = (fields.i32()?, fields.u16()?);
                Self::Lock { fd, path: fields.string(len)? }
            }
            LIVES => {
                let (generation, len) = (fields.u64()?, fields.u16()?);
                Self::Lives { generation, boot: fields.string(len)? }
            }
            REMOVED => {
                let len = fields.u16()?;
                Self::Removed { path: fields.string(len)? }
            }
            DOMAIN_GONE => Self::DomainGone { domid: fields.u16()? },
            NO_WATCHES => Self::NoWatches { domid: fields.u16()? },
            DORMANT => {
                let (domid, depth, path, token) =
                    (fields.u16()?, fields.u16()?, fields.u16()?, fields.u16()?);
                let depth = Some(depth).filter(|&depth| depth != DEPTH_UNLIMITED);
                Self::Dormant { domid, path: fields.string(path)?, token: fields.string(token)?, depth }
            }
            TARGET => Self::Target { domid: fields.u16()?, target: fields.u16()? },
            UNWATCHED => {
                let (domid, path, token) = (fields.u16()?, fields.u16()?, fields.u16()?);
                Self::Unwatched { domid, path: fields.string(path)?, token: fields.string(token)? }
            }
            SETTING => {
                let (name, value) = (fields.u16()?, fields.u16()?);
                Self::Setting { name: fields.string(name)?, value: fields.string(value)? }
            }
            kind => Self::Unknown(kind),
        })
    }
}

/// With a depth C xenstored leaves the padding before the path away that the document shows.
fn decode_watch(kind: u32, mut fields: Fields<'_>) -> Option<Record<'_>> {
    let (conn, path, token) = (fields.u32()?, fields.u16()?, fields.u16()?);
    let mut depth = None;
    if kind == WATCH_EXT {
        depth = Some(fields.u16()?).filter(|&depth| depth != DEPTH_UNLIMITED);
        if fields.rest().starts_with(&[0, 0]) {
            fields.u16()?;
        }
    }
    let (path, token) = (fields.string(path)?, fields.string(token)?);
    Some(Record::Watch { conn, path, token, depth })
}

impl ConnSpec {
    /// From the type to the end of the specification, 12 bytes.
    fn encode(&self, to: &mut Vec<u8>) {
        let halves = match self {
            Self::Ring { domid, target, evtchn } => {
                let [low, high] = halves(*evtchn);
                [0, 0, *domid, target.unwrap_or(DOMID_INVALID), low, high]
            }
            Self::Socket { fd } => {
                let [low, high] = halves(fd.cast_unsigned());
                [1, 0, low, high, 0, 0]
            }
        };
        halves.into_iter().for_each(|half| to.extend_from_slice(&half.to_le_bytes()));
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let (kind, _) = (fields.u16()?, fields.u16()?);
        match kind {
            0 => {
                let (domid, target) = (fields.u16()?, fields.u16()?);
                let target = Some(target).filter(|&target| target != DOMID_INVALID);
                Some(Self::Ring { domid, target, evtchn: fields.u32()? })
            }
            1 => {
                let fd = fields.i32()?;
                fields.u32()?;
                Some(Self::Socket { fd })
            }
            _ => None,
        }
    }
}

impl NodePerm {
    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let [letter, flags] = fields.bytes(2)?.try_into().ok()?;
        Some(Self { letter, stale: flags & PERM_STALE != 0, domid: fields.u16()? })
    }
}

fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

/// Paths, tokens and values are shorter than a message.
fn len16(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX - 1)
}

fn strings(to: &mut Vec<u8>, list: &[&[u8]]) {
    for text in list {
        to.extend_from_slice(text);
        to.push(0);
    }
}

fn named(to: &mut Vec<u8>, list: &[(&[u8], u32)]) {
    list.iter().for_each(|(_, value)| to.extend_from_slice(&value.to_le_bytes()));
    list.iter().for_each(|(name, _)| strings(to, &[name]));
}
