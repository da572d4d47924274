//! Completion: three small scripts that ask xlr itself, so that the table of commands and the living domains
//! answer.

use crate::args::Args;
use crate::commands::{self, COMMANDS, Command, Word};
use crate::failure::Failure;
use crate::host::Host;
use anyhow::Result;

/// The shells a script exists for.
pub const SHELLS: &[&str] = &["bash", "zsh", "fish"];

/// The hidden command the scripts call: the words typed after the program, the last one being completed.
pub const HOOK: &str = "__complete";

/// Stands for the name xlr was called by.
const NAME: &str = "PROGRAM";

const BASH: &str = r#"_PROGRAM() {
    local words
    words=$("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _PROGRAM PROGRAM
"#;

const ZSH: &str = r#"#compdef PROGRAM
_PROGRAM() {
    local -a found
    found=("${(@f)$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}
compdef _PROGRAM PROGRAM
"#;

const FISH: &str = r#"function __PROGRAM_words
    set -l line (commandline -opc) (commandline -ct)
    $line[1] __complete $line[2..-1] 2>/dev/null
end
complete -c PROGRAM -a '(__PROGRAM_words)'
"#;

/// `xlr completion SHELL`
pub fn script(args: &Args) -> Result<()> {
    let script = match args.words.first().map(String::as_str) {
        Some("bash") => BASH,
        Some("zsh") => ZSH,
        Some("fish") => FISH,
        other => {
            let what = other.unwrap_or_default();
            return Err(Failure::error(
                1,
                format!("no completion for `{what}': bash, zsh and fish are known"),
            ));
        }
    };
    say!("{}", script.trim_end().replace(NAME, &args.globals.program));
    Ok(())
}

/// Print what may stand in the place of the last of `words`, one per line.
pub fn candidates(words: &[String]) -> Result<()> {
    for candidate in propose(words, living_names) {
        say!("{candidate}");
    }
    Ok(())
}

fn living_names() -> Vec<String> {
    Host::open().and_then(|host| host.names()).unwrap_or_default()
}

fn propose(words: &[String], domains: impl Fn() -> Vec<String>) -> Vec<String> {
    let Some((current, before)) = words.split_last() else { return Vec::new() };
    let mut before = before.iter().skip_while(|w| w.starts_with('-'));
    let all = match before.next().map(|name| commands::find(name)) {
        None => COMMANDS.iter().map(|c| c.name.to_owned()).collect(),
        Some(Err(_)) => Vec::new(),
        Some(Ok(command)) if current.starts_with('-') => option_names(command),
        Some(Ok(command)) => {
            let at = before.filter(|w| !w.starts_with('-')).count();
            word_names(command, at, domains)
        }
    };
    all.into_iter().filter(|name| name.starts_with(current.as_str())).collect()
}

fn option_names(command: &Command) -> Vec<String> {
    let short = command.options.iter().filter(|o| o.short != '\0').map(|o| format!("-{}", o.short));
    let long = command.options.iter().filter(|o| o.name.len() > 1).map(|o| format!("--{}", o.name));
    short.chain(long).collect()
}

fn word_names(command: &Command, at: usize, domains: impl Fn() -> Vec<String>) -> Vec<String> {
    if at >= command.max_words {
        return Vec::new();
    }
    match command.words.get(at).or(command.words.last()) {
        Some(Word::Domain) => domains(),
        Some(Word::Command) => COMMANDS.iter().map(|c| c.name.to_owned()).collect(),
        Some(Word::OneOf(list)) => list.iter().map(|&w| w.to_owned()).collect(),
        Some(Word::File | Word::Free) | None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_options_and_domains_are_proposed() {
        let propose = |line: &str| {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            propose(&words, || vec!["web".into(), "work".into(), "db".into()]).join(" ")
        };
        assert_eq!(propose("cr"), "create");
        assert_eq!(propose("-v un"), "unpause");
        assert_eq!(propose("shutdown w"), "web work");
        assert_eq!(propose("shutdown web w"), "", "one domain only");
        assert_eq!(propose("list web d"), "db");
        assert_eq!(propose("trigger web p"), "power");
        assert_eq!(propose("console -"), "-t -n -e");
        assert_eq!(propose("create gue"), "", "files are the shell's");
        assert_eq!(propose("completion "), "bash zsh fish");
    }
}
