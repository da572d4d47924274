//! Command lines as getopt_long reads them: bundled short options, unique prefixes of long ones, options and
//! words in any order, `--` ends the options.

use crate::commands::{Command, Opt};
use crate::failure::Failure;
use anyhow::Result;

/// What stands before the command: `xl [-vfNtT] <subcommand>`.
#[derive(Clone, Debug, Default)]
pub struct Globals {
    /// The name xlr was called by.
    pub program: String,
    /// `-v`, as often as given.
    pub verbose: u8,
    /// `-N`: print what would be done.
    pub dry_run: bool,
    /// `-h`, `--help`
    pub help: bool,
    /// `-V`, `--version`
    pub version: bool,
}

impl Globals {
    /// Split off the global options; the rest begins with the command.
    pub fn parse(program: String, words: &[String]) -> Result<(Globals, Vec<String>)> {
        let mut globals = Globals { program, ..Globals::default() };
        let mut words = words.iter();
        while let Some(word) = words.clone().next().filter(|w| w.len() > 1 && w.starts_with('-')) {
            words.next();
            match word.as_str() {
                "--help" => globals.help = true,
                "--version" => globals.version = true,
                _ => {
                    for letter in word.chars().skip(1) {
                        globals.set(letter)?;
                    }
                }
            }
        }
        Ok((globals, words.cloned().collect()))
    }

    fn set(&mut self, letter: char) -> Result<()> {
        match letter {
            'v' => self.verbose = self.verbose.saturating_add(1),
            'N' => self.dry_run = true,
            'h' => self.help = true,
            'V' => self.version = true,
            // Force, progress by carriage return, timestamps: xl's, of no effect here.
            'f' | 't' | 'T' => {}
            _ => return Err(Failure::error(2, format!("unknown global option `{letter}'"))),
        }
        Ok(())
    }
}

/// What a command was given.
#[derive(Debug, Default)]
pub struct Args {
    /// Global options.
    pub globals: Globals,
    /// Words that are no options.
    pub words: Vec<String>,
    given: Vec<(&'static str, Option<String>)>,
}

impl Args {
    /// How often the option was given.
    pub fn count(&self, name: &str) -> usize {
        self.given.iter().filter(|(given, _)| *given == name).count()
    }

    /// The option was given.
    pub fn has(&self, name: &str) -> bool {
        self.count(name) > 0
    }

    /// The option's value; the last one wins.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.given.iter().rev().find(|(given, _)| *given == name).and_then(|(_, value)| value.as_deref())
    }
}

/// Read the words after the command; `None` when help is asked for.
pub fn parse(command: &'static Command, globals: &Globals, words: &[String]) -> Result<Option<Args>> {
    let mut args = Args { globals: globals.clone(), ..Args::default() };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            args.words.extend(words.by_ref().cloned());
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, inline) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_owned())));
            if name == "help" {
                return Ok(None);
            }
            let opt = find_long(command, name).ok_or_else(|| unsupported(name))?;
            take(&mut args, opt, inline, &mut words)?;
        } else if let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty()) {
            for (at, letter) in letters.char_indices() {
                if letter == 'h' {
                    return Ok(None);
                }
                let opt = command.options.iter().find(|o| o.short == letter);
                let opt = opt.ok_or_else(|| unsupported(&letter.to_string()))?;
                let tail = &letters[at + letter.len_utf8()..];
                let inline = (opt.value.is_some() && !tail.is_empty()).then(|| tail.to_owned());
                let rest_is_value = inline.is_some();
                take(&mut args, opt, inline, &mut words)?;
                if rest_is_value {
                    break;
                }
            }
        } else {
            args.words.push(word.clone());
        }
    }
    check_count(command, &args)?;
    Ok(Some(args))
}

fn take(
    args: &mut Args,
    opt: &'static Opt,
    inline: Option<String>,
    words: &mut std::slice::Iter<'_, String>,
) -> Result<()> {
    let value = match (opt.value, inline) {
        (None, None) => None,
        (None, Some(_)) => return Err(Failure::error(2, format!("option `{}' takes no value.", opt.name))),
        (Some(_), Some(value)) => Some(value),
        (Some(what), None) => {
            Some(words.next().cloned().ok_or_else(|| {
                Failure::error(2, format!("option `{}' needs an argument: {what}.", opt.name))
            })?)
        }
    };
    args.given.push((opt.name, value));
    Ok(())
}

fn find_long(command: &'static Command, name: &str) -> Option<&'static Opt> {
    let long = || command.options.iter().filter(|o| o.name.len() > 1 || o.short == '\0');
    let mut near = long().filter(|o| o.name.starts_with(name));
    long().find(|o| o.name == name).or_else(|| near.next().filter(|_| near.next().is_none()))
}

fn unsupported(name: &str) -> anyhow::Error {
    Failure::error(2, format!("option `{name}' not supported."))
}

fn check_count(command: &Command, args: &Args) -> Result<()> {
    let (program, name, words) = (&args.globals.program, command.name, &args.words);
    if words.len() < command.min_words {
        let few = format!("'{program} {name}' requires at least {} argument(s).", command.min_words);
        return Err(Failure::error(2, format!("{few}\n\nUsage: {program} {}", command.synopsis())));
    }
    match words.get(command.max_words) {
        Some(extra) => Err(superfluous(command, &args.globals, extra)),
        None => Ok(()),
    }
}

/// A word too many.
pub fn superfluous(command: &Command, globals: &Globals, word: &str) -> anyhow::Error {
    let program = &globals.program;
    let many = format!("'{program} {}' does not take `{word}'.", command.name);
    Failure::error(2, format!("{many}\n\nUsage: {program} {}", command.synopsis()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::find;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn globals_stop_at_the_command() {
        let (globals, rest) = Globals::parse("xl".into(), &words("-vvN create -p f.cfg")).unwrap();
        assert_eq!((globals.verbose, globals.dry_run), (2, true));
        assert_eq!(rest, words("create -p f.cfg"));
        assert!(Globals::parse("xl".into(), &words("-z list")).is_err());
    }

    #[test]
    fn options_bundle_permute_and_abbreviate() {
        let create = find("create").unwrap();
        let parse = |line| parse(create, &Globals::default(), &words(line));
        let args = parse("-pc guest.cfg memory=64 --def=x.cfg -q -- -dash").unwrap().unwrap();
        assert!(args.has("p") && args.has("c") && args.has("quiet") && !args.has("F"));
        assert_eq!(args.value("defconfig"), Some("x.cfg"));
        assert_eq!(args.words, ["guest.cfg", "memory=64", "-dash"]);
        let args = parse("-pfguest.cfg").unwrap().unwrap();
        assert_eq!((args.has("p"), args.value("defconfig")), (true, Some("guest.cfg")));
        assert!(parse("-p -h").unwrap().is_none(), "help");
        for (line, message) in [
            ("-z", "option `z' not supported."),
            ("--bogus", "option `bogus' not supported."),
            ("-f", "option `defconfig' needs an argument: FILE."),
            ("--quiet=1", "option `quiet' takes no value."),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.downcast_ref::<Failure>().unwrap().status, 2, "{line}");
            assert_eq!(error.to_string(), message);
        }
    }
}
