//! The one table of commands: dispatch, help, usage and completion come from it.

use crate::args::Args;
use crate::cmd::{
    block, channel, console, create, describe, destroy, device, dmesg, dump_core, info, list, names, network,
    power, state, trigger, uptime, vcpu_list, vm_list,
};
use crate::failure::Failure;
use crate::{complete, help};
use anyhow::Result;

/// One option of a command.
#[derive(Debug)]
pub struct Opt {
    /// Its name in the code and, with more than one letter, its long form.
    pub name: &'static str,
    /// Its short form, or NUL.
    pub short: char,
    /// What its value is called, when it has one.
    pub value: Option<&'static str>,
    /// One line for the help.
    pub about: &'static str,
}

/// What a command's words are, for completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The name of a living domain.
    Domain,
    /// A file; the shell knows.
    File,
    /// The name of a command.
    Command,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Nothing to offer.
    Free,
}

/// One command.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// Its words, as the usage shows them.
    pub args: &'static str,
    /// One line for the overview.
    pub about: &'static str,
    /// Its options, beside `-h`.
    pub options: &'static [Opt],
    /// At least so many words.
    pub min_words: usize,
    /// At most so many.
    pub max_words: usize,
    /// What the words are; the last one stands for all that follow.
    pub words: &'static [Word],
    /// Honours the global `-N`.
    pub dry_run: bool,
    /// Carry it out.
    pub run: fn(&Args) -> Result<()>,
}

impl Command {
    /// `create <ConfigFile> [options] [vars]`
    pub fn synopsis(&self) -> String {
        format!("[-vtTfN] {} {}", self.name, self.args)
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command").field("name", &self.name).finish_non_exhaustive()
    }
}

const fn flag(short: char, name: &'static str, about: &'static str) -> Opt {
    Opt { name, short, value: None, about }
}

const fn value(short: char, name: &'static str, value: &'static str, about: &'static str) -> Opt {
    Opt { name, short, value: Some(value), about }
}

const JSON: Opt = flag('\0', "json", "Print JSON, for programs.");
const ALL_DOMAINS: usize = usize::MAX;

const PLAIN: Command = Command {
    name: "",
    args: "<Domain>",
    about: "",
    options: &[],
    min_words: 1,
    max_words: 1,
    words: &[Word::Domain],
    dry_run: false,
    run: |_| Ok(()),
};

/// A domain and one of its devices.
const PAIR: Command = Command { min_words: 2, max_words: 2, words: &[Word::Domain, Word::Free], ..PLAIN };

const POWER_OPTIONS: &[Opt] = &[
    flag('a', "all", "All guest domains."),
    flag('w', "wait", "Wait until the guest has shut down; given twice, until its process is gone."),
    flag('F', "F", "Fall back to the power button (reboot: a reset) for guests without PV control."),
];

const CREATE_OPTIONS: &[Opt] = &[
    flag('c', "c", "Connect to the console after the domain is created."),
    flag('d', "d", "Print the resulting configuration, then go on."),
    flag('e', "e", "Do not act on the death of the domain: no on_poweroff, on_reboot, on_crash."),
    flag('F', "F", "Run in foreground until death of the domain."),
    value('f', "defconfig", "FILE", "Use the given configuration file."),
    flag('n', "dryrun", "Print the resulting configuration and stop (as -N before the command)."),
    flag('p', "p", "Leave the domain paused after it is created."),
    flag('q', "quiet", "Quiet."),
];

const LIST_OPTIONS: &[Opt] = &[
    flag('l', "long", "Output all VM details, as JSON."),
    flag('v', "verbose", "Prints out UUIDs and the reason of a shutdown."),
    flag('Z', "context", "Prints out security labels (there are none)."),
    flag('c', "cpupool", "Prints the cpupool the domain is in."),
    flag('n', "numa", "Prints out NUMA node affinity (none is kept: all)."),
    JSON,
];

const FORCE: Opt = flag('f', "force", "Do not wait for the guest to let go.");

/// What `describe` knows.
const PARTS: &[&str] = &[
    "evtchn",
    "gnttab",
    "vcpu",
    "params",
    "physmap",
    "hypercalls",
    "exits",
    "machine",
    "console",
    "devices",
];

const NETWORK_ARGS: &str = "<Domain> [mac=<mac>] [bridge=<bridge>] [type=<vif|tap|user>] [ip=<ip>] [script=<script>] \
    [vifname=<name>] [rate=<rate>] [mtu=<mtu>] [devid=<devid>] [hostfwd=<tcp:port:port>]";

const CONSOLE_OPTIONS: &[Opt] = &[
    value('t', "t", "TYPE", "Console type: pv."),
    value(
        'n',
        "n",
        "NUMBER",
        "Console number: 0, the default, is the console, a channel's is that of its device.",
    ),
    value('e', "e", "CHAR", "Leave by this key instead of ^]."),
];

/// Every command, in the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "create",
        args: "<ConfigFile> [options] [vars]",
        about: "Create a domain from config file <filename>",
        options: CREATE_OPTIONS,
        min_words: 0,
        max_words: ALL_DOMAINS,
        words: &[Word::File],
        dry_run: true,
        run: create::run,
    },
    Command {
        name: "list",
        args: "[options] [Domain]...",
        about: "List information about all/some domains",
        options: LIST_OPTIONS,
        min_words: 0,
        max_words: ALL_DOMAINS,
        run: list::run,
        ..PLAIN
    },
    Command {
        name: "destroy",
        args: "[options] <Domain>",
        about: "Terminate a domain immediately",
        options: &[flag('f', "f", "Accepted; Domain-0 is this host and stays.")],
        run: destroy::run,
        ..PLAIN
    },
    Command {
        name: "shutdown",
        args: "[options] <-a|Domain>",
        about: "Issue a shutdown signal to a domain",
        options: POWER_OPTIONS,
        min_words: 0,
        run: power::shutdown,
        ..PLAIN
    },
    Command {
        name: "reboot",
        args: "[options] <-a|Domain>",
        about: "Issue a reboot signal to a domain",
        options: POWER_OPTIONS,
        min_words: 0,
        run: power::reboot,
        ..PLAIN
    },
    Command { name: "pause", about: "Pause execution of a domain", run: state::pause, ..PLAIN },
    Command { name: "unpause", about: "Unpause a paused domain", run: state::unpause, ..PLAIN },
    Command {
        name: "console",
        args: "[options] <Domain>",
        about: "Attach to domain's console; ^] leaves",
        options: CONSOLE_OPTIONS,
        run: console::run,
        ..PLAIN
    },
    Command {
        name: "vcpu-list",
        args: "[Domain, ...]",
        about: "List the VCPUs for all/some domains",
        options: &[JSON],
        min_words: 0,
        max_words: ALL_DOMAINS,
        run: vcpu_list::run,
        ..PLAIN
    },
    Command {
        name: "vm-list",
        args: "",
        about: "List guest domains and their UUIDs",
        options: &[JSON],
        min_words: 0,
        max_words: 0,
        words: &[Word::Free],
        run: vm_list::run,
        ..PLAIN
    },
    Command {
        name: "info",
        args: "[options] [Field]",
        about: "Get information about the host, or the value of one field",
        options: &[flag('n', "numa", "List host NUMA topology information too."), JSON],
        min_words: 0,
        words: &[Word::Free],
        run: info::run,
        ..PLAIN
    },
    Command { name: "domid", about: "Convert a domain name to domain id", run: names::domid, ..PLAIN },
    Command {
        name: "domname",
        args: "<DomainId>",
        about: "Convert a domain id to domain name",
        words: &[Word::Free],
        run: names::domname,
        ..PLAIN
    },
    Command {
        name: "trigger",
        args: "<Domain> <nmi|reset|power> [<VCPU>]",
        about: "Send a trigger to a domain",
        min_words: 2,
        max_words: 3,
        words: &[Word::Domain, Word::OneOf(&["nmi", "reset", "power"]), Word::Free],
        run: trigger::run,
        ..PLAIN
    },
    Command {
        name: "dump-core",
        args: "<Domain> [<filename>]",
        about: "Core dump a domain",
        max_words: 2,
        words: &[Word::Domain, Word::File],
        run: dump_core::run,
        ..PLAIN
    },
    Command {
        name: "dmesg",
        args: "[Domain]",
        about: "Read the log of domains: their processes' and what guests wrote by console_io",
        min_words: 0,
        run: dmesg::run,
        ..PLAIN
    },
    Command {
        name: "describe",
        args: "<Domain> [Part]",
        about: "Show the state of a domain's parts: event channels, grants, devices with their counters, ...",
        max_words: 2,
        words: &[Word::Domain, Word::OneOf(PARTS)],
        run: describe::run,
        ..PLAIN
    },
    Command {
        name: "uptime",
        args: "[-s] [Domain]",
        about: "Print uptime for all/some domains",
        options: &[flag('s', "short", "Print short output, with the time of day."), JSON],
        min_words: 0,
        max_words: ALL_DOMAINS,
        run: uptime::run,
        ..PLAIN
    },
    Command {
        name: "network-attach",
        args: NETWORK_ARGS,
        about: "Create a new virtual network device",
        max_words: ALL_DOMAINS,
        words: &[Word::Domain, Word::Free],
        dry_run: true,
        run: network::attach,
        ..PLAIN
    },
    Command {
        name: "network-list",
        args: "<Domain(s)>",
        about: "List virtual network interfaces for a domain",
        options: &[JSON],
        max_words: ALL_DOMAINS,
        run: device::network_list,
        ..PLAIN
    },
    Command {
        name: "network-detach",
        args: "[options] <Domain> <DevId|mac>",
        about: "Destroy a domain's virtual network device",
        options: &[FORCE],
        words: &[Word::Domain, Word::Free],
        run: network::detach,
        ..PAIR
    },
    Command {
        name: "channel-attach",
        args: "<Domain> connection=<pty|socket> name=<name> [path=<path>]",
        about: "Create a new channel",
        max_words: ALL_DOMAINS,
        words: &[Word::Domain, Word::Free],
        dry_run: true,
        run: channel::attach,
        ..PAIR
    },
    Command {
        name: "channel-detach",
        args: "[options] <Domain> <name|Idx>",
        about: "Destroy a domain's channel",
        options: &[FORCE],
        run: channel::detach,
        ..PAIR
    },
    Command {
        name: "channel-list",
        args: "<Domain(s)>",
        about: "List virtual channel devices for a domain",
        options: &[JSON],
        max_words: ALL_DOMAINS,
        run: device::channel_list,
        ..PLAIN
    },
    Command {
        name: "block-attach",
        args: "<Domain> <disk-spec-component(s)>...",
        about: "Create a new virtual block device",
        max_words: ALL_DOMAINS,
        words: &[Word::Domain, Word::File],
        dry_run: true,
        run: block::attach,
        ..PAIR
    },
    Command {
        name: "block-list",
        args: "<Domain(s)>",
        about: "List virtual block devices for a domain",
        options: &[JSON],
        max_words: ALL_DOMAINS,
        run: device::block_list,
        ..PLAIN
    },
    Command {
        name: "block-detach",
        args: "[options] <Domain> <DevId>",
        about: "Destroy a domain's virtual block device",
        options: &[FORCE],
        run: block::detach,
        ..PAIR
    },
    Command {
        name: "block-resize",
        args: "[options] <Domain> <DevId> [Size]",
        about: "Tell the guest the size of a disk, after making its image so large",
        max_words: 3,
        run: block::resize,
        ..PAIR
    },
    Command {
        name: "cd-insert",
        args: "<Domain> <VirtualDevice> <image> [raw|qcow2]",
        about: "Insert a cdrom into a guest's cd drive",
        min_words: 3,
        max_words: 4,
        words: &[Word::Domain, Word::Free, Word::File],
        dry_run: true,
        run: block::insert,
        ..PAIR
    },
    Command {
        name: "cd-eject",
        args: "<Domain> <VirtualDevice>",
        about: "Eject a cdrom from a guest's cd drive",
        dry_run: true,
        run: block::eject,
        ..PAIR
    },
    Command {
        name: "completion",
        args: "<bash|zsh|fish>",
        about: "Print a completion script: source <(xlr completion bash)",
        words: &[Word::OneOf(complete::SHELLS)],
        run: complete::script,
        ..PLAIN
    },
    Command {
        name: "version",
        args: "",
        about: "Print the version",
        min_words: 0,
        max_words: 0,
        words: &[Word::Free],
        run: |args| help::version(&args.globals),
        ..PLAIN
    },
    Command {
        name: "help",
        args: "[--long] [Command]",
        about: "Print this list, or the usage of a command",
        options: &[flag('\0', "long", "The usage of every command.")],
        min_words: 0,
        words: &[Word::Command],
        run: help::run,
        ..PLAIN
    },
];

/// The command of that name or unique prefix; an exact match wins.
pub fn find(name: &str) -> Result<&'static Command> {
    if let Some(exact) = COMMANDS.iter().find(|c| c.name == name) {
        return Ok(exact);
    }
    let near: Vec<_> = COMMANDS.iter().filter(|c| c.name.starts_with(name)).collect();
    match near.as_slice() {
        [one] => Ok(one),
        [] => {
            let hint = nearest(name, COMMANDS.iter().map(|c| c.name));
            let hint = hint.map_or_else(String::new, |near| format!(": `{name}', did you mean `{near}'?"));
            Err(Failure::error(1, format!("command not implemented{hint}")))
        }
        many => {
            let names: Vec<_> = many.iter().map(|c| c.name).collect();
            Err(Failure::error(1, format!("command not implemented: `{name}' may be {}", names.join(", "))))
        }
    }
}

/// The name most like `word`, when one is near enough to be a slip of the finger.
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.len() / 3).clamp(1, 3);
    names
        .map(|name| (strsim::damerau_levenshtein(word, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_prefixes_are_found_and_exact_names_win() {
        for (word, name) in
            [("create", "create"), ("cons", "console"), ("cre", "create"), ("vm", "vm-list"), ("dom", "")]
        {
            let found = find(word).map(|c| c.name).unwrap_or_default();
            assert_eq!(found, name, "{word}");
        }
        assert_eq!(find("bogus").unwrap_err().to_string(), "command not implemented");
        let slip = find("craete").unwrap_err().to_string();
        assert_eq!(slip, "command not implemented: `craete', did you mean `create'?");
        assert!(find("u").unwrap_err().to_string().contains("unpause, uptime"));
    }

    #[test]
    fn the_table_is_sound() {
        for (at, command) in COMMANDS.iter().enumerate() {
            assert!(command.min_words <= command.max_words && !command.about.is_empty(), "{}", command.name);
            assert!(COMMANDS[..at].iter().all(|c| c.name != command.name), "{} twice", command.name);
            for (at, opt) in command.options.iter().enumerate() {
                assert!(opt.short != 'h' && opt.name != "help", "{}", command.name);
                let twice = |o: &Opt| o.name == opt.name || (o.short != '\0' && o.short == opt.short);
                assert!(!command.options[..at].iter().any(twice), "{} -{}", command.name, opt.short);
            }
        }
    }
}
