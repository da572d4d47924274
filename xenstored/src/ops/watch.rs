//! WATCH, UNWATCH, RESET_WATCHES.

use std::sync::Arc;

use crate::out::Out;
use crate::path::{Name, home};
use crate::quota::Limit;
use crate::store::{Call, Store};
use crate::watch::Watch;
use crate::wire::{Errno, args, number};

/// `path\0token\0`, and with the feature WATCHDEPTH `depth\0`. The reply comes first, then one event.
pub(super) fn watch(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = args(call.payload)?;
    let (arg, token, depth) = match list[..] {
        [arg, token] => (arg, token, None),
        [arg, token, depth] => (arg, token, Some(number(depth)?)),
        _ => return Err(Errno::EINVAL),
    };
    let name = store.name(call, arg)?;
    let relative = if arg.first().is_some_and(|first| !b"/@".contains(first)) {
        home(call.caller.domid).len() + 1
    } else {
        0
    };
    let limit = store.limit(&call.caller, Limit::Watches);
    let state = store.conns.get_mut(&call.conn).ok_or(Errno::EINVAL)?;
    let key: (Arc<str>, Box<[u8]>) = (key(&name), token.into());
    if state.watches.contains(&key) {
        return Err(Errno::EEXIST);
    }
    if state.watches.len() >= limit {
        return Err(Errno::ENOSPC);
    }
    state.watches.insert(key.clone());
    store.watches.insert(key.0, Watch { conn: call.conn, token: key.1, depth, relative });
    out.ack(call)?;
    out.event(call.conn, &String::from_utf8_lossy(arg), token);
    Ok(())
}

pub(super) fn unwatch(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = args(call.payload)?;
    let [arg, token] = list[..] else { return Err(Errno::EINVAL) };
    let name = store.name(call, arg)?;
    let state = store.conns.get_mut(&call.conn).ok_or(Errno::EINVAL)?;
    state.watches.remove(&(key(&name), token.into()));
    if !store.watches.remove(name.as_str(), call.conn, token) {
        return Err(Errno::ENOENT);
    }
    out.ack(call)
}

/// Drops the caller's transactions too, the one of this request among them.
pub(super) fn reset_watches(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    if let Some(tx) = call.tx.take() {
        store.discard(tx);
    }
    store.reset(call.conn);
    out.ack(call)
}

fn key(name: &Name) -> Arc<str> {
    Arc::from(name.as_str())
}
