//! menu.lst of GRUB before version 2, which guests made for pygrub and pv-grub still have.

use crate::choice::Choice;
use crate::volumes::{Place, Volumes};
use anyhow::Context;

/// Entries of one menu.
const MAX_ENTRIES: usize = 512;

#[derive(Debug, Default)]
struct Entry {
    title: String,
    root: Option<String>,
    kernel: Option<String>,
    ramdisks: Vec<String>,
}

/// The entry `wanted`, or the default one, of the menu at `config`.
///
/// # Errors
/// No such entry; one without a kernel.
pub fn choose(volumes: &Volumes, config: &Place, wanted: Option<&str>) -> anyhow::Result<Choice> {
    let text = volumes.text(config)?;
    let (default, entries) = parse(&text);
    let entry = match wanted {
        Some(wanted) => {
            let index = wanted.parse::<usize>().ok().and_then(|index| entries.get(index));
            let titles: Vec<_> = entries.iter().map(|entry| entry.title.as_str()).collect();
            let found = entries.iter().find(|entry| entry.title == wanted).or(index);
            found.with_context(|| format!("no entry {wanted:?}: there are {titles:?}"))?
        }
        None => entries.get(default).or(entries.first()).context("no entry")?,
    };
    let line = entry.kernel.as_deref().with_context(|| format!("entry {:?}: no kernel", entry.title))?;
    let (kernel, cmdline) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let root = entry.root.as_deref().unwrap_or_default();
    let place = |path: &str| place(volumes, config.volume, root, path);
    // A Xen entry: the first module is the kernel.
    let (kernel, cmdline, ramdisks) = match entry.ramdisks.split_first() {
        Some((module, rest)) if module.starts_with("module ") => {
            let module = module.trim_start_matches("module ").trim();
            let (kernel, cmdline) = module.split_once(char::is_whitespace).unwrap_or((module, ""));
            (kernel, cmdline, rest)
        }
        _ => (kernel, cmdline, entry.ramdisks.as_slice()),
    };
    let path = |line: &String| line.trim_start_matches("module ").split_whitespace().next().map(place);
    Ok(Choice {
        title: entry.title.clone(),
        kernel: place(kernel),
        ramdisks: ramdisks.iter().filter_map(path).collect(),
        cmdline: cmdline.trim().to_owned(),
    })
}

/// `(hd0,0)` counts partitions from 0; a lone `(hd0)` is the disk.
fn place(volumes: &Volumes, home: usize, root: &str, path: &str) -> Place {
    let (device, path) = match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        Some((device, path)) => (device, path),
        None => (root.trim_start_matches('(').trim_end_matches(')'), path),
    };
    let number = device.rsplit_once(',').and_then(|(_, part)| part.trim().parse::<u32>().ok());
    let name = number.and_then(|number| number.checked_add(1)).map(|number| format!("hd0,{number}"));
    let volume = name.and_then(|name| volumes.find(&name)).unwrap_or(home);
    Place { volume, path: format!("/{}", path.trim_start_matches('/')) }
}

fn parse(text: &str) -> (usize, Vec<Entry>) {
    let (mut default, mut entries) = (0, Vec::<Entry>::new());
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
        let (key, value) = line.split_at_checked(end).unwrap_or((line, ""));
        let value = value.trim_start_matches([' ', '\t', '=']).trim();
        let room = entries.len() < MAX_ENTRIES;
        match (key, entries.last_mut()) {
            ("title", _) if room => {
                entries.push(Entry { title: value.to_owned(), ..Entry::default() });
            }
            ("default", None) => default = value.parse().unwrap_or(0),
            ("root" | "rootnoverify", Some(entry)) => entry.root = Some(value.to_owned()),
            ("kernel", Some(entry)) => entry.kernel = Some(value.to_owned()),
            ("initrd", Some(entry)) => entry.ramdisks.push(value.to_owned()),
            ("module", Some(entry)) => entry.ramdisks.push(format!("module {value}")),
            _ => {}
        }
    }
    (default, entries)
}
