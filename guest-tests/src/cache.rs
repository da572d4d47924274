//! The cache folder: everything fetched or unpacked once, shared by all runs of all clones.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// `$XLR_LAB_CACHE`, else `$XDG_CACHE_HOME/xlr-lab`, else `~/.cache/xlr-lab`.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache, making its folder on first use. Fails when no place for it is known or writable.
    pub fn open() -> Result<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let root = match (set("XLR_LAB_CACHE"), set("XDG_CACHE_HOME"), set("HOME")) {
            (Some(cache), _, _) => PathBuf::from(cache),
            (_, Some(cache), _) => Path::new(&cache).join("xlr-lab"),
            (_, _, Some(home)) => Path::new(&home).join(".cache/xlr-lab"),
            _ => bail!("no folder for the cache: set XLR_LAB_CACHE, XDG_CACHE_HOME or HOME"),
        };
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot make the cache folder {}", root.display()))?;
        let root = root.canonicalize()?;
        Ok(Self { root })
    }

    /// The cache's own folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until no other run changes the cache; dropping the file lets the next one in.
    pub fn lock(&self) -> Result<File> {
        let path = self.root.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}
