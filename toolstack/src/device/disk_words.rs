//! The words of a disk specification: values by their place, `target=` that takes the rest, and the prefixes of old.

use super::disk::{KEYS, names_format};
use super::params::{Form, Param, Params};
use crate::xlcfg::{Diag, Pos};

/// What bare words are, in their order; the ones that are named are left out.
const PLACES: [&str; 4] = ["target", "format", "vdev", "access"];

/// What an old prefix of a target means.
#[derive(Clone, Copy)]
enum Prefix {
    /// Nothing.
    Plain,
    /// `format=` its name.
    Format,
    /// `script=block-` its name.
    Script,
}

const PREFIXES: &[(&str, Prefix)] = &[
    ("phy", Prefix::Plain),
    ("file", Prefix::Plain),
    ("tap", Prefix::Plain),
    ("tap2", Prefix::Plain),
    ("tapdisk", Prefix::Plain),
    ("aio", Prefix::Plain),
    ("ioemu", Prefix::Plain),
    ("raw", Prefix::Format),
    ("qcow", Prefix::Format),
    ("qcow2", Prefix::Format),
    ("vhd", Prefix::Format),
    ("vdi", Prefix::Format),
    ("vmdk", Prefix::Format),
    ("iscsi", Prefix::Script),
    ("nbd", Prefix::Script),
    ("enbd", Prefix::Script),
    ("drbd", Prefix::Script),
];

/// Reads the strings that describe one disk.
pub struct Words {
    params: Params,
    /// An old prefix was there: the format is no word of its own.
    old: bool,
}

impl Words {
    /// Of a disk described at `at`.
    pub fn new(at: Pos) -> Self {
        Words { params: Params::new("disk", at), old: false }
    }

    /// All of them.
    pub fn into_params(self) -> Params {
        self.params
    }

    /// Read one string, which begins at `at`.
    pub fn read(&mut self, text: &str, at: &Pos) -> Result<(), Diag> {
        let mut rest = text;
        while !rest.is_empty() {
            let word = rest.trim_start();
            let at = at.right(text.chars().count() - word.chars().count());
            if let Some(target) = named_target(word) {
                let at = at.right(word.chars().count() - target.chars().count());
                self.push("target", Some(target), at);
                break;
            }
            let (word, tail) = word.split_once(',').unwrap_or((word, ""));
            self.word(word.trim_end(), at)?;
            rest = tail;
        }
        Ok(())
    }

    fn push(&mut self, key: &str, value: Option<&str>, at: Pos) {
        self.push_from(at.clone(), key, value, at);
    }

    fn push_from(&mut self, start: Pos, key: &str, value: Option<&str>, at: Pos) {
        self.params.list.push(Param { key: key.to_owned(), value: value.map(str::to_owned), start, at });
    }

    fn word(&mut self, word: &str, at: Pos) -> Result<(), Diag> {
        let flag = |(key, form): &(&str, Form)| *key == word && *form == Form::Flag;
        if KEYS.iter().any(flag) {
            self.push(word, None, at);
            return Ok(());
        }
        if let Some((key, value)) = word.split_once('=').filter(|(key, _)| is_key(key.trim_end())) {
            let value_at = at.right(key.chars().count() + 1);
            self.push_from(at, key.trim_end(), Some(value.trim_start()), value_at);
            return Ok(());
        }
        self.place(word, at)
    }

    /// A value by its place.
    fn place(&mut self, word: &str, at: Pos) -> Result<(), Diag> {
        let free = |place: &&&str| {
            let skipped = **place == "format" && self.old && !names_format(word);
            !skipped && !self.params.has(place)
        };
        match PLACES.iter().find(free).copied() {
            Some("target") => self.target(word, at),
            // xend's empty drive: `,hdc:cdrom,r`.
            Some("format") if word.contains(':') => {
                self.old = true;
                self.vdev(word, at);
                Ok(())
            }
            Some("vdev") => {
                self.vdev(word, at);
                Ok(())
            }
            Some(place) => {
                self.push(place, Some(word), at);
                Ok(())
            }
            None if word.is_empty() => Ok(()),
            None => Err(at.error(format!(
                "disk: `{word}` is one word too many: target, format, vdev and access are there; a target with commas is written last, as target=..."
            ))),
        }
    }

    /// `xvda`, or `hdc:cdrom` as xend had it.
    fn vdev(&mut self, word: &str, at: Pos) {
        let (vdev, devtype) = word.rsplit_once(':').map_or((word, None), |(vdev, kind)| (vdev, Some(kind)));
        if let Some(devtype) = devtype {
            self.push("devtype", Some(devtype), at.right(vdev.chars().count() + 1));
        }
        self.push("vdev", Some(vdev), at);
    }

    fn target(&mut self, word: &str, mut at: Pos) -> Result<(), Diag> {
        let mut rest = word;
        while let Some((name, tail)) = rest.split_once(':').filter(|(name, _)| is_prefix(name)) {
            let Some((_, prefix)) = PREFIXES.iter().find(|(known, _)| *known == name) else {
                return Err(at.error(format!(
                    "disk: unknown prefix `{name}:`; make it a block device of this host, or write target={rest} last if it is a file"
                )));
            };
            match prefix {
                Prefix::Plain => {}
                Prefix::Format => self.push("format", Some(name), at.clone()),
                Prefix::Script => self.push("script", Some(&format!("block-{name}")), at.clone()),
            }
            self.old = true;
            at = at.right(name.chars().count() + 1);
            rest = tail;
        }
        self.push("target", Some(rest), at);
        Ok(())
    }
}

/// What stands behind `target=`, to the end of the string.
fn named_target(word: &str) -> Option<&str> {
    let (key, value) = word.split_once('=')?;
    match key.trim_end() {
        _ if key == "target" => Some(value),
        "target" => Some(value.trim_start()),
        _ => None,
    }
}

/// As keys are written: anything else before a `=` belongs to a target.
fn is_key(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

fn is_prefix(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
}
