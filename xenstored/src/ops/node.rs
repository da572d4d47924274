//! READ, WRITE and the other requests about nodes.

use xen_abi::io::xs_wire::XENSTORE_SERVER_FEATURE_DOMID_ANY;

use crate::out::Out;
use crate::path::{Name, parent};
use crate::perms::{Access, Caller, DOMID_ANY, Entry, Life, Perm, Perms};
use crate::quota::Limit;
use crate::store::{Call, Store};
use crate::transaction::Aspect;
use crate::wire::{Errno, PAYLOAD_MAX, args, first_arg, number, one_arg, whole_args};

pub(super) fn directory(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let path = store.path(call, one_arg(call.payload)?)?;
    store.note(call, &path, Aspect::Children)?;
    store.fetch(call, &path, Access::read)?;
    out.reply(call, &[&store.listing(call, &path)])
}

/// `path\0offset\0` -> `generation\0` and names; one NUL too many after the last name.
pub(super) fn directory_part(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = args(call.payload)?;
    let [path, offset] = list[..] else { return Err(Errno::EINVAL) };
    let (path, offset) = (store.path(call, path)?, number::<usize>(offset)?);
    store.note(call, &path, Aspect::Children)?;
    let generation = format!("{}\0", store.fetch(call, &path, Access::read)?.generation);
    let listing = store.listing(call, &path);
    let names = listing.get(offset..).unwrap_or_default();
    let room = PAYLOAD_MAX - generation.len() - 1;
    let fit = match names.get(..room) {
        None => names.len(),
        Some(most) => most.iter().rposition(|&byte| byte == 0).map_or(0, |last| last + 1),
    };
    let end: &[u8] = if fit == names.len() { b"\0" } else { b"" };
    out.reply(call, &[generation.as_bytes(), names.get(..fit).unwrap_or_default(), end])
}

pub(super) fn read(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let path = store.path(call, one_arg(call.payload)?)?;
    store.note(call, &path, Aspect::Content)?;
    let node = store.fetch(call, &path, Access::read)?;
    out.reply(call, &[node.value])
}

/// `path\0value`; the value is any bytes.
pub(super) fn write(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let (path, value) = first_arg(call.payload)?;
    let path = store.path(call, path)?;
    store.note(call, &path, Aspect::Content)?;
    match store.write_node(call, &path, value, out) {
        Ok(()) => {}
        Err(Errno::ENOENT) => store.create_node(call, &path, value, out)?,
        Err(errno) => return Err(errno),
    }
    out.ack(call)
}

pub(super) fn mkdir(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let path = store.path(call, one_arg(call.payload)?)?;
    store.note(call, &path, Aspect::Content)?;
    match store.fetch(call, &path, Access::write).map(drop) {
        Ok(()) => {}
        Err(Errno::ENOENT) => store.create_node(call, &path, b"", out)?,
        Err(errno) => return Err(errno),
    }
    out.ack(call)
}

pub(super) fn rm(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let path = store.path(call, one_arg(call.payload)?)?;
    store.note(call, &path, Aspect::Content)?;
    match store.fetch(call, &path, Access::write).map(drop) {
        Ok(()) if path == "/" => return Err(Errno::EINVAL),
        Ok(()) => store.remove_node(Some(call), &path, out),
        // That it is gone already is success, if it could have been there.
        Err(Errno::ENOENT) => {
            let parent = parent(&path).ok_or(Errno::EINVAL)?;
            store.find(call, parent).ok_or(Errno::ENOENT)?;
        }
        Err(errno) => return Err(errno),
    }
    out.ack(call)
}

pub(super) fn get_perms(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let perms = match store.name(call, one_arg(call.payload)?)? {
        Name::Node(path) => {
            store.note(call, &path, Aspect::Content)?;
            store.fetch(call, &path, Access::read)?.perms.clone()
        }
        Name::Special(name) => {
            // Who may read none of them does not learn which there are.
            let hidden = if call.caller.privileged { Errno::ENOENT } else { Errno::EACCES };
            let perms = store.find_special(call, &name)?.ok_or(hidden)?;
            Some(perms).filter(|perms| perms.access(&call.caller).read()).ok_or(Errno::EACCES)?
        }
    };
    out.reply(call, &[perms.to_wire().as_bytes()])
}

/// `path\0perm\0perm\0...`, the owner's first.
pub(super) fn set_perms(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = whole_args(call.payload);
    let Some((name, texts)) = list.split_first().filter(|(_, texts)| !texts.is_empty()) else {
        return Err(Errno::EINVAL);
    };
    let name = store.name(call, name)?;
    if texts.len() > store.limit(&call.caller, Limit::NodePermissions) {
        return Err(Errno::ENOSPC);
    }
    let perms = parse_perms(store, &call.caller, texts)?;
    match name {
        Name::Special(name) => {
            let old = store.find_special(call, &name)?;
            if !call.caller.privileged && !old.as_ref().is_some_and(|old| old.owned_by(&call.caller)) {
                return Err(Errno::EACCES);
            }
            if old.is_none() && !store.names_a_domain(&name) {
                return Err(Errno::ENOENT);
            }
            if !call.caller.privileged && old.as_ref().is_some_and(|old| old.owner() != perms.owner()) {
                return Err(Errno::EPERM);
            }
            store.set_special_perms(call, &name, old, perms, out);
        }
        Name::Node(path) => {
            store.note(call, &path, Aspect::Content)?;
            let old = store.fetch(call, &path, Access::write)?.perms.clone();
            if !old.owned_by(&call.caller) {
                return Err(Errno::EACCES);
            }
            if !call.caller.privileged && old.owner() != perms.owner() {
                return Err(Errno::EPERM);
            }
            store.set_node_perms(call, &path, &perms, out)?;
        }
    }
    out.ack(call)
}

/// Binds every entry to the present life of its domain. One without a life never applies, and cannot own; one for every
/// domain applies if the feature was not withheld from who sets it.
fn parse_perms(store: &Store, caller: &Caller, texts: &[&[u8]]) -> Result<Perms, Errno> {
    let everybody = store.domains.has_feature(caller.domid, XENSTORE_SERVER_FEATURE_DOMID_ANY);
    let life = |domid| match domid {
        DOMID_ANY => everybody.then_some(Life(0)),
        domid => store.domains.life(domid),
    };
    let entry = |text: &&[u8]| {
        let perm = Perm::parse(text)?;
        Ok(Entry { perm, life: life(perm.domid).unwrap_or(Life::NEVER) })
    };
    let entries = texts.iter().map(entry).collect::<Result<Vec<_>, Errno>>()?;
    let owner = entries.first().ok_or(Errno::EINVAL)?;
    if owner.life == Life::NEVER || owner.perm.domid == DOMID_ANY {
        return Err(Errno::ENOENT);
    }
    Perms::new(entries).ok_or(Errno::EINVAL)
}
