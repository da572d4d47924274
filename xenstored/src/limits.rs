//! Options about limits, as C xenstored has them.

use std::str::FromStr;

use clap::Args;
use xenstored::quota::Limit;
use xenstored::store::Store;

/// What guests are limited to from the start. A live update carries over what was set since.
#[derive(Args)]
pub struct Limits {
    /// Limit the nodes of a domain
    #[arg(short = 'E', long, value_name = "N")]
    entry_nb: Option<u32>,
    /// Limit the bytes of a node
    #[arg(short = 'S', long, value_name = "N")]
    entry_size: Option<u32>,
    /// Limit the watches of a domain
    #[arg(short = 'W', long, value_name = "N")]
    watch_nb: Option<u32>,
    /// Limit the open transactions of a domain
    #[arg(short = 't', long, value_name = "N")]
    transaction: Option<u32>,
    /// Limit the permissions of a node
    #[arg(short = 'A', long, value_name = "N")]
    perm_nb: Option<u32>,
    /// Limit the bytes of a path
    #[arg(short = 'M', long, value_name = "N")]
    path_max: Option<u32>,
    /// Set any limit by its name in `xenstore control quota`; may be given more than once
    #[arg(short = 'Q', long, value_name = "WHAT=N", value_parser = quota)]
    quota: Vec<(Limit, u32)>,
    /// Warn in the log of a domain that uses more; WHAT is memory
    #[arg(short = 'q', long, value_name = "WHAT=N", value_parser = soft)]
    quota_soft: Option<u32>,
    /// Without effect: events are never given up for their age; WHAT is watch-event
    #[arg(short = 'w', long, value_name = "WHAT=SECONDS", value_parser = timeout)]
    timeout: Option<u32>,
    /// Leave the nodes of a domain that is no more to domain 0, instead of removing them
    #[arg(short = 'K', long)]
    pub keep_orphans: bool,
}

/// What C xenstoreds have besides: 4.20 those with a number and no short name, earlier ones the others. None has an
/// effect here.
#[derive(Args)]
pub struct Others {
    #[arg(short = 'D', long, hide = true)]
    no_domain_init: bool,
    #[arg(short = 'I', long, hide = true, value_name = "FLAG", num_args = 0..=1, require_equals = true)]
    internal_db: Option<Option<String>>,
    #[arg(short = 'L', long, hide = true)]
    preserve_local: bool,
    #[arg(short = 'P', long, hide = true)]
    output_pid: bool,
    #[arg(short = 'R', long, hide = true)]
    no_recovery: bool,
    #[arg(short = 'V', long, hide = true)]
    verbose: bool,
    #[arg(short = 'e', long, hide = true, value_name = "PORT")]
    event: Option<u32>,
    #[arg(short = 'm', long, hide = true, value_name = "DOMID")]
    master_domid: Option<u32>,
    #[arg(short = 'p', long, hide = true, value_name = "DOMID")]
    priv_domid: Option<u32>,
}

impl Others {
    /// Says which were given.
    pub fn warn(&self) {
        without_effect(&[
            (self.no_domain_init, "--no-domain-init"),
            (self.internal_db.is_some(), "--internal-db"),
            (self.preserve_local, "--preserve-local"),
            (self.output_pid, "--output-pid"),
            (self.no_recovery, "--no-recovery"),
            (self.verbose, "--verbose"),
            (self.event.is_some(), "--event"),
            (self.master_domid.is_some(), "--master-domid"),
            (self.priv_domid.is_some(), "--priv-domid"),
        ]);
    }
}

fn without_effect(options: &[(bool, &str)]) {
    for (_, option) in options.iter().filter(|(given, _)| *given) {
        tracing::warn!("{option} is without effect");
    }
}

impl Limits {
    /// Sets them, those with a name of their own last.
    pub fn set(&self, store: &mut Store) {
        self.all().for_each(|(limit, value)| store.set_limit(limit, value));
        if let Some(bytes) = self.quota_soft {
            store.set_soft_memory(bytes);
        }
    }

    /// Says which do not hold, because a live update carries over what was set.
    pub fn warn_of_others(&self, store: &Store) {
        for (limit, value) in self.all().chain(self.quota_soft.map(|bytes| (Limit::SoftMemory, bytes))) {
            let holds = store.limit_of_all(limit);
            if holds != value {
                tracing::warn!("{} {value} of the arguments is left out: {holds} goes on", limit.name());
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = (Limit, u32)> {
        let short = [
            (Limit::Nodes, self.entry_nb),
            (Limit::NodeSize, self.entry_size),
            (Limit::Watches, self.watch_nb),
            (Limit::Transactions, self.transaction),
            (Limit::NodePermissions, self.perm_nb),
            (Limit::PathMax, self.path_max),
        ];
        let short = short.into_iter().filter_map(|(limit, value)| Some((limit, value?)));
        short.chain(self.quota.iter().copied())
    }

    /// Says which options have no effect.
    pub fn warn(&self) {
        without_effect(&[(self.timeout.is_some(), "--timeout")]);
    }
}

fn pair(text: &str) -> Result<(&str, u32), String> {
    let (what, value) = text.split_once('=').ok_or("not WHAT=N")?;
    Ok((what, u32::from_str(value).map_err(|_| format!("{value}: not a number"))?))
}

/// C xenstored's help has another name for one of them.
fn quota(text: &str) -> Result<(Limit, u32), String> {
    let (what, value) = pair(text)?;
    let name = if what == "path-length" { Limit::PathMax.name() } else { what };
    let limit = Limit::from_name(name.as_bytes());
    let names = || Limit::ALL.iter().map(|limit| limit.name()).collect::<Vec<_>>().join(", ");
    Ok((limit.ok_or_else(|| format!("{what}: not one of {}", names()))?, value))
}

fn soft(text: &str) -> Result<u32, String> {
    only("memory", text)
}

fn timeout(text: &str) -> Result<u32, String> {
    only("watch-event", text)
}

fn only(known: &str, text: &str) -> Result<u32, String> {
    match pair(text)? {
        (what, value) if what == known => Ok(value),
        (what, _) => Err(format!("{what}: not {known}")),
    }
}
