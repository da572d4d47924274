//! Menus of extlinux and syslinux (their wiki's `Config` page).

use crate::choice::Choice;
use crate::volumes::{Place, Volumes};
use anyhow::{Context, bail};

/// Files within files.
const MAX_DEPTH: usize = 8;
/// Files in all.
const MAX_FILES: usize = 64;
/// Entries of one menu.
const MAX_LABELS: usize = 512;

/// One LABEL.
#[derive(Clone, Debug, Default)]
struct Label {
    name: String,
    title: Option<String>,
    kernel: Option<String>,
    append: Option<String>,
    initrd: Option<String>,
}

/// A menu in the making.
#[derive(Debug, Default)]
struct Menu {
    default: Option<String>,
    timeout: Option<String>,
    files: usize,
    append: String,
    labels: Vec<Label>,
}

/// The entry `wanted`, or the default one, of the menu at `config`.
///
/// # Errors
/// No such entry; one without a kernel.
pub fn choose(volumes: &Volumes, config: &Place, wanted: Option<&str>) -> anyhow::Result<Choice> {
    let mut menu = Menu::default();
    menu.read(volumes, config, 0)?;
    let label = menu.pick(wanted)?;
    let mut cmdline = match label.append.as_deref() {
        Some("-") => String::new(),
        Some(append) => append.to_owned(),
        None => menu.append.clone(),
    };
    // An initrd= among the arguments is for the loader; the kernel ignores it.
    let within = cmdline.split_whitespace().find_map(|word| word.strip_prefix("initrd="));
    let initrd = label.initrd.clone().or(within.map(str::to_owned));
    cmdline = cmdline.split_whitespace().filter(|w| !w.starts_with("initrd=")).collect::<Vec<_>>().join(" ");
    let kernel = label.kernel.as_deref().with_context(|| format!("LABEL {}: no kernel", label.name))?;
    // KERNEL may have arguments itself.
    let (kernel, arguments) = kernel.split_once(char::is_whitespace).unwrap_or((kernel, ""));
    let place = |path: &str| beside(config, path);
    Ok(Choice {
        title: label.title.clone().unwrap_or_else(|| label.name.clone()),
        kernel: place(kernel),
        ramdisks: initrd.iter().flat_map(|list| list.split(',')).map(place).collect(),
        cmdline: [arguments, &cmdline].map(str::trim).join(" ").trim().to_owned(),
    })
}

/// Paths are relative to the menu's folder.
fn beside(config: &Place, path: &str) -> Place {
    let folder = config.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    Place { volume: config.volume, path }
}

impl Menu {
    fn read(&mut self, volumes: &Volumes, file: &Place, depth: usize) -> anyhow::Result<()> {
        self.files += 1;
        if depth > MAX_DEPTH || self.files > MAX_FILES {
            bail!("{}: more than {MAX_FILES} files, or {MAX_DEPTH} within each other", file.path);
        }
        for line in volumes.text(file)?.lines().map(str::trim) {
            let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let value = value.trim();
            let mut key = key.to_ascii_lowercase();
            let mut value = value.to_owned();
            if key == "menu" {
                let (sub, rest) = value.split_once(char::is_whitespace).unwrap_or((&value, ""));
                key = format!("menu {}", sub.to_ascii_lowercase());
                value = rest.trim().to_owned();
            }
            if matches!(key.as_str(), "include" | "menu include") {
                let path = value.split_whitespace().next().unwrap_or_default();
                let included = beside(file, path);
                // One that is not there is no error, such as a theme.
                if volumes.size(&included).is_some() {
                    self.read(volumes, &included, depth + 1)?;
                }
            } else {
                self.line(&key, value)?;
            }
        }
        Ok(())
    }

    fn line(&mut self, key: &str, value: String) -> anyhow::Result<()> {
        match (key, self.labels.last_mut()) {
            ("label", _) => {
                if self.labels.len() >= MAX_LABELS {
                    bail!("more than {MAX_LABELS} entries");
                }
                self.labels.push(Label { name: value, ..Label::default() });
            }
            ("default", _) => self.default = Some(value),
            ("ontimeout", _) => self.timeout = Some(value),
            ("menu default", Some(label)) => self.default = Some(label.name.clone()),
            ("menu label", Some(label)) => label.title = Some(value.replace('^', "")),
            ("kernel" | "linux", Some(label)) => label.kernel = Some(value),
            ("initrd", Some(label)) => label.initrd = Some(value),
            ("append", Some(label)) => label.append = Some(value),
            ("append", None) => self.append = value,
            _ => {}
        }
        Ok(())
    }

    fn pick(&self, wanted: Option<&str>) -> anyhow::Result<&Label> {
        let titled = |name: &str| {
            let index = name.parse::<usize>().ok().and_then(|index| self.labels.get(index));
            let found = self.labels.iter().find(|l| l.name == name || l.title.as_deref() == Some(name));
            found.or(index)
        };
        if let Some(wanted) = wanted {
            let names: Vec<_> = self.labels.iter().map(|label| label.name.as_str()).collect();
            return titled(wanted).with_context(|| format!("no entry {wanted:?}: there are {names:?}"));
        }
        // DEFAULT may name a menu program or a label with arguments; nobody is there to choose before the time is over.
        let names = [&self.timeout, &self.default].into_iter().flatten();
        let label = names.filter_map(|name| self.labels.iter().find(|label| label.name == *name)).next();
        let has_kernel = |label: &&Label| label.kernel.is_some();
        label.or_else(|| self.labels.iter().find(has_kernel)).context("no entry with a kernel")
    }
}
