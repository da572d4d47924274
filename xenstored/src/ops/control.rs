//! CONTROL and the quota requests.

use std::fmt::Write;

use crate::DomId;
use crate::out::Out;
use crate::quota::{Limit, Quota};
use crate::store::{Call, Store};
use crate::wire::{Errno, args, number};

type Command = fn(&mut Store, &[&[u8]]) -> Result<String, Errno>;

/// Name, arguments for `help`, handler.
const COMMANDS: &[(&str, &str, Command)] = &[
    ("check", "", check),
    ("help", "", help),
    ("memreport", "", memreport),
    ("print", "<string>", print),
    ("quota", "[set <name> <value>|<domid>|max]", quota),
];

pub(super) fn control(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = args(call.payload)?;
    let (name, rest) = list.split_first().ok_or(Errno::EINVAL)?;
    let command = COMMANDS.iter().find(|(known, ..)| known.as_bytes() == *name);
    let (_, _, run) = command.ok_or(Errno::EINVAL)?;
    let text = run(store, rest)?;
    out.reply(call, &[text.as_bytes(), b"\0"])
}

fn help(_: &mut Store, _: &[&[u8]]) -> Result<String, Errno> {
    let line = |(name, args, _): &(&str, &str, Command)| format!("{name:<15} {args}\n");
    Ok(COMMANDS.iter().map(line).collect())
}

/// Compares the accounts with a recount.
fn check(store: &mut Store, _: &[&[u8]]) -> Result<String, Errno> {
    store.check().map_or_else(Ok, |()| Ok("OK".into()))
}

fn print(_: &mut Store, args: &[&[u8]]) -> Result<String, Errno> {
    let [text] = args else { return Err(Errno::EINVAL) };
    tracing::info!("control: {}", String::from_utf8_lossy(text));
    Ok("OK".into())
}

fn memreport(store: &mut Store, _: &[&[u8]]) -> Result<String, Errno> {
    let transactions: usize = store.conns.values().map(|conn| conn.transactions.len()).sum();
    let domains = store.domains.introduced().count();
    let mut text = format!(
        "connections {}\ndomains {domains}\nwatches {}\ntransactions {transactions}\n",
        store.conns.len(),
        store.watches.count(),
    );
    for (owner, (nodes, bytes)) in store.accounts.all() {
        let _ = writeln!(text, "domain {owner} nodes {nodes} bytes {bytes}");
    }
    Ok(text)
}

fn quota(store: &mut Store, args: &[&[u8]]) -> Result<String, Errno> {
    match args {
        [] => Ok(limits(&store.quota, None)),
        [b"set", name, value] => {
            store.quota.set(None, Limit::from_name(name).ok_or(Errno::EINVAL)?, number(value)?);
            Ok("OK".into())
        }
        [domid] => {
            let domid: DomId = number(domid)?;
            store.domains.life(domid).ok_or(Errno::ENOENT)?;
            Ok(format!("Domain {domid}:\nnodes: {:8}\n", store.accounts.nodes(domid)))
        }
        _ => Err(Errno::EINVAL),
    }
}

fn limits(quota: &Quota, domid: Option<DomId>) -> String {
    let line =
        |&limit: &Limit| format!("{:<20}: {:8} {}\n", limit.name(), quota.value(domid, limit), limit.about());
    Limit::ALL.iter().map(line).collect()
}

/// Nothing: the names. `name` or `domid\0name`: the value.
pub(super) fn get_quota(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = args(call.payload)?;
    let text = match list[..] {
        [b""] => Limit::ALL.iter().map(|limit| limit.name()).collect::<Vec<_>>().join(" "),
        [name] => value(store, None, name)?,
        [domid, name] => value(store, Some(number(domid)?), name)?,
        _ => return Err(Errno::EINVAL),
    };
    out.reply(call, &[text.as_bytes(), b"\0"])
}

fn value(store: &Store, domid: Option<DomId>, name: &[u8]) -> Result<String, Errno> {
    let limit = Limit::from_name(name).ok_or(Errno::EINVAL)?;
    known(store, domid)?;
    Ok(store.quota.value(domid, limit).to_string())
}

/// `name\0value\0` or `domid\0name\0value\0`; 0 takes the limit away.
pub(super) fn set_quota(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = args(call.payload)?;
    let (domid, name, value) = match list[..] {
        [name, value] => (None, name, value),
        [domid, name, value] => (Some(number(domid)?), name, value),
        _ => return Err(Errno::EINVAL),
    };
    let limit = Limit::from_name(name).ok_or(Errno::EINVAL)?;
    known(store, domid)?;
    store.quota.set(domid, limit, number(value)?);
    out.ack(call)
}

fn known(store: &Store, domid: Option<DomId>) -> Result<(), Errno> {
    domid.map_or(Ok(()), |domid| store.domains.life(domid).map(drop).ok_or(Errno::ENOENT))
}
