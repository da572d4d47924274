//! Settings as typed values: which keys exist, who may be left out, what a value must be.

use super::keys::{self, Class};
use super::{Diag, Kind, Setting, Value, XlConf};
use crate::commands::nearest;

/// Settings by key, the last one winning, and what there is to warn about.
#[derive(Debug)]
pub struct Settings {
    pub(super) list: Vec<Setting>,
    /// `guest.cfg:3:1: warning: ...`, in the order of the file.
    pub warnings: Vec<String>,
    /// The host's defaults for devices.
    pub host: XlConf,
}

impl Settings {
    /// Check every key.
    pub fn new(list: Vec<Setting>) -> Result<Self, Diag> {
        let mut settings = Settings { list, warnings: Vec::new(), host: XlConf::default() };
        for setting in &settings.list {
            settings.warnings.extend(check_key(setting)?);
        }
        Ok(settings)
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.list.iter().rev().find(|s| s.key == key).map(|s| &s.value)
    }

    /// A string; the empty one counts as none.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Diag> {
        match self.value(key).map(|v| (v, &v.kind)) {
            None => Ok(None),
            Some((_, Kind::Text(text))) => Ok(Some(text.as_str()).filter(|t| !t.is_empty())),
            Some((value, _)) => Err(value.pos.error(format!("{key} must be a string: {key} = \"...\""))),
        }
    }

    /// A number within `range`, quoted or not. `example` is what would be right.
    pub fn number(&self, key: &str, range: (u64, u64), example: &str) -> Result<Option<u64>, Diag> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong = |what: String| value.pos.error(format!("{key} {what}; for example {key} = {example}"));
        let number = match &value.kind {
            Kind::Number(number) => *number,
            Kind::Text(text) => {
                parse_number(text).ok_or_else(|| wrong(format!("must be a number, {text:?} is none")))?
            }
            Kind::List(_) => return Err(wrong("must be a number, not a list".into())),
            Kind::Map(_) => return Err(wrong("must be a number, not a mapping".into())),
        };
        match u64::try_from(number).ok().filter(|n| (range.0..=range.1).contains(n)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(format!("must be from {} to {}, not {number}", range.0, range.1))),
        }
    }

    /// As [`Settings::number`] for 32 bits.
    pub fn count(&self, key: &str, range: (u32, u32), example: &str) -> Result<Option<u32>, Diag> {
        let number = self.number(key, (range.0.into(), range.1.into()), example)?;
        Ok(number.and_then(|n| u32::try_from(n).ok()))
    }

    /// A list; nothing and an empty string count as an empty one.
    pub fn list(&self, key: &str) -> Result<&[Value], Diag> {
        match self.value(key) {
            None => Ok(&[]),
            Some(Value { kind: Kind::List(list), .. }) => Ok(list),
            Some(value) if value.is_empty() => Ok(&[]),
            Some(value) => Err(value.pos.error(format!("{key} must be a list: {key} = [ \"...\" ]"))),
        }
    }

    /// 0 or 1.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Diag> {
        Ok(self.number(key, (0, 1), "1")?.map(|n| n != 0))
    }

    /// One of the words of `table`; `what` names their kind.
    pub fn choice<T: Copy>(&self, key: &str, what: &str, table: &[(&str, T)]) -> Result<Option<T>, Diag> {
        let (Some(value), Some(word)) = (self.value(key), self.text(key)?) else { return Ok(None) };
        match table.iter().find(|(name, _)| *name == word) {
            Some(&(_, meant)) => Ok(Some(meant)),
            None => {
                let known: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
                let known = known.join(", ");
                Err(value.pos.error(format!("Unknown {key} {what} \"{word}\" specified: one of {known}")))
            }
        }
    }

    /// An error at the value of `key`, or without a place when it has none.
    pub fn error(&self, key: &str, message: impl Into<String>) -> anyhow::Error {
        match self.value(key) {
            Some(value) => value.pos.error(message).into(),
            None => anyhow::Error::msg(message.into()),
        }
    }
}

fn parse_number(text: &str) -> Option<i64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        None if text.len() > 1 && text.starts_with('0') => i64::from_str_radix(text, 8).ok(),
        None => text.parse().ok(),
    }
}

/// Refuse what nobody knows or what the guest would miss; say what has no effect.
fn check_key(setting: &Setting) -> Result<Option<String>, Diag> {
    let Setting { key, pos, value } = setting;
    let warning = |what: &str| Ok(Some(format!("{pos}: warning: `{key}` {what}")));
    match keys::class(key) {
        Some(Class::Read | Class::Silent) => Ok(None),
        Some(_) if value.is_empty() => Ok(None),
        Some(Class::Hvm) => warning("has no effect on a PVH guest"),
        Some(Class::Later) => warning("is not supported yet and has no effect"),
        Some(Class::Never) => warning("has no meaning on KVM and no effect"),
        Some(Class::Missing) => {
            let instead = "the guest would start without it; remove it or leave it empty";
            Err(pos.error(format!("`{key}` is not supported yet: {instead}")))
        }
        None => Err(pos.error(match nearest(key, keys::all()) {
            Some(near) => format!("unknown key `{key}`, did you mean `{near}`?"),
            None => format!("unknown key `{key}`: xl.cfg(5) has none of that name"),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xlcfg::read;

    fn settings(text: &str) -> Result<Settings, Diag> {
        Settings::new(read("guest.cfg", text)?)
    }

    #[test]
    fn keys_are_known_near_or_neither() {
        for (text, expected) in [
            ("name = 'a'\n memry = 5", "guest.cfg:2:2: unknown key `memry`, did you mean `memory`?"),
            ("kernal = 'x'", "guest.cfg:1:1: unknown key `kernal`, did you mean `kernel`?"),
            ("zzzzzz = 1", "guest.cfg:1:1: unknown key `zzzzzz`: xl.cfg(5) has none of that name"),
            (
                "pci = [ '01:00.0' ]",
                "guest.cfg:1:1: `pci` is not supported yet: the guest would start without it; remove it or leave it empty",
            ),
        ] {
            assert_eq!(settings(text).unwrap_err().to_string(), expected);
        }
        let warnings = settings("pci=[]; pae=1; vnc=0; vnc=1; cpu_weight=512; pool='x'").unwrap().warnings;
        assert_eq!(
            warnings,
            [
                "guest.cfg:1:23: warning: `vnc` has no effect on a PVH guest",
                "guest.cfg:1:30: warning: `cpu_weight` is not supported yet and has no effect",
                "guest.cfg:1:46: warning: `pool` has no meaning on KVM and no effect",
            ]
        );
    }

    #[test]
    fn values_are_what_their_key_needs() {
        let all = settings("memory = \"0x100\"; vcpus = 2; vcpus = 3; name = ''; acpi = 0; cmdline = 5; maxmem='lots'; cpus=[1]").unwrap();
        assert_eq!(all.number("memory", (1, 1000), "512"), Ok(Some(256)));
        assert_eq!(all.count("vcpus", (1, 64), "2"), Ok(Some(3)), "the last one wins");
        assert_eq!(all.text("name"), Ok(None));
        assert_eq!(all.flag("acpi"), Ok(Some(false)));
        assert_eq!(all.number("maxvcpus", (1, 64), "2"), Ok(None));
        for (error, expected) in [
            (all.text("cmdline").unwrap_err(), "cmdline must be a string: cmdline = \"...\""),
            (
                all.number("maxmem", (1, 9), "512").unwrap_err(),
                "maxmem must be a number, \"lots\" is none; for example maxmem = 512",
            ),
            (
                all.number("cpus", (1, 9), "1").unwrap_err(),
                "cpus must be a number, not a list; for example cpus = 1",
            ),
            (
                all.number("vcpus", (4, 9), "5").unwrap_err(),
                "vcpus must be from 4 to 9, not 3; for example vcpus = 5",
            ),
        ] {
            assert_eq!(error.message, expected);
        }
    }
}
