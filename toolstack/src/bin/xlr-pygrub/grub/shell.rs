//! Running a menu's commands: which entries it has, and what an entry loads.

use super::condition::{self, Look};
use super::env;
use super::parse::{Node, Piece, Script, Word, parse};
use crate::bls;
use crate::volumes::{Place, Volumes};
use anyhow::{Context, bail};
use std::collections::HashMap;
use std::rc::Rc;

/// Commands carried out in all.
const MAX_STEPS: usize = 50_000;
/// Functions, files and menus within each other; what a thread's stack takes.
const MAX_DEPTH: usize = 24;
/// Bytes of one word.
const MAX_WORD: usize = 16 << 10;
/// Bytes of the words of one command.
const MAX_WORDS: usize = 1 << 20;
/// Bytes of all that is remembered.
const MAX_MEMORY: usize = 32 << 20;
/// What a parsed text takes, for each of its bytes; in the worst case it is some more.
const PARSED: usize = 16;

/// What GRUB sets before it reads a menu, as far as menus ask for it.
const GIVEN: &[(&str, &str)] = &[
    ("grub_cpu", "i386"),
    ("grub_platform", "xen_pvh"),
    ("feature_all_video_module", "y"),
    ("feature_chainloader_bpb", "y"),
    ("feature_default_font_path", "y"),
    ("feature_menuentry_id", "y"),
    ("feature_menuentry_options", "y"),
    ("feature_nativedisk_cmd", "y"),
    ("feature_ntldr", "y"),
    ("feature_platform_search_hint", "y"),
    ("feature_timeout_style", "y"),
];

/// An entry of a menu.
#[derive(Clone, Debug)]
pub struct Item {
    /// What the user sees.
    pub title: String,
    /// `--id`
    pub id: Option<String>,
    /// Its block makes a menu.
    pub submenu: bool,
    arguments: Vec<String>,
    body: Rc<Script>,
}

/// What is loaded to be booted.
#[derive(Clone, Debug, Default)]
pub struct Loads {
    /// The kernel and its command line.
    pub kernel: Option<(Place, String)>,
    /// In this order.
    pub ramdisks: Vec<Place>,
}

/// GRUB with a disk.
pub struct Shell<'a> {
    volumes: &'a Volumes,
    /// The volume of the menu.
    home: usize,
    variables: HashMap<String, String>,
    functions: HashMap<String, Rc<Script>>,
    parameters: Vec<String>,
    status: bool,
    /// The menu so far.
    pub menu: Vec<Item>,
    /// What was loaded so far.
    pub loads: Loads,
    steps: usize,
    depth: usize,
    memory: usize,
}

type Handler<'a> = fn(&mut Shell<'a>, &[String]) -> anyhow::Result<bool>;

impl Look for Shell<'_> {
    fn size(&self, path: &str) -> Option<u64> {
        self.volumes.size(&self.place(path))
    }

    fn is_dir(&self, path: &str) -> bool {
        self.volumes.is_dir(&self.place(path))
    }
}

impl<'a> Shell<'a> {
    /// GRUB as it is when it starts to read the menu at `config`.
    pub fn new(volumes: &'a Volumes, config: &Place) -> Self {
        let root = volumes.name(config.volume);
        let folder = config.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let prefix = format!("({root}){folder}");
        let own = [
            ("config_file", format!("({root}){}", config.path)),
            ("config_directory", prefix.clone()),
            ("prefix", prefix),
            ("root", root),
        ];
        let given = GIVEN.iter().map(|&(name, value)| (name, value.to_owned()));
        let variables = given.chain(own).map(|(name, value)| (name.to_owned(), value)).collect();
        Shell {
            volumes,
            home: config.volume,
            variables,
            functions: HashMap::new(),
            parameters: Vec::new(),
            status: true,
            menu: Vec::new(),
            loads: Loads::default(),
            steps: 0,
            depth: 0,
            memory: 0,
        }
    }

    /// The commands that matter here. All others, which set up screens, terminals and modules, just succeed.
    fn handler(name: &str) -> Option<Handler<'a>> {
        Some(match name {
            "[" => |shell, words| {
                let end = "]".to_owned();
                Ok(condition::holds(words.strip_suffix(&[end]).unwrap_or(words), shell))
            },
            "test" => |shell, words| Ok(condition::holds(words, shell)),
            "false" | "fwsetup" => |_, _| Ok(false),
            "set" => Self::set,
            "unset" => Self::unset,
            "load_env" => Self::load_env,
            "source" | "." | "configfile" => Self::source,
            "search" => Self::search,
            "search.fs_uuid" => |shell, words| shell.search_old("--fs-uuid", words),
            "search.fs_label" => |shell, words| shell.search_old("--label", words),
            "search.file" => |shell, words| shell.search_old("--file", words),
            "blscfg" => Self::blscfg,
            "linux" | "linux16" | "linuxefi" => Self::linux,
            "initrd" | "initrd16" | "initrdefi" => Self::initrd,
            "multiboot" | "multiboot2" | "xen_hypervisor" => Self::hypervisor,
            "module" | "module2" | "xen_module" => Self::module,
            _ => return None,
        })
    }

    /// Value of a variable; empty when there is none.
    pub fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// Read and run the text of a menu.
    ///
    /// # Errors
    /// Not GRUB's language, or without an end.
    pub fn run_text(&mut self, text: &str) -> anyhow::Result<()> {
        let script = parse(text)?;
        self.run(&script)
    }

    /// Open a submenu: its entries are the menu then.
    ///
    /// # Errors
    /// As those of any command.
    pub fn open(&mut self, item: &Item) -> anyhow::Result<()> {
        self.menu.clear();
        self.enter(item)
    }

    /// Choose an entry: what it loads is in `loads` then.
    ///
    /// # Errors
    /// As those of any command.
    pub fn enter(&mut self, item: &Item) -> anyhow::Result<()> {
        self.loads = Loads::default();
        self.assign("chosen", item.title.clone())?;
        self.call(&item.body, item.arguments.clone())
    }

    fn place(&self, path: &str) -> Place {
        self.volumes.place(path, self.variable("root"), self.home)
    }

    fn remember(&mut self, bytes: usize) -> anyhow::Result<()> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > MAX_MEMORY {
            bail!("the menu makes up too much");
        }
        Ok(())
    }

    fn assign(&mut self, name: &str, value: String) -> anyhow::Result<()> {
        self.remember(name.len() + value.len())?;
        self.variables.insert(name.to_owned(), value);
        Ok(())
    }

    fn call(&mut self, body: &Rc<Script>, parameters: Vec<String>) -> anyhow::Result<()> {
        let outer = std::mem::replace(&mut self.parameters, parameters);
        let result = self.run(&body.clone());
        self.parameters = outer;
        result
    }

    fn run(&mut self, script: &Script) -> anyhow::Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            bail!("more than {MAX_DEPTH} blocks, functions and files within each other");
        }
        for node in script {
            self.step()?;
            self.node(node)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn step(&mut self) -> anyhow::Result<()> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            bail!("no end after {MAX_STEPS} commands");
        }
        Ok(())
    }

    fn node(&mut self, node: &Node) -> anyhow::Result<()> {
        match node {
            Node::Simple(words) => {
                let words = self.expand(words)?;
                self.simple(&words)?;
            }
            Node::Block(words, body) => self.block(words, body)?,
            Node::If(arms, otherwise) => {
                for (condition, body) in arms {
                    self.run(condition)?;
                    if self.status {
                        return self.run(body);
                    }
                }
                self.status = true;
                self.run(otherwise)?;
            }
            Node::Loop(until, condition, body) => loop {
                self.step()?;
                self.run(condition)?;
                if self.status == *until {
                    break;
                }
                self.run(body)?;
            },
            Node::For(name, words, body) => {
                for word in self.expand(words)? {
                    self.step()?;
                    self.assign(name, word)?;
                    self.run(body)?;
                }
            }
            Node::Function(name, body) => {
                self.remember(name.len())?;
                self.functions.insert(name.clone(), body.clone());
            }
        }
        Ok(())
    }

    /// A variable, or a parameter of a function or entry.
    fn value(&self, name: &str) -> String {
        match name {
            "?" => if self.status { "0" } else { "1" }.to_owned(),
            "#" => self.parameters.len().to_string(),
            "@" | "*" => self.parameters.join(" "),
            _ => match name.parse::<usize>() {
                Ok(number) => number.checked_sub(1).and_then(|at| self.parameters.get(at)).cloned(),
                Err(_) => self.variables.get(name).cloned(),
            }
            .unwrap_or_default(),
        }
    }

    /// Put in the variables. Those outside of quotes part words, and are none when empty.
    fn expand(&self, words: &[Word]) -> anyhow::Result<Vec<String>> {
        let mut out: Vec<String> = Vec::new();
        let mut room = MAX_WORDS;
        for word in words {
            let mut current: Option<String> = None;
            for piece in word {
                match piece {
                    Piece::Text { text, .. } => current.get_or_insert_default().push_str(text),
                    Piece::Var { name, quoted: true } => {
                        current.get_or_insert_default().push_str(&self.value(name));
                    }
                    Piece::Var { name, quoted: false } => {
                        let value = self.value(name);
                        // A word of one character takes as much as one of 32.
                        let Some(left) = room.checked_sub(value.len().saturating_mul(16)) else {
                            bail!("a command of more than {MAX_WORDS} bytes");
                        };
                        room = left;
                        for (index, part) in value.split([' ', '\t', '\n']).enumerate() {
                            if index > 0 {
                                out.extend(current.take());
                            }
                            if !part.is_empty() {
                                current.get_or_insert_default().push_str(part);
                            }
                        }
                    }
                }
                if current.as_ref().is_some_and(|word| word.len() > MAX_WORD) {
                    bail!("a word of more than {MAX_WORD} bytes");
                }
            }
            out.extend(current);
        }
        Ok(out)
    }

    fn simple(&mut self, words: &[String]) -> anyhow::Result<()> {
        let negations = words.iter().take_while(|word| *word == "!").count();
        let words = words.get(negations..).unwrap_or_default();
        self.command(words)?;
        self.status ^= negations % 2 == 1;
        Ok(())
    }

    fn command(&mut self, words: &[String]) -> anyhow::Result<()> {
        let Some((name, arguments)) = words.split_first() else { return Ok(()) };
        if let Some(body) = self.functions.get(name).cloned() {
            self.call(&body, arguments.to_vec())?;
        } else if let Some(handler) = Self::handler(name) {
            self.status = handler(self, arguments)?;
        } else if let Some((variable, value)) = name.split_once('=') {
            self.assign(variable, value.to_owned())?;
            self.status = true;
        } else {
            self.status = true;
        }
        Ok(())
    }

    /// `menuentry TITLE [--id ID] ... { }`; other blocks are run as they stand.
    fn block(&mut self, words: &[Word], body: &Rc<Script>) -> anyhow::Result<()> {
        let words = self.expand(words)?;
        let submenu = match words.first().map(String::as_str) {
            Some("menuentry") => false,
            Some("submenu") => true,
            _ => return self.run(body),
        };
        let (mut title, mut id, mut arguments) = (None, None, Vec::new());
        let mut rest = words.into_iter().skip(1);
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--id" => id = rest.next(),
                "--class" | "--users" | "--hotkey" | "--source" => drop(rest.next()),
                "--unrestricted" => {}
                _ if title.is_none() && !word.starts_with("--") => title = Some(word),
                _ => match word.strip_prefix("--id=") {
                    Some(value) => id = Some(value.to_owned()),
                    None if word.starts_with("--") => {}
                    None => arguments.push(word),
                },
            }
        }
        let title = title.unwrap_or_default();
        self.remember(title.len() + arguments.iter().map(String::len).sum::<usize>() + 64)?;
        self.menu.push(Item { title, id, submenu, arguments, body: body.clone() });
        Ok(())
    }

    fn set(&mut self, words: &[String]) -> anyhow::Result<bool> {
        if let Some((name, value)) = words.first().and_then(|word| word.split_once('=')) {
            self.assign(name, value.to_owned())?;
        }
        Ok(true)
    }

    fn unset(&mut self, names: &[String]) -> anyhow::Result<bool> {
        names.iter().for_each(|name| drop(self.variables.remove(name)));
        Ok(true)
    }

    /// `load_env [-f FILE] [--skip-sig] [NAME...]`
    fn load_env(&mut self, words: &[String]) -> anyhow::Result<bool> {
        let mut file = format!("{}/grubenv", self.variable("prefix"));
        let mut names = Vec::new();
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            match (word.as_str(), word.strip_prefix("--file=")) {
                ("-f" | "--file", _) => file = rest.next().cloned().unwrap_or_default(),
                (_, Some(path)) => file = path.to_owned(),
                _ if word.starts_with('-') => {}
                _ => names.push(word.as_str()),
            }
        }
        let Ok(text) = self.volumes.text(&self.place(&file)) else { return Ok(false) };
        self.remember(text.len())?;
        for (name, value) in env::parse(&text) {
            if names.is_empty() || names.contains(&name.as_str()) {
                self.assign(&name, value)?;
            }
        }
        Ok(true)
    }

    fn source(&mut self, words: &[String]) -> anyhow::Result<bool> {
        let Some(path) = words.first() else { return Ok(false) };
        let Ok(text) = self.volumes.text(&self.place(path)) else { return Ok(false) };
        self.remember(text.len().saturating_mul(PARSED))?;
        // As with GRUB, what is broken in another file does not end this one.
        let Ok(script) = parse(&text) else { return Ok(false) };
        self.run(&script).with_context(|| path.clone())?;
        Ok(self.status)
    }

    /// `search [--fs-uuid|--label|--file] [--set[=VAR]] [--hint=...] NAME`
    fn search(&mut self, words: &[String]) -> anyhow::Result<bool> {
        let (mut by, mut variable, mut name) = ("-f", "root", None);
        let mut rest = words.iter().map(String::as_str);
        while let Some(word) = rest.next() {
            match word {
                "-u" | "--fs-uuid" | "-l" | "--label" | "--fs-label" | "-f" | "--file" => by = word,
                "--set" | "-s" | "--no-floppy" | "-n" => {}
                "--hint" | "-h" => drop(rest.next()),
                _ => match word.strip_prefix("--set=") {
                    Some(other) => variable = other,
                    None if word.starts_with("--") => {}
                    None => name = Some(word),
                },
            }
        }
        let Some(name) = name else { return Ok(false) };
        let found = self.volumes.search(|index, files| match by {
            "-u" | "--fs-uuid" => files.uuid().eq_ignore_ascii_case(name),
            "-l" | "--label" | "--fs-label" => files.label() == name,
            _ => self.volumes.size(&Place { volume: index, path: name.to_owned() }).is_some(),
        });
        let Some(volume) = found else { return Ok(false) };
        self.assign(variable, self.volumes.name(volume))?;
        Ok(true)
    }

    /// `search.fs_uuid NAME [VAR [HINT...]]`
    fn search_old(&mut self, by: &str, words: &[String]) -> anyhow::Result<bool> {
        let set = format!("--set={}", words.get(1).map_or("root", String::as_str));
        let name = words.first().cloned().unwrap_or_default();
        self.search(&[by.to_owned(), set, name])
    }

    /// The entries of the boot loader specification, newest first, as entries of this menu.
    fn blscfg(&mut self, _: &[String]) -> anyhow::Result<bool> {
        let root = if self.variable("boot").is_empty() { "root" } else { "boot" };
        let root = self.variable(root).to_owned();
        let folders = match self.variable("blsdir") {
            "" => vec!["/loader/entries".to_owned(), "/boot/loader/entries".to_owned()],
            folder => vec![folder.to_owned()],
        };
        let places = folders.iter().map(|folder| self.volumes.place(folder, &root, self.home));
        let entries = places.map(|place| bls::entries(self.volumes, &place)).find(|found| !found.is_empty());
        for entry in entries.unwrap_or_default() {
            let text = entry.as_commands();
            self.remember(text.len() + entry.title.len())?;
            let Ok(body) = parse(&text) else { continue };
            let (title, id) = (entry.title, Some(entry.id));
            let item = Item { title, id, submenu: false, arguments: Vec::new(), body: Rc::new(body) };
            self.menu.push(item);
        }
        Ok(true)
    }

    fn linux(&mut self, words: &[String]) -> anyhow::Result<bool> {
        let Some((path, arguments)) = words.split_first() else { return Ok(false) };
        self.loads.kernel = Some((self.place(path), arguments.join(" ")));
        Ok(true)
    }

    fn initrd(&mut self, words: &[String]) -> anyhow::Result<bool> {
        let files = words.iter().filter(|word| !word.starts_with("--"));
        self.loads.ramdisks = files.map(|path| self.place(path)).collect();
        Ok(true)
    }

    /// Xen itself does not run in a domain; the kernel it would load does.
    fn hypervisor(&mut self, _: &[String]) -> anyhow::Result<bool> {
        self.loads = Loads::default();
        Ok(true)
    }

    fn module(&mut self, words: &[String]) -> anyhow::Result<bool> {
        let words: Vec<_> = words.iter().filter(|word| !word.starts_with("--nounzip")).cloned().collect();
        match &self.loads.kernel {
            None => {
                let placeholder = words.get(1).is_some_and(|word| word == "placeholder");
                let (kernel, rest) = words.split_at(words.len().min(1));
                let rest = rest.get(usize::from(placeholder)..).unwrap_or_default();
                self.linux(&[kernel, rest].concat())
            }
            Some(_) => self.initrd(words.get(..1).unwrap_or_default()),
        }
    }
}
