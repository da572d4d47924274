//! Which menu, and which entry of it.

use crate::grub::shell::{Item, Loads, Shell};
use crate::volumes::{Place, Volumes};
use crate::{bls, extlinux, legacy};
use anyhow::{Context, bail};
use xen_emu_api::bootloader::Bootloader;

/// What is to be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What the user would see.
    pub title: String,
    /// The kernel.
    pub kernel: Place,
    /// The ramdisks, in their order.
    pub ramdisks: Vec<Place>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Reads a menu and takes the entry that is wanted, else the default.
type Reader = fn(&Volumes, &Place, Option<&str>) -> anyhow::Result<Choice>;

/// Where menus are, in the order of preference; with or without a `/boot` of its own.
const MENUS: &[(&str, Reader)] = &[
    ("/boot/grub/grub.cfg", grub),
    ("/boot/grub2/grub.cfg", grub),
    ("/grub/grub.cfg", grub),
    ("/grub2/grub.cfg", grub),
    ("/loader/entries", boot_loader_specification),
    ("/boot/loader/entries", boot_loader_specification),
    ("/boot/extlinux/extlinux.conf", extlinux::choose),
    ("/boot/extlinux.conf", extlinux::choose),
    ("/extlinux/extlinux.conf", extlinux::choose),
    ("/extlinux.conf", extlinux::choose),
    ("/boot/syslinux/syslinux.cfg", extlinux::choose),
    ("/boot/syslinux/extlinux.conf", extlinux::choose),
    ("/syslinux/syslinux.cfg", extlinux::choose),
    ("/syslinux.cfg", extlinux::choose),
    ("/boot/grub/menu.lst", legacy::choose),
    ("/grub/menu.lst", legacy::choose),
    ("/boot/grub/grub.conf", legacy::choose),
    ("/grub/grub.conf", legacy::choose),
];

/// Submenus within each other.
const MAX_SUBMENUS: usize = 8;

/// What the first menu on the disk says; `None` when there is no menu.
///
/// # Errors
/// A menu that leads to nothing; a wish that cannot be fulfilled.
pub fn choose(volumes: &Volumes, wish: &Bootloader) -> anyhow::Result<Option<Choice>> {
    let mut choice = match &wish.kernel {
        Some(kernel) => Choice {
            title: kernel.clone(),
            kernel: anywhere(volumes, kernel)?,
            ramdisks: Vec::new(),
            cmdline: String::new(),
        },
        None => {
            let Some((config, reader)) = menu(volumes) else { return Ok(None) };
            let name = format!("({}){}", volumes.name(config.volume), config.path);
            reader(volumes, &config, wish.entry.as_deref()).context(name)?
        }
    };
    if let Some(ramdisk) = &wish.ramdisk {
        choice.ramdisks = vec![anywhere(volumes, ramdisk)?];
    }
    choice.cmdline =
        [choice.cmdline.as_str(), wish.args.as_deref().unwrap_or_default()].join(" ").trim().to_owned();
    Ok(Some(choice))
}

/// On the first volume that has it; what is said to be in `/boot` may have a volume of its own.
fn anywhere(volumes: &Volumes, path: &str) -> anyhow::Result<Place> {
    let path = format!("/{}", path.trim_start_matches('/'));
    let inside = path.strip_prefix("/boot").filter(|rest| rest.starts_with('/'));
    let there = |path: &str| {
        let place = |volume| Place { volume, path: path.to_owned() };
        volumes.search(|volume, _| volumes.size(&place(volume)).is_some()).map(place)
    };
    let found = there(&path).or_else(|| inside.and_then(there));
    found.with_context(|| format!("no file system of the disk has {path}{}", volumes.not_read()))
}

fn menu(volumes: &Volumes) -> Option<(Place, Reader)> {
    for (path, reader) in MENUS {
        let place = |volume| Place { volume, path: (*path).to_owned() };
        let there = |volume| match path.rsplit_once('.') {
            Some(_) => volumes.size(&place(volume)).is_some(),
            None => !bls::entries(volumes, &place(volume)).is_empty(),
        };
        if let Some(volume) = volumes.search(|volume, _| there(volume)) {
            return Some((place(volume), *reader));
        }
    }
    None
}

fn boot_loader_specification(
    volumes: &Volumes,
    folder: &Place,
    wanted: Option<&str>,
) -> anyhow::Result<Choice> {
    let entries = bls::entries(volumes, folder);
    let entry = match wanted {
        Some(wanted) => {
            let index = wanted.parse::<usize>().ok().and_then(|index| entries.get(index));
            let ids: Vec<_> = entries.iter().map(|entry| entry.id.as_str()).collect();
            let found = entries.iter().find(|entry| entry.id == wanted || entry.title == wanted).or(index);
            Some(found.with_context(|| format!("no entry {wanted:?}: there are {ids:?}"))?)
        }
        None => {
            let path = folder.path.replace("/entries", "/loader.conf");
            let conf = volumes.text(&Place { volume: folder.volume, path }).unwrap_or_default();
            bls::default(&entries, &conf)
        }
    };
    Ok(entry.context("no entry")?.choice(folder.volume))
}

fn grub(volumes: &Volumes, config: &Place, wanted: Option<&str>) -> anyhow::Result<Choice> {
    let mut shell = Shell::new(volumes, config);
    shell.run_text(&volumes.text(config)?)?;
    if shell.menu.is_empty() {
        // A script that boots without asking.
        return loaded(std::mem::take(&mut shell.loads), "grub.cfg");
    }
    let mut path = wanted.unwrap_or(shell.variable("default")).to_owned();
    for _ in 0..MAX_SUBMENUS {
        let (head, rest) = split(&path);
        let item = match (find(&shell.menu, &head), wanted) {
            (Some(item), _) => item.clone(),
            (None, Some(wanted)) => {
                let titles: Vec<_> = shell.menu.iter().map(|item| item.title.as_str()).collect();
                bail!("no entry {wanted:?}: there are {titles:?}");
            }
            (None, None) => shell.menu.first().context("a submenu without an entry")?.clone(),
        };
        if !item.submenu {
            shell.enter(&item).with_context(|| format!("entry {:?}", item.title))?;
            return loaded(std::mem::take(&mut shell.loads), &item.title);
        }
        shell.open(&item).with_context(|| format!("submenu {:?}", item.title))?;
        path = if rest.is_empty() { "0".to_owned() } else { rest };
    }
    bail!("more than {MAX_SUBMENUS} submenus within each other")
}

fn loaded(loads: Loads, title: &str) -> anyhow::Result<Choice> {
    let (kernel, cmdline) = loads.kernel.with_context(|| format!("entry {title:?} loads no Linux kernel"))?;
    Ok(Choice { title: title.to_owned(), kernel, ramdisks: loads.ramdisks, cmdline })
}

/// `1>2`: an entry of a submenu; `>>` stands for a `>` of a title.
fn split(path: &str) -> (String, String) {
    let mut head = String::new();
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '>' if chars.peek() == Some(&'>') => drop(chars.next()),
            '>' => return (head, chars.collect()),
            _ => {}
        }
        head.push(c);
    }
    (head, String::new())
}

/// By number, id or title.
fn find<'a>(menu: &'a [Item], name: &str) -> Option<&'a Item> {
    let index = if name.is_empty() { Some(0) } else { name.parse::<usize>().ok() };
    let named = || menu.iter().find(|item| item.id.as_deref() == Some(name) || item.title == name);
    match index {
        Some(index) => menu.get(index),
        None => named(),
    }
}
