//! `bootloader=` and `bootloader_args=`: which words of old configurations mean the reader of boot menus.

use crate::xlcfg::schema::Settings;
use crate::xlcfg::{Kind, Value};
use anyhow::Result;
use xen_emu_api::bootloader::Bootloader;

/// How the names of programs begin that boot what is on the disk, which is what xlr does itself: the last part of their path,
/// whatever version, width or `.py` is behind it.
const OURS: &[&str] = &["pygrub", "xlr-pygrub", "pvgrub", "pv-grub", DOM_U_LOADER, "eliloader"];

/// SUSE's, which gets paths in the guest by `--entry=DEVICE:KERNEL,RAMDISK`.
const DOM_U_LOADER: &str = "domUloader";

/// What boots from a network.
const NETWORK: &[&str] = &["pypxeboot", "xenpvnetboot"];

/// pygrub's options that take a value and are of no use here: who it runs as and where it puts things is settled.
const SETTLED: &[&str] = &["--output", "--output-format", "--output-directory", "--runas", "--offset"];

/// What is asked of the guest's disk; `None` without `bootloader=`.
pub fn configured(settings: &Settings) -> Result<Option<Bootloader>> {
    let Some(path) = settings.text("bootloader")?.filter(|path| !path.is_empty()) else { return Ok(None) };
    let name = path.rsplit('/').next().unwrap_or(path);
    let is = |names: &[&str]| names.iter().any(|known| means(name, known));
    let wrong = match name {
        _ if is(NETWORK) => {
            "boots from the network, which xlr cannot: \"pygrub\" boots from the guest's disk"
        }
        _ if is(OURS) => "",
        _ => "is no boot loader known here: \"pygrub\" reads the boot menu on the guest's disk",
    };
    if !wrong.is_empty() {
        return Err(settings.error("bootloader", format!("bootloader {path:?} {wrong}")));
    }
    for key in ["kernel", "ramdisk"] {
        if settings.text(key)?.is_some_and(|path| !path.is_empty()) {
            let message = format!(
                "{key} and bootloader exclude each other: {key} is a file of the host, bootloader takes the guest's \
                 own (a path in the guest: bootloader_args = \"--{key}=/PATH\")"
            );
            return Err(settings.error(key, message));
        }
    }
    let mut wish = arguments(settings)?;
    if means(name, DOM_U_LOADER)
        && let Some((_, paths)) = wish
            .entry
            .take_if(|entry| entry.contains(":/"))
            .as_deref()
            .and_then(|entry| entry.split_once(':'))
    {
        let (kernel, ramdisk) =
            paths.split_once(',').map_or((paths, None), |(kernel, ramdisk)| (kernel, Some(ramdisk)));
        (wish.kernel, wish.ramdisk) = (Some(kernel.to_owned()), ramdisk.map(str::to_owned));
    }
    Ok(Some(wish))
}

/// Whether a program's name is this one, perhaps with a version or an ending.
fn means(name: &str, known: &str) -> bool {
    name.strip_prefix(known).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// The words of `bootloader_args`, one string or a list of them.
fn words(value: &Value) -> Vec<String> {
    match &value.kind {
        Kind::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
        Kind::List(list) => list
            .iter()
            .filter_map(|value| match &value.kind {
                Kind::Text(text) => Some(text.clone()),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn arguments(settings: &Settings) -> Result<Bootloader> {
    let mut wish = Bootloader::default();
    let all = settings.value("bootloader_args").map(words).unwrap_or_default();
    let mut rest = all.into_iter();
    while let Some(word) = rest.next() {
        let (option, value) = match word.split_once('=') {
            Some((option, value)) => (option.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let target = match option.as_str() {
            "--entry" => &mut wish.entry,
            "--kernel" => &mut wish.kernel,
            "--ramdisk" => &mut wish.ramdisk,
            "--args" => &mut wish.args,
            "-q" | "--quiet" | "--debug" => continue,
            _ if SETTLED.contains(&option.as_str()) => {
                if value.is_none() {
                    rest.next();
                }
                continue;
            }
            _ => {
                let known = "--entry=, --kernel=, --ramdisk= and --args= are known";
                return Err(
                    settings.error("bootloader_args", format!("unknown argument {option:?}: {known}"))
                );
            }
        };
        *target = value.or_else(|| rest.next());
    }
    Ok(wish)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xlcfg::read;

    fn parsed(text: &str) -> Result<Option<Bootloader>> {
        configured(&Settings::new(read("g", text)?)?)
    }

    #[test]
    fn words_of_old_configurations() {
        let plain = Some(Bootloader::default());
        for path in [
            "pygrub",
            "/usr/bin/pygrub",
            "/usr/lib/xen-4.17/bin/pygrub",
            "/usr/lib64/xen/bin/pygrub-4.1",
            "pvgrub",
            "pvgrub32",
            "pvgrub64",
            "/usr/lib/xen/boot/pv-grub-x86_64.gz",
            "/usr/lib/xen/boot/domUloader.py",
            "eliloader",
            "xlr-pygrub",
        ] {
            assert_eq!(parsed(&format!("bootloader='{path}'")).unwrap(), plain, "{path}");
        }
        assert_eq!(parsed("kernel='/k'").unwrap(), None);
        assert_eq!(parsed("bootloader=''; kernel='/k'").unwrap(), None);
        let text = "bootloader='pygrub'; bootloader_args=['--entry', '1>2', '-q', '--args=a b', '--runas=9', '--offset', '1']";
        let wish =
            Bootloader { entry: Some("1>2".into()), args: Some("a b".into()), ..Bootloader::default() };
        assert_eq!(parsed(text).unwrap(), Some(wish));
        let text = "bootloader='pygrub'; bootloader_args='--kernel=/k --ramdisk /r'";
        let wish =
            Bootloader { kernel: Some("/k".into()), ramdisk: Some("/r".into()), ..Bootloader::default() };
        assert_eq!(parsed(text).unwrap(), Some(wish));
    }

    #[test]
    fn the_entry_of_dom_u_loader_is_paths() {
        let wish = |args: &str| {
            parsed(&format!("bootloader='domUloader.py'; bootloader_args='{args}'")).unwrap().unwrap()
        };
        let both = wish("--entry=xvda2:/boot/vmlinuz-xen,/boot/initrd-xen");
        let paths = (both.entry, both.kernel.as_deref(), both.ramdisk.as_deref());
        assert_eq!(paths, (None, Some("/boot/vmlinuz-xen"), Some("/boot/initrd-xen")));
        let kernel = wish("--entry=xvda2:/vmlinuz");
        assert_eq!((kernel.kernel.as_deref(), kernel.ramdisk), (Some("/vmlinuz"), None));
        assert_eq!(wish("--entry=2").entry.as_deref(), Some("2"));
    }

    #[test]
    fn what_cannot_be_is_said() {
        for (text, expected) in [
            (
                "bootloader='/usr/bin/pypxeboot'",
                "g:1:12: bootloader \"/usr/bin/pypxeboot\" boots from the network",
            ),
            ("bootloader='xenpvnetboot'", "g:1:12: bootloader \"xenpvnetboot\" boots from the network"),
            ("bootloader='pygrubber'", "g:1:12: bootloader \"pygrubber\" is no boot loader known here"),
            ("bootloader='lilo'", "g:1:12: bootloader \"lilo\" is no boot loader known here"),
            ("bootloader='pygrub'; kernel='/k'", "g:1:29: kernel and bootloader exclude each other"),
            ("bootloader='pygrub'; ramdisk='/k'", "g:1:30: ramdisk and bootloader exclude each other"),
            ("bootloader='pygrub'; bootloader_args='--list'", "g:1:38: unknown argument \"--list\""),
        ] {
            let said = parsed(text).unwrap_err().to_string();
            assert!(said.starts_with(expected), "{text}: {said}");
        }
    }
}
