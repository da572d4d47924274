//! The requests: one table, a handler per message type.

mod control;
mod domain;
mod node;
mod transaction;
mod watch;

use crate::out::Out;
use crate::room::{self, MARGIN};
use crate::store::{Call, Store};
use crate::wire::{Errno, MsgType};

/// Fires when a domain is introduced.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// Fires when a domain has shut down or is no more.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";

type Handler = fn(&mut Store, &mut Call<'_>, &mut Out) -> Result<(), Errno>;

/// For domain 0 and the socket only.
const PRIVILEGED: u8 = 1;
/// The header's transaction is ignored.
const NO_TID: u8 = 2;
/// The store takes more memory afterwards.
const GROWS: u8 = 4;

/// Bytes that a request may take, besides its payload.
const REQUEST: usize = 512;

const TABLE: &[(MsgType, Handler, u8)] = &[
    (MsgType::CONTROL, control::control, PRIVILEGED),
    (MsgType::DIRECTORY, node::directory, 0),
    (MsgType::READ, node::read, 0),
    (MsgType::GET_PERMS, node::get_perms, 0),
    (MsgType::WATCH, watch::watch, NO_TID | GROWS),
    (MsgType::UNWATCH, watch::unwatch, NO_TID),
    (MsgType::TRANSACTION_START, transaction::start, GROWS),
    (MsgType::TRANSACTION_END, transaction::end, 0),
    (MsgType::INTRODUCE, domain::introduce, PRIVILEGED | GROWS),
    (MsgType::RELEASE, domain::release, PRIVILEGED),
    (MsgType::GET_DOMAIN_PATH, domain::get_domain_path, 0),
    (MsgType::WRITE, node::write, GROWS),
    (MsgType::MKDIR, node::mkdir, GROWS),
    (MsgType::RM, node::rm, 0),
    (MsgType::SET_PERMS, node::set_perms, GROWS),
    (MsgType::IS_DOMAIN_INTRODUCED, domain::is_introduced, PRIVILEGED),
    (MsgType::RESUME, domain::resume, PRIVILEGED),
    (MsgType::SET_TARGET, domain::set_target, PRIVILEGED),
    (MsgType::RESET_WATCHES, watch::reset_watches, 0),
    (MsgType::DIRECTORY_PART, node::directory_part, 0),
    (MsgType::GET_FEATURE, domain::get_feature, 0),
    (MsgType::SET_FEATURE, domain::set_feature, PRIVILEGED),
    (MsgType::GET_QUOTA, control::get_quota, PRIVILEGED),
    (MsgType::SET_QUOTA, control::set_quota, PRIVILEGED),
];

/// A big table that has to grow takes much at once.
fn tables_may_grow(store: &Store, call: &Call<'_>) -> bool {
    let watches = if call.header.kind == MsgType::WATCH { store.watches.growth() } else { 0 };
    let growth = watches + call.tx.as_ref().map_or(0, |tx| tx.growth());
    growth <= MARGIN / 8 || room::is_there(growth + MARGIN)
}

/// Finds the handler, checks what the table says, takes the transaction out of its connection for the handler.
///
/// # Errors
/// `ENOSYS` for a type that is no request, `EACCES`, `ENOENT` for an unknown transaction, `ENOMEM`, or the handler's.
pub(crate) fn dispatch(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let row = TABLE.iter().find(|(kind, ..)| *kind == call.header.kind);
    let &(_, handler, flags) = row.ok_or(Errno::ENOSYS)?;
    if flags & PRIVILEGED != 0 && !call.caller.privileged {
        return Err(Errno::EACCES);
    }
    if flags & NO_TID == 0 && call.header.tx_id != 0 {
        let conn = store.conns.get_mut(&call.conn).ok_or(Errno::EINVAL)?;
        let open = conn.transactions.remove(&call.header.tx_id);
        call.tx = Some(open.map_or_else(|| transaction::lost(store, call), Ok)?);
    }
    // A transaction remembers whatever it is asked.
    let grows = flags & GROWS != 0 || call.tx.is_some() && call.header.kind != MsgType::TRANSACTION_END;
    if grows && (store.is_short(REQUEST + 2 * call.payload.len()) || !tables_may_grow(store, call)) {
        return Err(Errno::ENOMEM);
    }
    handler(store, call, out)
}
