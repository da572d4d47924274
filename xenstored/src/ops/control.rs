//! CONTROL and the quota requests.

use std::fmt::Write;

use crate::DomId;
use crate::out::Out;
use crate::quota::{Limit, Quota};
use crate::store::{Call, Store};
use crate::wire::{Errno, args, number};

type Command = fn(&mut Store, &[&[u8]]) -> Result<String, Errno>;

/// Name, arguments for `help`, handler; none where the server answers, which sees the request first.
const COMMANDS: &[(&str, &str, Option<Command>)] = &[
    ("check", "", Some(check)),
    ("log", "[on|off|+<switch>|-<switch>]", None),
    // These are the arguments of `xenstore control`, which sends them in steps: -f, -c, -v, -s or -a.
    (
        "live-update",
        "[-c <cmdline>] [-F] [-t <timeout>] [-v <version>] <file>\n    Default timeout is 60 seconds.",
        None,
    ),
    ("logfile", "<file>", None),
    ("memreport", "[<file>]", None),
    ("print", "<string>", Some(print)),
    ("quota", "[set <name> <val>|<domid>|max [-r]]", Some(quota)),
    ("quota-soft", "[set <name> <val>]", Some(quota_soft)),
    ("help", "", Some(help)),
];

pub(super) fn control(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = args(call.payload)?;
    let (name, rest) = list.split_first().ok_or(Errno::EINVAL)?;
    let command = COMMANDS.iter().find(|(known, ..)| known.as_bytes() == *name);
    let run = command.and_then(|(_, _, run)| *run).ok_or(Errno::EINVAL)?;
    // The transaction of the request is counted with the others.
    if let Some((tx, conn)) = call.tx.take().zip(store.conns.get_mut(&call.conn)) {
        conn.transactions.insert(call.header.tx_id, tx);
    }
    let text = run(store, rest)?;
    out.reply(call, &[text.as_bytes(), b"\0"])
}

fn help(_: &mut Store, args: &[&[u8]]) -> Result<String, Errno> {
    if !args.is_empty() {
        return Err(Errno::EINVAL);
    }
    let line = |(name, args, _): &(&str, &str, _)| format!("{name:<15} {args}\n");
    Ok(COMMANDS.iter().map(line).collect())
}

/// Compares the accounts with a recount.
fn check(store: &mut Store, args: &[&[u8]]) -> Result<String, Errno> {
    if !args.is_empty() {
        return Err(Errno::EINVAL);
    }
    store.check().map_or_else(Ok, |()| Ok("OK".into()))
}

fn print(_: &mut Store, args: &[&[u8]]) -> Result<String, Errno> {
    let [text] = args else { return Err(Errno::EINVAL) };
    tracing::info!("control: {}", String::from_utf8_lossy(text));
    Ok("OK".into())
}

fn quota(store: &mut Store, args: &[&[u8]]) -> Result<String, Errno> {
    match args {
        [] => Ok(limits(&store.quota)),
        [b"set", name, value] => {
            store.quota.set(None, Limit::from_name(name).ok_or(Errno::EINVAL)?, number(value)?);
            Ok("OK".into())
        }
        [b"max"] => Ok(store.usage.text()),
        [b"max", b"-r"] => {
            let text = store.usage.text();
            store.usage.reset();
            Ok(text)
        }
        [domid] => {
            let domid: DomId = number(domid)?;
            store.domains.life(domid).ok_or(Errno::ENOENT)?;
            Ok(of_domain(store, domid))
        }
        _ => Err(Errno::EINVAL),
    }
}

fn of_domain(store: &Store, domid: DomId) -> String {
    let now = store.used(domid);
    let most = store.usage.most(domid);
    let mut text = format!("Domain {domid}:\n");
    for ((limit, now), most) in Limit::ALL.iter().zip(now).zip(most) {
        let _ = writeln!(text, "{:<17}: {now:8} (max {:8})", limit.name(), most.max(now));
    }
    text
}

/// The line before limits.
const SETTINGS: &str = "Quota settings:\n";

fn limits(quota: &Quota) -> String {
    let line =
        |&limit: &Limit| format!("{:<17}: {:8} {}\n", limit.name(), quota.value(None, limit), limit.about());
    Limit::ALL.iter().map(line).fold(SETTINGS.into(), |text: String, line| text + &line)
}

/// A domain above a soft quota is only warned of in the log.
fn quota_soft(store: &mut Store, args: &[&[u8]]) -> Result<String, Errno> {
    match args {
        [] => Ok(format!(
            "{SETTINGS}{:<17}: {:8} {}\n",
            "memory",
            store.quota.value(None, Limit::SoftMemory),
            Limit::Memory.about()
        )),
        [b"set", b"memory", value] => {
            store.set_soft_memory(number(value)?);
            Ok("OK".into())
        }
        _ => Err(Errno::EINVAL),
    }
}

impl Store {
    /// What it holds, for people.
    pub(crate) fn report(&self) -> String {
        let transactions: usize = self.conns.values().map(|conn| conn.transactions.len()).sum();
        let mut text = format!(
            "connections {}\ndomains {}\nwatches {}\ntransactions {transactions}\n",
            self.conns.len(),
            self.domains.introduced().count(),
            self.watches.count(),
        );
        for (owner, (nodes, bytes)) in self.accounts.all() {
            let _ = writeln!(text, "owner {owner} nodes {nodes} bytes {bytes}");
        }
        text
    }
}

/// Nothing: the names. `name` or `domid\0name`: the value.
pub(super) fn get_quota(store: &mut Store, call: &mut Call<'_>, out: &mut Out) -> Result<(), Errno> {
    let list = if call.payload.is_empty() { vec![&b""[..]] } else { args(call.payload)? };
    let text = match list[..] {
        [b""] => Limit::on_wire().map(Limit::name).collect::<Vec<_>>().join(" "),
        [name] => value(store, None, name)?,
        [domid, name] => value(store, Some(number(domid)?), name)?,
        _ => return Err(Errno::EINVAL),
    };
    out.reply(call, &[text.as_bytes(), b"\0"])
}

fn value(store: &Store, domid: Option<DomId>, name: &[u8]) -> Result<String, Errno> {
    let limit = Limit::from_wire(name).ok_or(Errno::EINVAL)?;
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
    let limit = Limit::from_wire(name).ok_or(Errno::EINVAL)?;
    known(store, domid)?;
    store.quota.set(domid, limit, number(value)?);
    out.ack(call)
}

fn known(store: &Store, domid: Option<DomId>) -> Result<(), Errno> {
    domid.map_or(Ok(()), |domid| store.domains.life(domid).map(drop).ok_or(Errno::ENOENT))
}
