//! INTRODUCE and the other requests about domains.

use crate::DomId;
use crate::domain::{DOMID_FIRST_RESERVED, DOMID_SELF};
use crate::out::{Action, Out};
use crate::path::Path;
use crate::store::{Call, Store};
use crate::wire::{Errno, args, number, one_arg};

use super::INTRODUCE_DOMAIN;

/// `domid\0gfn\0port\0`. The ring comes as descriptors, so `gfn` and `port` are only checked for their form.
pub(super) fn introduce(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = args(call.payload)?;
    let [domid, gfn, port, ..] = list[..] else { return Err(Errno::EINVAL) };
    // A signed decimal.
    let _: u64 = number(gfn.strip_prefix(b"-").unwrap_or(gfn))?;
    let (domid, port) = (number::<DomId>(domid)?, number::<u32>(port)?);
    if domid == 0 || domid >= DOMID_FIRST_RESERVED || port == 0 || !call.ring {
        return Err(Errno::EINVAL);
    }
    let features = store.domains.features(domid);
    let known = store.domains.ensure(domid).conn;
    if let Some(conn) = known {
        store.reset(conn);
        out.actions.push(Action::Serve { conn, domid, features, again: true });
    } else {
        let conn = store.add_conn(store.domains.caller(domid));
        let domain = store.domains.ensure(domid);
        domain.conn = Some(conn);
        domain.shutdown = false;
        out.actions.push(Action::Serve { conn, domid, features, again: false });
        store.come_back(domid, conn, out);
        store.fire_special(INTRODUCE_DOMAIN, domid, out);
    }
    out.ack(call)
}

pub(super) fn release(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let domid = domid(call)?;
    if domid == 0 {
        return Err(Errno::EINVAL);
    }
    // Of one that an earlier daemon served the end may come before it is attached again.
    if !store.domains.is_introduced(domid) && !store.dormant.contains_key(&domid) {
        return Err(Errno::ENOENT);
    }
    store.release(domid, out);
    out.ack(call)
}

pub(super) fn resume(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let domid = domid(call)?;
    if domid == 0 {
        return Err(Errno::EINVAL);
    }
    let domain = store.domains.get_mut(domid).filter(|domain| domain.conn.is_some());
    domain.ok_or(Errno::ENOENT)?.shutdown = false;
    out.ack(call)
}

pub(super) fn is_introduced(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let domid = domid(call)?;
    let known = domid == DOMID_SELF || store.domains.is_introduced(domid);
    out.reply(call, &[if known { b"T\0" } else { b"F\0" }])
}

pub(super) fn get_domain_path(_: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let path = Path::home(domid(call)?);
    out.reply(call, &[path.as_bytes(), b"\0"])
}

pub(super) fn set_target(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = args(call.payload)?;
    let [domid, target, ..] = list[..] else { return Err(Errno::EINVAL) };
    let (domid, target) = (number::<DomId>(domid)?, number::<DomId>(target)?);
    if !store.set_target(domid, target) {
        return Err(Errno::ENOENT);
    }
    out.ack(call)
}

impl Store {
    /// Gives a domain the rights of another; `false` if one of them is not introduced.
    pub(crate) fn set_target(&mut self, domid: DomId, target: DomId) -> bool {
        let Some(life) = self.domains.life(target).filter(|_| self.domains.is_introduced(target)) else {
            return false;
        };
        let Some(domain) = self.domains.get_mut(domid).filter(|domain| domain.conn.is_some()) else {
            return false;
        };
        domain.target = Some((target, life));
        self.domains.changes.note(Some(domid));
        let conn = self.domains.get(domid).and_then(|domain| domain.conn);
        let caller = self.domains.caller(domid);
        if let Some(state) = conn.and_then(|conn| self.conns.get_mut(&conn)) {
            state.caller = caller;
        }
        true
    }
}

/// `\0` for one's own features, `domid\0` for those of a domain (privileged).
pub(super) fn get_feature(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let domid = match optional_arg(call.payload)? {
        b"" => call.caller.domid,
        _ if !call.caller.privileged => return Err(Errno::EACCES),
        arg => number(arg)?,
    };
    if domid != 0 && store.domains.get(domid).is_none() {
        return Err(Errno::ENOENT);
    }
    out.reply(call, &[format!("{}\0", store.domains.features(domid)).as_bytes()])
}

/// `domid\0features\0`, before the domain is introduced.
pub(super) fn set_feature(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = args(call.payload)?;
    let [domid, features] = list[..] else { return Err(Errno::EINVAL) };
    let (domid, features) = (number::<DomId>(domid)?, number::<u32>(features)?);
    if domid >= DOMID_FIRST_RESERVED || features & !crate::domain::FEATURES != 0 {
        return Err(Errno::EINVAL);
    }
    if store.domains.is_introduced(domid) {
        return Err(Errno::EBUSY);
    }
    store.domains.get(domid).ok_or(Errno::ENOENT)?;
    store.domains.set_features(domid, features);
    out.ack(call)
}

/// One argument, or none: an empty payload.
fn optional_arg(payload: &[u8]) -> Result<&[u8], Errno> {
    if payload.is_empty() { Ok(payload) } else { one_arg(payload) }
}

fn domid(call: &Call<'_>) -> Result<DomId, Errno> {
    number(one_arg(call.payload)?)
}
