//! The requests: one table, a handler per message type.

mod control;
mod domain;
mod node;
mod transaction;
mod watch;

use crate::out::Out;
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

const TABLE: &[(MsgType, Handler, u8)] = &[
    (MsgType::CONTROL, control::control, PRIVILEGED),
    (MsgType::DIRECTORY, node::directory, 0),
    (MsgType::READ, node::read, 0),
    (MsgType::GET_PERMS, node::get_perms, 0),
    (MsgType::WATCH, watch::watch, NO_TID),
    (MsgType::UNWATCH, watch::unwatch, NO_TID),
    (MsgType::TRANSACTION_START, transaction::start, 0),
    (MsgType::TRANSACTION_END, transaction::end, 0),
    (MsgType::INTRODUCE, domain::introduce, PRIVILEGED),
    (MsgType::RELEASE, domain::release, PRIVILEGED),
    (MsgType::GET_DOMAIN_PATH, domain::get_domain_path, 0),
    (MsgType::WRITE, node::write, 0),
    (MsgType::MKDIR, node::mkdir, 0),
    (MsgType::RM, node::rm, 0),
    (MsgType::SET_PERMS, node::set_perms, 0),
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

/// Finds the handler, checks what the table says, takes the transaction out of its connection for the handler.
///
/// # Errors
/// `ENOSYS` for a type that is no request, `EACCES`, `ENOENT` for an unknown transaction, or the handler's.
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
    handler(store, call, out)
}
