//! Entries of the boot loader specification (uapi-group.org): `/loader/entries/*.conf`.

use crate::choice::Choice;
use crate::volumes::{Place, Volumes};
use std::cmp::Ordering;

/// Files read of one directory.
const MOST: usize = 256;
/// Longest pattern; names of files are no longer.
const MAX_PATTERN: usize = 255;

/// One entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Name of its file without `.conf` and the count of tries.
    pub id: String,
    /// It was tried as often as it may be, and never came up.
    bad: bool,
    /// What the user sees.
    pub title: String,
    version: String,
    sort_key: String,
    linux: String,
    initrds: Vec<String>,
    options: String,
}

/// Read one file; `None` when it has no kernel of its own (EFI programs).
fn parse(id: &str, text: &str) -> Option<Entry> {
    let (id, bad) = counted(id);
    let mut entry = Entry { id: id.to_owned(), bad, ..Entry::default() };
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut entry.title),
            "version" => value.clone_into(&mut entry.version),
            "sort-key" => value.clone_into(&mut entry.sort_key),
            "linux" => value.clone_into(&mut entry.linux),
            // GRUB's generator puts several into one line.
            "initrd" => entry.initrds.extend(value.split_whitespace().map(str::to_owned)),
            "options" => entry.options = [&entry.options, value].map(str::trim).join(" ").trim().to_owned(),
            _ => {}
        }
    }
    if entry.title.is_empty() {
        entry.title.clone_from(&entry.id);
    }
    (!entry.linux.is_empty()).then_some(entry)
}

/// `ID+LEFT` or `ID+LEFT-DONE`, as the automatic assessment of boots has it: the id, and whether no tries are left.
fn counted(name: &str) -> (&str, bool) {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match name.rsplit_once('+') {
        Some((id, count)) => {
            let (left, done) = count.split_once('-').unwrap_or((count, "0"));
            if number(left) && number(done) { (id, left.bytes().all(|b| b == b'0')) } else { (name, false) }
        }
        None => (name, false),
    }
}

/// The entries in a directory, the one to be preferred first.
pub fn entries(volumes: &Volumes, folder: &Place) -> Vec<Entry> {
    let mut entries: Vec<_> = volumes
        .list_dir(folder)
        .iter()
        .filter_map(|name| name.strip_suffix(".conf"))
        .take(MOST)
        .filter_map(|id| {
            let path = format!("{}/{id}.conf", folder.path);
            let text = volumes.text(&Place { volume: folder.volume, path }).ok()?;
            parse(id, &text)
        })
        .collect();
    // Bad ones last. By sort-key where there is one, those come first; the newest version of each first.
    entries.sort_by(|a, b| {
        let without = |entry: &Entry| entry.sort_key.is_empty();
        a.bad
            .cmp(&b.bad)
            .then_with(|| without(a).cmp(&without(b)))
            .then_with(|| a.sort_key.cmp(&b.sort_key))
            .then_with(|| compare(&b.version, &a.version))
            .then_with(|| compare(&b.id, &a.id))
    });
    entries
}

impl Entry {
    /// As GRUB's blscfg runs it; variables in it are put in then.
    pub fn as_commands(&self) -> String {
        format!("linux {} {}\ninitrd {}\n", self.linux, self.options, self.initrds.join(" "))
    }

    /// As it stands, for loaders without variables.
    pub fn choice(&self, volume: usize) -> Choice {
        let place = |path: &String| Place { volume, path: format!("/{}", path.trim_start_matches('/')) };
        Choice {
            title: self.title.clone(),
            kernel: place(&self.linux),
            ramdisks: self.initrds.iter().map(place).collect(),
            cmdline: self.options.clone(),
        }
    }
}

/// The default of systemd-boot's loader.conf: the first that the pattern fits, else the first.
pub fn default<'a>(entries: &'a [Entry], loader_conf: &str) -> Option<&'a Entry> {
    let mut keys = loader_conf.lines().rev().filter_map(|line| line.trim().split_once(char::is_whitespace));
    // Of two the last counts.
    let pattern = keys.find(|(key, _)| *key == "default").map(|(_, value)| value.trim());
    let pattern = pattern.filter(|pattern| pattern.len() <= MAX_PATTERN);
    let fits = |entry: &&Entry| pattern.is_some_and(|pattern| glob(pattern, &format!("{}.conf", entry.id)));
    let named = |entry: &&Entry| pattern.is_some_and(|pattern| pattern == entry.id);
    entries.iter().find(fits).or_else(|| entries.iter().find(named)).or(entries.first())
}

/// `*` is anything, `?` one character.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // What of the pattern so far can have eaten the text so far.
    let mut reached = vec![false; text.len() + 1];
    if let Some(first) = reached.first_mut() {
        *first = true;
    }
    for &p in &pattern {
        let mut next = vec![false; reached.len()];
        let mut any = false;
        for (at, slot) in next.iter_mut().enumerate() {
            any |= reached.get(at).copied().unwrap_or(false);
            let before = at.checked_sub(1);
            let step = before.and_then(|b| reached.get(b)).copied().unwrap_or(false);
            *slot = match p {
                '*' => any,
                '?' => step,
                _ => step && before.and_then(|b| text.get(b)) == Some(&p),
            };
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}

/// Versions as RPM compares them: runs of digits as numbers, runs of letters as text, a number above letters, `~` below
/// the end.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let skip = |text: &'_ str| -> usize {
            text.find(|c: char| c.is_ascii_alphanumeric() || c == '~').unwrap_or(text.len())
        };
        (a, b) = (a.get(skip(a)..).unwrap_or(""), b.get(skip(b)..).unwrap_or(""));
        match (a.strip_prefix('~'), b.strip_prefix('~')) {
            (Some(rest_a), Some(rest_b)) => {
                (a, b) = (rest_a, rest_b);
                continue;
            }
            (Some(_), None) => return Ordering::Less,
            (None, Some(_)) => return Ordering::Greater,
            (None, None) => {}
        }
        let ((run_a, rest_a), (run_b, rest_b)) = match (run(a), run(b)) {
            (None, None) => return Ordering::Equal,
            (Some(_), None) => return Ordering::Greater,
            (None, Some(_)) => return Ordering::Less,
            (Some(run_a), Some(run_b)) => (run_a, run_b),
        };
        let digits = |run: &str| run.starts_with(|c: char| c.is_ascii_digit());
        let order = match (digits(run_a), digits(run_b)) {
            (true, true) => {
                let (x, y) = (run_a.trim_start_matches('0'), run_b.trim_start_matches('0'));
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
            (false, false) => run_a.cmp(run_b),
            (a_is_number, _) => {
                if a_is_number {
                    Ordering::Greater
                } else {
                    Ordering::Less
                }
            }
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// The first run of digits or of letters, and what follows; `None` at the end.
fn run(text: &str) -> Option<(&str, &str)> {
    let digit = text.chars().next()?.is_ascii_digit();
    let same = |c: char| if digit { c.is_ascii_digit() } else { c.is_ascii_alphabetic() };
    let end = text.find(|c: char| !same(c)).unwrap_or(text.len());
    text.split_at_checked(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_patterns() {
        for (older, newer) in [
            ("6.8.5-301.fc40.x86_64", "6.10.0-1.fc40.x86_64"),
            ("0-rescue-ffffffff", "4.1"),
            ("6.9~rc1", "6.9"),
            ("6.9", "6.9.1"),
            ("a", "1"),
            ("", "1"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater);
        }
        assert_eq!(compare("6.01-2", "6.1.2"), Ordering::Equal);
        assert!(glob("arch*", "arch-lts.conf") && glob("a?ch.conf", "arch.conf") && glob("*.conf", ".conf"));
        assert!(!glob("arch", "arch.conf") && !glob("*x", "arch.conf") && !glob("?", ""));
    }
}
