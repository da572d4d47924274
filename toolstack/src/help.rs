//! `help`, usages and the version, all from the table of commands.

use crate::args::{Args, Globals};
use crate::commands::{self, COMMANDS, Command};
use anyhow::Result;

/// All commands with one line each, or with `long` the usage of each.
pub fn overview(globals: &Globals, long: bool) {
    say!("Usage {} [-vfNtT] <subcommand> [args]\n", globals.program);
    if long {
        for command in COMMANDS {
            usage(command, globals);
        }
        return;
    }
    say!("{} full list of subcommands:\n", globals.program);
    for command in COMMANDS {
        say!(" {:<19} {}", command.name, command.about);
    }
}

/// One command with its options.
pub fn usage(command: &Command, globals: &Globals) {
    say!("Usage: {} {}\n\n{}.\n", globals.program, command.synopsis(), command.about);
    say!("Options:\n");
    for opt in command.options {
        let value = opt.value.map_or_else(String::new, |v| format!(" {v}"));
        let long = (opt.name.len() > 1).then(|| match opt.value {
            Some(v) => format!("--{}={v}", opt.name),
            None => format!("--{}", opt.name),
        });
        let short = (opt.short != '\0').then(|| format!("-{}{value}", opt.short));
        let forms = [short, long].into_iter().flatten().collect::<Vec<_>>().join(", ");
        match forms.len() {
            ..24 => say!("{forms:<23} {}", opt.about),
            _ => say!("{forms}\n{:<23} {}", "", opt.about),
        }
    }
    say!("{:<23} Print this help.\n", "-h");
}

/// `xlr help`
pub fn run(args: &Args) -> Result<()> {
    match args.words.first() {
        Some(name) => usage(commands::find(name)?, &args.globals),
        None => overview(&args.globals, args.has("long")),
    }
    Ok(())
}

/// `xlr version`, `xlr --version`
pub fn version(globals: &Globals) -> Result<()> {
    say!("{} {} (Xen guests on Linux KVM)", globals.program, env!("CARGO_PKG_VERSION"));
    Ok(())
}
