//! Configuration files: xl.cfg syntax or YAML, both into the same list of settings with positions.

mod diag;
mod keys;
mod lexer;
mod parser;
pub mod schema;
mod xl_conf;
mod yaml;

pub use diag::{Diag, Pos};
pub use xl_conf::XlConf;

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

    /// A string.
    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
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

/// Read a configuration's text. `name` is what messages call it; its ending `.yaml`, `.yml` or `.json`, or a first
/// line that reads `key:` or `---` or begins with `{`, makes it YAML, of which JSON is a part.
pub fn read(name: &str, text: &str) -> Result<Vec<Setting>, Diag> {
    let source = Arc::from(name);
    if is_yaml(name, text) { yaml::read(&source, text) } else { parser::parse(&source, text) }
}

/// Read one word `key=value`, or `key=value;key=value`, of the command line. There what is neither a number nor in
/// quotes or brackets is a string, since the shell has eaten the quotes.
pub fn read_override(word: &str) -> Result<Vec<Setting>, Diag> {
    let source = Arc::from("command line");
    let Some((key, text)) = word.split_once('=') else { return parser::parse(&source, word) };
    let parsed = parser::parse(&source, word);
    let keyed = !key.trim().is_empty() && key.trim().chars().all(is_of_key);
    if parsed.is_ok() || !keyed || text.trim_start().starts_with(['"', '\'', '[']) {
        return parsed;
    }
    if let Some(at) = next_key(text) {
        let (first, rest) = word.split_at(key.len() + 1 + at);
        // Blanks in the place of what comes before keep the columns right.
        let rest = " ".repeat(first.chars().count() + 1) + rest.trim_start_matches(';');
        return Ok([read_override(first)?, read_override(&rest)?].concat());
    }
    let pos = |before: usize| {
        let column = u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1);
        Pos { source: source.clone(), line: 1, column }
    };
    let blank = key.len() - key.trim_start().len();
    let value = Value { pos: pos(key.len() + 1), quoted: false, kind: Kind::Text(text.trim().to_owned()) };
    Ok(vec![Setting { key: key.trim().to_owned(), pos: pos(blank), value }])
}

fn is_of_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Where a bare string ends since `;` and a known key with `=` follow.
fn next_key(text: &str) -> Option<usize> {
    let key = |at: usize| text.get(at + 1..)?.split_once('=').map(|(key, _)| key.trim());
    text.match_indices(';')
        .map(|(at, _)| at)
        .find(|&at| key(at).is_some_and(|key| keys::class(key).is_some()))
}

fn is_yaml(name: &str, text: &str) -> bool {
    if Path::new(name).extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
        return true;
    }
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    first.is_some_and(|line| {
        let word = line.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        line.starts_with("---")
            || line.starts_with('{')
            || (word.len() < line.len() && word.trim_start().starts_with(':'))
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
            ("a.cfg", "{\n \"name\": \"web\" }", true),
            ("a.json", "", true),
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
        assert_eq!(kind("memory=12q"), Kind::Text("12q".into()));
        assert_eq!(kind("cpus=0-3,^1"), Kind::Text("0-3,^1".into()));
        assert_eq!(
            kind("uuid=12345678123456789abcdef012345678").clone(),
            kind("uuid='12345678123456789abcdef012345678'")
        );
        assert_eq!(kind("ramdisk="), Kind::Text(String::new()));
        let wrong = |word| read_override(word).unwrap_err().to_string();
        assert_eq!(wrong("cmdline='a"), "command line:1:9: string has no closing '");
        assert_eq!(wrong("a b=5"), "command line:1:3: unexpected `b`, expected `=` after `a`");
        assert_eq!(
            wrong("name='a' b"),
            "command line:1:10: unexpected `b`, expected end of line or `;` after the value of `name`"
        );
    }

    #[test]
    fn one_word_may_hold_several_overrides() {
        let all = |word| -> Vec<String> {
            let list = read_override(word).unwrap();
            list.iter()
                .map(|s| format!("{}@{}={:?}@{}", s.key, s.pos.column, s.value.kind, s.value.pos.column))
                .collect()
        };
        assert_eq!(all("memory=512; vcpus=2"), ["memory@1=Number(512)@8", "vcpus@13=Number(2)@19"]);
        assert_eq!(all("memory=512;name=web"), ["memory@1=Number(512)@8", "name@12=Text(\"web\")@17"]);
        assert_eq!(
            all("name=web; root=/dev/xvda1;vcpus=2"),
            ["name@1=Text(\"web\")@6", "root@11=Text(\"/dev/xvda1\")@16", "vcpus@27=Number(2)@33"]
        );
        assert_eq!(all("extra=a;b=c"), ["extra@1=Text(\"a;b=c\")@7"], "b is no key");
    }
}
