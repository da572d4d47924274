//! Menus as distributions write them, on file systems in memory and on images that mke2fs makes; and garbage.

mod images;
mod journal;
mod menus;
mod tools;

use crate::files::{Files, Opened};
use crate::volumes::{Volume, Volumes};
use std::collections::BTreeMap;
use std::io;

/// A file system in memory.
#[derive(Default)]
pub struct Memory {
    uuid: String,
    files: BTreeMap<String, String>,
}

impl Files for Memory {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn uuid(&self) -> String {
        self.uuid.clone()
    }

    fn label(&self) -> String {
        String::new()
    }

    fn open(&self, path: &str) -> io::Result<Option<Opened<'_>>> {
        let file = self.files.get(path);
        Ok(file.map(|text| Opened { size: text.len() as u64, bytes: Box::new(text.as_bytes()) }))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let inside =
            |name: &String| Some(name.strip_prefix(path)?.strip_prefix('/')?.split('/').next()?.to_owned());
        Ok(self.files.keys().filter_map(inside).collect())
    }
}

/// Path and text of files.
type Tree<'a> = &'a [(&'a str, &'a str)];

/// One file system: its uuid and its files, on the partitions 1, 2, ...
pub fn volumes(all: &[(&str, Tree<'_>)]) -> Volumes {
    let volume = |(number, (uuid, files)): (u32, &(&str, Tree<'_>))| {
        let files = files.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect();
        Volume { number, files: Box::new(Memory { uuid: (*uuid).to_owned(), files }) }
    };
    Volumes::of((1..).zip(all).map(volume).collect())
}
