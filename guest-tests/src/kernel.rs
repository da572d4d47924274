//! A Debian kernel package in the cache: its image and its modules.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cache::Cache;
use crate::packages::{KERNELS, USERLAND};

/// One module ready to be loaded.
#[derive(Debug)]
pub struct Module {
    /// Its name with underscores, as the kernel prints it.
    pub name: String,
    /// The unpacked object file.
    pub object: Vec<u8>,
}

/// An unmodified kernel out of its package.
#[derive(Debug)]
pub struct Kernel {
    /// The lab's name for it, such as `6.12-cloud`.
    pub name: &'static str,
    folder: PathBuf,
    unxz: PathBuf,
}

impl Kernel {
    /// The kernel of that name, fetched on first use.
    pub fn get(cache: &Cache, name: &str) -> Result<Self> {
        let Some((name, set)) = KERNELS.iter().find(|(known, _)| *known == name) else {
            bail!("no kernel {name:?} in the lab; there are {}", KERNELS.map(|(known, _)| known).join(", "));
        };
        Ok(Self { name, folder: set.get(cache)?, unxz: USERLAND.get(cache)?.join("bin/busybox") })
    }

    /// The bzImage.
    pub fn image(&self) -> Result<PathBuf> {
        let boot = self.folder.join("boot");
        let found = fs::read_dir(&boot)?
            .flatten()
            .map(|e| e.path())
            .find(|p| p.to_string_lossy().contains("/vmlinuz-"));
        found.with_context(|| format!("no vmlinuz in {}", boot.display()))
    }

    /// The named modules and all they depend on, in an order in which `insmod` takes them. What is built in is left out.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let root = self.modules_folder()?;
        let mut files = BTreeMap::new();
        index(&root, &mut files)?;
        let built_in = fs::read_to_string(root.join("modules.builtin"))
            .context("the kernel package has no modules.builtin")?;
        let built_in: Vec<String> = built_in.lines().map(|l| module_name(Path::new(l))).collect();
        let mut order = Vec::new();
        for name in wanted {
            self.add(name, &files, &built_in, &mut order)?;
        }
        Ok(order)
    }

    fn add(
        &self,
        name: &str,
        files: &BTreeMap<String, PathBuf>,
        built_in: &[String],
        order: &mut Vec<Module>,
    ) -> Result<()> {
        let name = name.replace('-', "_");
        if built_in.contains(&name) || order.iter().any(|m| m.name == name) {
            return Ok(());
        }
        let path = files.get(&name).with_context(|| format!("kernel {} has no module {name}", self.name))?;
        let object = self.read(path)?;
        for dependency in dependencies(&object) {
            self.add(&dependency, files, built_in, order)?;
        }
        order.push(Module { name, object });
        Ok(())
    }

    /// Debian's 6.12 packs its modules with xz, 6.1 leaves them plain.
    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        if path.extension().is_none_or(|e| e != "xz") {
            return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        }
        let output = Command::new(&self.unxz).args(["unxz", "-c"]).arg(path).output()?;
        ensure!(output.status.success(), "cannot unpack {}", path.display());
        Ok(output.stdout)
    }

    fn modules_folder(&self) -> Result<PathBuf> {
        for place in ["lib/modules", "usr/lib/modules"] {
            if let Ok(mut entries) = fs::read_dir(self.folder.join(place))
                && let Some(Ok(release)) = entries.next()
            {
                return Ok(release.path());
            }
        }
        bail!("no modules in {}", self.folder.display())
    }
}

fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            index(&path, files)?;
        } else if path.to_string_lossy().contains(".ko") {
            files.insert(module_name(&path), path);
        }
    }
    Ok(())
}

fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

/// The `depends=` string of a module's `.modinfo` section.
fn dependencies(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = object.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let value =
        object.get(at + KEY.len()..).unwrap_or_default().split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_dependencies() {
        assert_eq!(module_name(Path::new("a/kvm-amd.ko.xz")), "kvm_amd");
        assert_eq!(dependencies(b"x\0license=GPL\0depends=kvm,ccp\0retpoline=Y\0"), ["kvm", "ccp"]);
        assert!(dependencies(b"x\0depends=\0y").is_empty());
    }
}
