//! Parameters of one device: `key=value`, flags and values by their place, all with the place they stand at.

use crate::commands::nearest;
use crate::xlcfg::{Diag, Kind, Pos, Value};

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its key.
    pub key: String,
    /// Its value; none for a bare word.
    pub value: Option<String>,
    /// Where it begins.
    pub start: Pos,
    /// Where the value stands, or the bare word.
    pub at: Pos,
}

/// How a key is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `key=value`, once.
    Value,
    /// `key=value`, as often as wanted.
    Many,
    /// `key`.
    Flag,
    /// `key`, `key=1`, `key=0`.
    Switch,
}

/// All parameters of one device.
#[derive(Clone, Debug)]
pub struct Params {
    /// `disk`, `vif`, `channel`: for messages.
    pub kind: &'static str,
    /// Where the device is described.
    pub at: Pos,
    /// In the order given.
    pub list: Vec<Param>,
}

impl Params {
    /// None yet.
    pub fn new(kind: &'static str, at: Pos) -> Self {
        Params { kind, at, list: Vec::new() }
    }

    /// From `key=value,flag,...`: blanks around words and `=` do not matter.
    pub fn split(kind: &'static str, text: &str, at: &Pos) -> Self {
        let mut params = Params::new(kind, at.clone());
        let mut column = 0;
        for word in text.split(',') {
            params.word(word, &at.right(column));
            column += word.chars().count() + 1;
        }
        params
    }

    /// From a map of a YAML configuration.
    pub fn map(kind: &'static str, at: &Pos, entries: &[(String, Value)]) -> Result<Self, Diag> {
        let mut params = Params::new(kind, at.clone());
        for (key, value) in entries {
            let one = |value: &Value| match &value.kind {
                Kind::Text(text) => Ok(text.clone()),
                Kind::Number(number) => Ok(number.to_string()),
                _ => Err(value.pos.error(format!("{kind}: {key} must be a string or a number"))),
            };
            let values = match &value.kind {
                Kind::List(list) => list.iter().map(one).collect::<Result<Vec<_>, _>>()?,
                _ => vec![one(value)?],
            };
            let param = |text| Param {
                key: key.clone(),
                value: Some(text),
                start: value.pos.clone(),
                at: value.pos.clone(),
            };
            params.list.extend(values.into_iter().map(param));
        }
        Ok(params)
    }

    fn word(&mut self, word: &str, at: &Pos) {
        let at = at.right(word.chars().take_while(|c| c.is_whitespace()).count());
        let word = word.trim();
        let param = match word.split_once('=') {
            _ if word.is_empty() => return,
            Some((key, value)) => {
                let blank = value.chars().take_while(|c| c.is_whitespace()).count();
                let (start, at) = (at.clone(), at.right(key.chars().count() + 1 + blank));
                Param { key: key.trim().to_owned(), value: Some(value.trim().to_owned()), start, at }
            }
            None => Param { key: word.to_owned(), value: None, start: at.clone(), at },
        };
        self.list.push(param);
    }

    /// Every key is known, written as it must be, and given no more than once; an empty value counts as none.
    pub fn check(&self, known: &[(&str, Form)]) -> Result<(), Diag> {
        for (number, param) in self.list.iter().enumerate() {
            let Param { key, value, start, at } = param;
            let kind = self.kind;
            let Some((_, form)) = known.iter().find(|(name, _)| name == key) else {
                let near = nearest(key, known.iter().map(|(name, _)| *name));
                let hint = near.map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
                return Err(start.error(format!("{kind}: unknown parameter `{key}`{hint}")));
            };
            let wrong = match (form, value.as_deref()) {
                (Form::Value | Form::Many, None) => format!("`{key}` needs a value: {key}=..."),
                (Form::Flag, Some(value)) if value != "1" => {
                    format!("`{key}` is a flag: write `{key}` or leave it out, not `{key}={value}`")
                }
                (Form::Switch, Some(value)) if !matches!(value, "0" | "1") => {
                    format!("`{key}` is 0 or 1, not `{value}`")
                }
                _ => {
                    let same = |p: &&Param| p.key == *key && p.value.as_deref() != Some("");
                    let earlier = self.list.iter().take(number).find(same);
                    match earlier {
                        Some(_) if *form != Form::Many && value.as_deref() != Some("") => {
                            format!("`{key}` is given twice")
                        }
                        _ => continue,
                    }
                }
            };
            return Err(at.error(format!("{kind}: {wrong}")));
        }
        Ok(())
    }

    /// Every non-empty value of `key`.
    pub fn all(&self, key: &str) -> impl Iterator<Item = (&str, &Pos)> {
        let text = move |p: &&Param| p.key == key;
        let filled = |p| {
            let Param { value, at, .. }: &Param = p;
            Some((value.as_deref().filter(|text| !text.is_empty())?, at))
        };
        self.list.iter().filter(text).filter_map(filled)
    }

    /// The value of `key`; an empty one counts as none.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.all(key).next().map(|(text, _)| text)
    }

    /// `key` is there, even with an empty value.
    pub fn has(&self, key: &str) -> bool {
        self.list.iter().any(|p| p.key == key)
    }

    /// The flag or switch is set.
    pub fn is_set(&self, key: &str) -> bool {
        self.list.iter().any(|p| p.key == key && p.value.as_deref() != Some("0"))
    }

    /// A number within `range`.
    pub fn number(&self, key: &str, range: (u32, u32)) -> Result<Option<u32>, Diag> {
        let Some((text, _)) = self.all(key).next() else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (range.0..=range.1).contains(number));
        let wrong =
            || self.error(key, format!("{key} must be from {} to {}, not `{text}`", range.0, range.1));
        number.map(Some).ok_or_else(wrong)
    }

    /// What a word of `table` stands for.
    pub fn choice<T: Copy>(&self, key: &str, table: &[(&str, T)]) -> Result<Option<T>, Diag> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let found = table.iter().find(|(word, _)| *word == text).map(|&(_, value)| value);
        let known = || table.iter().map(|&(word, _)| word).collect::<Vec<_>>().join(", ");
        found.map(Some).ok_or_else(|| self.error(key, format!("unknown {key} `{text}`: one of {}", known())))
    }

    /// Where `key` stands, else the device.
    pub fn pos(&self, key: &str) -> &Pos {
        self.list.iter().rev().find(|p| p.key == key).map_or(&self.at, |p| &p.at)
    }

    /// An error at `key`.
    pub fn error(&self, key: &str, message: impl std::fmt::Display) -> Diag {
        self.pos(key).error(format!("{}: {message}", self.kind))
    }
}
