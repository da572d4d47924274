//! The same settings from YAML.

use super::{Diag, Kind, Pos, Setting, Value};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};
use std::fmt;
use std::sync::Arc;

/// Read a mapping of keys to values.
pub fn read(source: &Arc<str>, text: &str) -> Result<Vec<Setting>, Diag> {
    let pos = |at: Location| Pos {
        source: source.clone(),
        line: u32::try_from(at.line()).unwrap_or(u32::MAX).max(1),
        column: u32::try_from(at.column()).unwrap_or(u32::MAX).max(1),
    };
    // YAML 1.2: `y`, `no` and `on` are words.
    let options = serde_saphyr::options! { strict_booleans: true };
    let Mapping(entries) = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let plain = error.without_snippet();
        let message = plain.to_string();
        let message = message.lines().next().unwrap_or_default();
        let message = message.split(" at line ").next().unwrap_or(message);
        // What follows is for who calls the parser.
        let message = message.split("; use ").next().unwrap_or(message);
        pos(plain.location().unwrap_or(Location::UNKNOWN)).error(message)
    })?;
    let lines: Vec<&str> = text.lines().collect();
    let quoted = |at: &Pos| {
        let line = at.line.checked_sub(1).and_then(|line| lines.get(usize::try_from(line).ok()?));
        let column = usize::try_from(at.column).unwrap_or(usize::MAX);
        line.and_then(|line| line.chars().nth(column.saturating_sub(1)))
            .is_some_and(|c| matches!(c, '"' | '\''))
    };
    let setting = |(key, value): (Spanned<String>, Spanned<Node>)| {
        let at = pos(key.referenced);
        Ok(Setting { key: key.value, pos: at, value: top_level(value_of(value, &pos, &quoted)?)? })
    };
    entries.into_iter().map(setting).collect()
}

/// Mappings describe devices, in a list.
fn top_level(value: Value) -> Result<Value, Diag> {
    match value.kind {
        Kind::Map(_) => {
            Err(value.pos.error("a mapping has no meaning here; expected a string, a number or a list"))
        }
        _ => Ok(value),
    }
}

fn value_of(
    node: Spanned<Node>,
    pos: &impl Fn(Location) -> Pos,
    quoted: &impl Fn(&Pos) -> bool,
) -> Result<Value, Diag> {
    let at = pos(node.referenced);
    let kind = match node.value {
        Node::Number(number) => Kind::Number(number),
        Node::Text(text) => Kind::Text(text),
        Node::Empty => Kind::Text(String::new()),
        Node::List(list) => {
            Kind::List(list.into_iter().map(|n| value_of(n, pos, quoted)).collect::<Result<_, _>>()?)
        }
        Node::Map(entries) => {
            let entry = |(key, value): (Spanned<String>, Spanned<Node>)| {
                Ok((key.value, value_of(value, pos, quoted)?))
            };
            Kind::Map(entries.into_iter().map(entry).collect::<Result<_, _>>()?)
        }
        Node::Other(what) => {
            return Err(
                at.error(format!("{what} has no meaning here; expected a string, a number or a list"))
            );
        }
    };
    Ok(Value { quoted: quoted(&at), pos: at, kind })
}

struct Mapping(Vec<(Spanned<String>, Spanned<Node>)>);

impl<'de> Deserialize<'de> for Mapping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MappingVisitor)
    }
}

struct MappingVisitor;

impl<'de> Visitor<'de> for MappingVisitor {
    type Value = Mapping;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of keys to values")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Mapping, E> {
        Ok(Mapping(Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Mapping, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Mapping(entries))
    }
}

enum Node {
    Number(i64),
    Text(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    Empty,
    Other(&'static str),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number or a list")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Number(i64::from(value)))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        Ok(i64::try_from(value).map_or(Node::Other("a number this large"), Node::Number))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Other("a fraction"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Empty)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_keep_their_places() {
        let text = "# guest\nname: web\nmemory: 512\ncpus:\n  - \"0-1\"\n  - 3\nacpi: false\n";
        let settings = read(&Arc::from("g.yaml"), text).unwrap();
        let keys: Vec<_> =
            settings.iter().map(|s| (s.key.as_str(), s.pos.line, s.value.pos.column)).collect();
        assert_eq!(keys[..2], [("name", 2, 7), ("memory", 3, 9)]);
        let Kind::List(cpus) = &settings[2].value.kind else { panic!("{:?}", settings[2]) };
        assert_eq!((cpus[1].pos.line, &cpus[1].kind), (6, &Kind::Number(3)));
        assert_eq!(settings[3].value.kind, Kind::Number(0));
    }

    #[test]
    fn errors_have_one_line_with_a_place() {
        for (text, start) in [
            ("name: [a\n", "g.yaml:"),
            ("- a\n- b\n", "g.yaml:1:1: "),
            ("name: web\nmemory: 1.5\n", "g.yaml:2:9: a fraction has no meaning here"),
            ("name: web\nvif: {bridge: x}\n", "g.yaml:2:6: a mapping has no meaning here"),
            ("name: web\nname: db\n", "g.yaml:2:1: "),
            ("name: web\n---\nname: db\n", "g.yaml:3:1: multiple YAML documents detected"),
        ] {
            let message = read(&Arc::from("g.yaml"), text).unwrap_err().to_string();
            assert!(message.starts_with(start) && !message.contains('\n'), "{text:?}: {message}");
        }
    }
}
