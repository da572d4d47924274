//! TRANSACTION_START and TRANSACTION_END.

use crate::out::Out;
use crate::quota::Limit;
use crate::room::{self, MARGIN};
use crate::store::{Call, Store};
use crate::transaction::Transaction;
use crate::wire::{Errno, one_arg};

/// Bytes from which on a transaction takes much memory.
const MUCH: usize = 64 * 1024;

pub(super) fn start(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    if call.tx.is_some() {
        return Err(Errno::EBUSY);
    }
    let limit = store.limit(&call.caller, Limit::Transactions);
    let state = store.conns.get_mut(&call.conn).ok_or(Errno::EINVAL)?;
    if state.transactions.len() >= limit {
        return Err(Errno::ENOSPC);
    }
    let id = loop {
        state.last_transaction = state.last_transaction.wrapping_add(1);
        if state.last_transaction != 0 && !state.transactions.contains_key(&state.last_transaction) {
            break state.last_transaction;
        }
    };
    state.transactions.insert(id, Box::default());
    store.transaction_begins(call.conn);
    out.reply(call, &[format!("{id}\0").as_bytes()])
}

/// A transaction of this id is not open. If the caller may have begun it at an earlier daemon it will fail in a way that
/// has it tried again.
///
/// # Errors
/// `ENOENT` if not.
pub(super) fn lost(store: &mut Store, call: &Call<'_>) -> Result<Box<Transaction>, Errno> {
    let limit = store.limit(&call.caller, Limit::Transactions);
    let known = store.conns.get(&call.conn).filter(|conn| conn.came_back && conn.transactions.len() < limit);
    known.ok_or(Errno::ENOENT)?;
    store.open += 1;
    Ok(Box::new(Transaction::lost()))
}

/// `T` commits, `F` abandons. Whatever comes of it, the transaction is over.
pub(super) fn end(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let commit = match one_arg(call.payload)? {
        b"T" => true,
        b"F" => false,
        _ => return Err(Errno::EINVAL),
    };
    let tx = call.tx.take().ok_or(Errno::ENOENT)?;
    store.note_freed(if tx.bytes > MUCH { tx.bytes } else { 0 });
    if !commit {
        store.transaction_over(call.conn, None, None);
        return out.ack(call);
    }
    // Its changes are nodes, records of the state folder and events before it is forgotten itself.
    let fits = tx.bytes <= MUCH || room::is_there(MARGIN + 4 * tx.bytes);
    let failed = tx.failed.or(if fits { None } else { Some(Errno::ENOMEM) });
    let result = failed.map_or(Ok(()), Err);
    let lost = tx.conflict(&store.tree).or_else(|| store.special_conflict(&tx)).filter(|_| result.is_ok());
    let conflict = lost.is_some();
    store.transaction_over(call.conn, Some(&tx), lost);
    result?;
    if conflict {
        return Err(Errno::EAGAIN);
    }
    let changes = !tx.events.is_empty();
    store.commit(call, *tx, out)?;
    if changes {
        store.charge_writer(call);
    }
    out.ack(call)
}
