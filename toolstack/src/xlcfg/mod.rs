//! Configuration files: xl.cfg syntax or YAML, both into the same list of settings with positions.

mod diag;
mod keys;
mod lexer;
mod parser;
pub mod schema;
mod yaml;

pub use diag::{Diag, Pos};

use std::path::Path;
use std::sync::Arc;

/// A value with the place it stands at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Where it begins.
    pub pos: Pos,
    /// A string in quotes.
    pub quoted: bool,
    /// What it is.
    pub kind: Kind,
}

/// The three kinds of values xl.cfg(5) knows, and one that YAML adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Decimal, 0x hexadecimal or 0 octal.
    Number(i64),
    /// In either kind of quotes.
    Text(String),
    /// Nested at will.
    List(Vec<Value>),
    /// In a list of devices: one device's keys.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// The value says nothing: `""`, `[]`, `0`.
    pub fn is_empty(&self) -> bool {
        match &self.kind {
            Kind::Number(n) => *n == 0,
            Kind::Text(text) => text.is_empty(),
            Kind::List(list) => list.is_empty(),
            Kind::Map(entries) => entries.is_empty(),
        }
    }

    /// Where a string's first character stands.
    pub fn inside(&self) -> Pos {
        self.pos.right(usize::from(self.quoted))
    }
}

/// One `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub pos: Pos,
    /// The value.
    pub value: Value,
}

/// Read a configuration's text. `name` is what messages call it; its ending `.yaml` or `.yml`, or a first line
/// that reads `key:` or `---`, makes it YAML.
pub fn read(name: &str, text: &str) -> Result<Vec<Setting>, Diag> {
    let source = Arc::from(name);
    if is_yaml(name, text) { yaml::read(&source, text) } else { parser::parse(&source, text) }
}

/// Read one `key=value` of the command line. There a bare word is a string, since the shell has eaten the quotes.
pub fn read_override(word: &str) -> Result<Vec<Setting>, Diag> {
    let source = Arc::from("command line");
    let Some((key, bare)) = word.split_once('=') else { return parser::parse(&source, word) };
    let bare = bare.trim();
    let quoted = bare.is_empty()
        || bare.starts_with(['"', '\'', '[', '-'])
        || bare.starts_with(|c: char| c.is_ascii_digit());
    let keyed = !key.is_empty() && key.trim().chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if quoted || !keyed {
        return parser::parse(&source, word);
    }
    let pos = |column| Pos { source: source.clone(), line: 1, column };
    let value = Value {
        pos: pos(u32::try_from(key.len()).unwrap_or(u32::MAX).saturating_add(2)),
        quoted: false,
        kind: Kind::Text(bare.to_owned()),
    };
    Ok(vec![Setting { key: key.trim().to_owned(), pos: pos(1), value }])
}

fn is_yaml(name: &str, text: &str) -> bool {
    if Path::new(name).extension().is_some_and(|e| e == "yaml" || e == "yml") {
        return true;
    }
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    first.is_some_and(|line| {
        let word = line.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        line.starts_with("---") || (word.len() < line.len() && word.trim_start().starts_with(':'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_told_by_name_or_first_line() {
        for (name, text, yaml) in [
            ("a.yaml", "", true),
            ("a.yml", "name = 1", true),
            ("a.cfg", "# x\n\nname: web\n", true),
            ("a.cfg", "---\nname: web\n", true),
            ("a.cfg", "name = \"a:b\"", false),
            ("a.cfg", "", false),
        ] {
            assert_eq!(is_yaml(name, text), yaml, "{name} {text:?}");
        }
    }

    #[test]
    fn overrides_take_bare_words() {
        let kind = |word| read_override(word).unwrap().remove(0).value.kind;
        assert_eq!(kind("name=web"), Kind::Text("web".into()));
        assert_eq!(kind("cmdline=console=hvc0 quiet"), Kind::Text("console=hvc0 quiet".into()));
        assert_eq!(kind("name=\"web\""), Kind::Text("web".into()));
        assert_eq!(kind("memory=0x100"), Kind::Number(256));
        assert!(matches!(kind("cpus=[1, 2]"), Kind::List(list) if list.len() == 2));
        assert_eq!(
            read_override("memory=12q").unwrap_err().to_string().split(':').next(),
            Some("command line")
        );
    }
}
