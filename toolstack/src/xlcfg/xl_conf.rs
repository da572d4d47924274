//! xl.conf(5): what the host says for all its domains. Read are the defaults of network cards and grant tables; the rest is for what xl
//! does and xlr does not, and accepted.

use super::schema::Settings;
use super::{Diag, Setting, Value, parser};
use crate::commands::nearest;
use anyhow::{Context, Result};
use std::io::ErrorKind;
use std::sync::Arc;

/// Where it is.
const PATH: &str = "/etc/xen/xl.conf";
/// Where it is instead.
const INSTEAD: &str = "XLR_XL_CONF";

/// Defaults of a network card: the key, and the parameter that it stands for.
const VIF: [(&str, &str); 4] = [
    ("vif.default.bridge", "bridge"),
    ("vif.default.script", "script"),
    ("vif.default.gatewaydev", "gatewaydev"),
    ("vif.default.backend", "backend"),
];
/// What the first two of them were called.
const OLD: [(&str, &str); 2] = [("defaultbridge", "vif.default.bridge"), ("vifscript", "vif.default.script")];
/// Defaults of keys of a domain.
const DOMAIN: [&str; 2] = ["max_grant_frames", "max_grant_version"];
/// What changes nothing here: no memory is taken from a domain 0, locks are per domain, and the rest is of devices and policies that
/// there are not.
const ACCEPTED: &[&str] = &[
    "autoballoon",
    "run_hotplug_scripts",
    "lockfile",
    "domid_policy",
    "max_maptrack_frames",
    "remus.default.netbufscript",
    "colo.default.proxyscript",
    "output_format",
    "blkdev_start",
    "claim_mode",
    "vm.cpumask",
    "vm.hvm.cpumask",
    "vm.pv.cpumask",
    "bootloader_restrict",
];

/// The host's defaults.
#[derive(Clone, Debug, Default)]
pub struct XlConf {
    list: Vec<Setting>,
    /// One line each.
    pub warnings: Vec<String>,
}

impl XlConf {
    /// The host's; none where there is no such file.
    ///
    /// # Errors
    /// It cannot be read, or is not what such a file is.
    pub fn read() -> Result<Self> {
        let given = std::env::var(INSTEAD).ok().filter(|path| !path.is_empty());
        let path = given.unwrap_or_else(|| PATH.to_owned());
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&path, &text)?),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
        }
    }

    /// From its text; `name` is what messages call it.
    pub fn parse(name: &str, text: &str) -> Result<Self, Diag> {
        let mut list = parser::parse(&Arc::from(name), text)?;
        let mut warnings = Vec::new();
        for setting in &mut list {
            warnings.extend(warning(setting).map(|what| format!("{}: warning: {what}", setting.pos)));
            if let Some((_, new)) = OLD.iter().find(|(old, _)| *old == setting.key) {
                setting.key = (*new).to_owned();
            }
        }
        let conf = XlConf { list, warnings };
        let mut wrong = VIF.iter().filter_map(|(key, _)| conf.value(key).map(|value| (key, value)));
        match wrong.find(|(_, value)| value.text().is_none()) {
            Some((key, value)) => Err(value.pos.error(format!("{key} must be a string: {key} = \"...\""))),
            None => Ok(conf),
        }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.list.iter().rev().find(|setting| setting.key == key).map(|setting| &setting.value)
    }

    /// What a network card has where it says nothing itself: parameter and value, those that are not empty.
    pub fn vif(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        let said = |(key, parameter): &(&str, &'static str)| Some((*parameter, self.value(key)?));
        VIF.iter().filter_map(said).filter(|(_, value)| !value.is_empty())
    }

    /// Settings of a domain, before its own.
    pub fn domain(&self) -> impl Iterator<Item = &Setting> {
        self.list.iter().filter(|setting| DOMAIN.contains(&setting.key.as_str()))
    }
}

fn warning(setting: &Setting) -> Option<String> {
    let key = setting.key.as_str();
    let vif = VIF.iter().map(|(key, _)| *key);
    let mut known = vif.chain(DOMAIN).chain(ACCEPTED.iter().copied());
    if let Some((old, new)) = OLD.iter().find(|(old, _)| *old == key) {
        return Some(format!("`{old}` is called {new} now"));
    }
    if known.clone().any(|name| name == key) {
        return None;
    }
    let near = nearest(key, &mut known).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
    Some(format!("unknown key `{key}`{near}"))
}

impl Settings {
    /// On this host: its defaults hold where these settings say nothing.
    #[must_use]
    pub fn on(self, host: XlConf) -> Self {
        let Settings { list, warnings, .. } = self;
        let list = host.domain().cloned().chain(list).collect();
        let warnings = host.warnings.iter().cloned().chain(warnings).collect();
        Settings { list, warnings, host }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_and_what_is_said() {
        let text = "autoballoon=\"auto\"\nvif.default.bridge=\"br0\"\nvifscript='vif-route'\n\
            vif.default.gatewaydev = ''\nmax_grant_frames=128\nvif.default.brigde='x'\nnonsense=[]\n";
        let conf = XlConf::parse("xl.conf", text).unwrap();
        let vif: Vec<_> = conf.vif().map(|(key, value)| (key, value.text().unwrap_or_default())).collect();
        assert_eq!(vif, [("bridge", "br0"), ("script", "vif-route")]);
        assert_eq!(
            conf.warnings,
            [
                "xl.conf:3:1: warning: `vifscript` is called vif.default.script now",
                "xl.conf:6:1: warning: unknown key `vif.default.brigde`, did you mean `vif.default.bridge`?",
                "xl.conf:7:1: warning: unknown key `nonsense`",
            ]
        );
        let settings =
            |text: &str| Settings::new(crate::xlcfg::read("g.cfg", text).unwrap()).unwrap().on(conf.clone());
        let frames = |settings: &Settings| settings.count("max_grant_frames", (1, 1000), "64");
        assert_eq!(frames(&settings("name='a'")), Ok(Some(128)));
        assert_eq!(frames(&settings("max_grant_frames=32")), Ok(Some(32)), "the domain's own goes before");
        for (text, expected) in [
            (
                "vif.default.bridge=5",
                "1:20: vif.default.bridge must be a string: vif.default.bridge = \"...\"",
            ),
            ("a = \n", "1:5: unexpected end of line, expected a string, a number or `[` for `a`"),
        ] {
            let error = XlConf::parse("xl.conf", text).unwrap_err().to_string();
            assert_eq!(error, format!("xl.conf:{expected}"));
        }
    }
}
