//! WATCH, UNWATCH, RESET_WATCHES.

use std::sync::Arc;

use xen_abi::io::xs_wire::XENSTORE_SERVER_FEATURE_WATCHDEPTH;

use crate::dormant::Dormant;
use crate::out::Out;
use crate::path::{Name, home};
use crate::quota::Limit;
use crate::store::{Call, Store};
use crate::watch::Watch;
use crate::wire::{Errno, number, whole_args};

/// `path\0token\0`, and with the feature WATCHDEPTH `depth\0`. The reply comes first, then one event.
pub(super) fn watch(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = whole_args(call.payload);
    let (arg, token, depth) = match list[..] {
        [arg, token] => (arg, token, None),
        [arg, token, depth] => (arg, token, Some(number(depth)?)),
        _ => return Err(Errno::EINVAL),
    };
    let name = store.name(call, arg)?;
    let deep = depth.is_some() || matches!(&name, Name::Special(name) if name.contains('/'));
    if deep && !store.domains.has_feature(call.caller.domid, XENSTORE_SERVER_FEATURE_WATCHDEPTH) {
        return Err(Errno::EINVAL);
    }
    // The domid is all that is below a special event.
    if matches!(name, Name::Special(_)) && depth.is_some_and(|depth| depth > 1) {
        return Err(Errno::EINVAL);
    }
    let relative = if arg.first().is_some_and(|first| !b"/@".contains(first)) {
        home(call.caller.domid).len() + 1
    } else {
        0
    };
    let key: (Arc<str>, Box<[u8]>) = (name.as_str().into(), token.into());
    let state = store.conns.get(&call.conn).ok_or(Errno::EINVAL)?;
    if state.watches.contains_key(&key) {
        return Err(Errno::EEXIST);
    }
    if state.watches.len() >= store.limit(&call.caller, Limit::Watches) {
        return Err(Errno::ENOSPC);
    }
    let bytes = Store::watch_bytes(&key.0, token);
    store.check_memory(call, bytes)?;
    let watch = Watch { conn: call.conn, token: key.1.clone(), depth, relative };
    let number = store.watches.insert(Arc::clone(&key.0), watch);
    if let Some(state) = store.conns.get_mut(&call.conn) {
        state.watches.insert(key, number);
        state.watch_bytes += bytes;
    }
    if store.journal.is_some() {
        let depth = depth.map(|depth: usize| u16::try_from(depth).unwrap_or(u16::MAX - 1));
        let watch = Dormant { path: arg.into(), token: token.into(), depth };
        store.note_watched(call.caller.domid, &watch);
    }
    out.ack(call)?;
    out.event(call.conn, &String::from_utf8_lossy(arg), token);
    Ok(())
}

pub(super) fn unwatch(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = whole_args(call.payload);
    let [arg, token] = list[..] else { return Err(Errno::EINVAL) };
    let name = store.name(call, arg)?;
    let state = store.conns.get_mut(&call.conn).ok_or(Errno::EINVAL)?;
    let number = state.watches.remove(&(name.as_str().into(), token.into())).ok_or(Errno::ENOENT)?;
    let bytes = Store::watch_bytes(name.as_str(), token);
    state.watch_bytes -= bytes;
    store.note_freed(bytes);
    let relative = store.watches.get(name.as_str(), number).map_or(0, |watch| watch.relative);
    store.watches.remove(name.as_str(), number);
    store.note_unwatched(call.caller.domid, name.as_str().get(relative..).unwrap_or_default(), token);
    out.ack(call)
}

/// Drops the caller's transactions too, the one of this request among them.
pub(super) fn reset_watches(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    if call.tx.take().is_some() {
        store.transaction_over(call.conn, None, None);
    }
    store.reset(call.conn);
    out.ack(call)
}
