//! The sets of Debian packages the lab is made of, each unpacked into a folder of the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{Apt, CURRENT, OLD, Package, run};
use crate::cache::Cache;
use crate::step::step;

/// How a set's packages are found.
#[derive(Debug)]
enum Choice {
    /// These packages of the release plus this suffix, and all they depend on.
    Closure(&'static str, &'static [&'static str]),
    /// The newest package named like this.
    Newest(&'static str),
    /// The newest package of Debian 11 named like this; mirrors need not have it.
    Old(&'static str),
}

/// A folder of unpacked packages.
#[derive(Debug)]
pub struct Set {
    name: &'static str,
    choice: Choice,
}

/// QEMU with nested SVM that does not corrupt guests: 11 or newer. And zstd, to unpack a kernel for QEMU's PVH entry.
pub const QEMU: Set =
    Set { name: "qemu", choice: Choice::Closure("trixie-backports", &["qemu-system-x86", "zstd"]) };
/// The userland of L1 and of guests, and the XenStore clients nobody here wrote.
pub const USERLAND: Set =
    Set { name: "userland", choice: Choice::Closure("bookworm", &["busybox-static", "xenstore-utils"]) };

/// User-mode networking for guests of unprivileged users.
pub const PASST: Set = Set { name: "passt", choice: Choice::Closure("bookworm", &["passt"]) };

/// GRUB as a PVH kernel, which boots what is on a guest's disk.
pub const GRUB: Set = Set { name: "grub", choice: Choice::Newest("^grub-xen-host$") };

/// C xenstored, to measure ours against; run from here, it needs no Xen.
pub const XENSTORED: Set = Set { name: "xenstored", choice: Choice::Newest(r"^xen-utils-4\.20$") };
/// The libraries it stands on.
pub const XEN_LIBRARIES: Set =
    Set { name: "xen-libraries", choice: Choice::Closure("trixie", &["libxenmisc4.20"]) };

/// Debian's kernels by the names the lab calls them.
pub const KERNELS: [(&str, Set); 5] = [
    // Debian's last one that calls through the hypercall page.
    (
        "5.10-cloud",
        Set { name: "linux-5.10-cloud", choice: Choice::Old(r"^linux-image-5\.10\.0-[0-9]+-cloud-amd64$") },
    ),
    (
        "6.12-cloud",
        Set {
            name: "linux-6.12-cloud",
            choice: Choice::Newest(r"^linux-image-6\.12\.[0-9]+\+deb12(\.[0-9]+)?-cloud-amd64$"),
        },
    ),
    (
        "6.12-full",
        Set {
            name: "linux-6.12-full",
            choice: Choice::Newest(r"^linux-image-6\.12\.[0-9]+\+deb12(\.[0-9]+)?-amd64$"),
        },
    ),
    (
        "6.1-cloud",
        Set { name: "linux-6.1-cloud", choice: Choice::Newest(r"^linux-image-6\.1\.0-[0-9]+-cloud-amd64$") },
    ),
    (
        "6.1-full",
        Set { name: "linux-6.1-full", choice: Choice::Newest(r"^linux-image-6\.1\.0-[0-9]+-amd64$") },
    ),
];

impl Set {
    /// The set's folder, fetched and unpacked unless the cache has it.
    pub fn get(&self, cache: &Cache) -> Result<PathBuf> {
        let folder = cache.root().join("sets").join(self.name);
        let request = format!("{:?}", self.choice);
        if is_complete(&folder, &request) {
            return Ok(folder);
        }
        let _lock = cache.lock()?;
        if !is_complete(&folder, &request) {
            step(&format!("packages for {}", self.name), || self.fetch(cache, &folder, &request))
                .with_context(|| format!("cannot get {} from Debian's mirror", self.name))?;
        }
        Ok(folder)
    }

    /// Whether it is of a release that mirrors drop at some time.
    pub fn may_be_missing(&self) -> bool {
        matches!(self.choice, Choice::Old(_))
    }

    fn fetch(&self, cache: &Cache, folder: &Path, request: &str) -> Result<()> {
        let sets = cache.root().join("sets");
        fs::create_dir_all(&sets)?;
        let debs = tempfile::tempdir_in(cache.root())?;
        let unpacked = tempfile::tempdir_in(&sets)?;
        let apt = Apt::open(cache, if self.may_be_missing() { &OLD } else { &CURRENT })?;
        let packages = self.resolve(&apt)?;
        if apt.download(&packages, debs.path()).is_err() {
            // The lists were fetched once, perhaps long ago; the mirror keeps only what is current.
            apt.update()?;
            apt.download(&self.resolve(&apt)?, debs.path())?;
        }
        for deb in fs::read_dir(debs.path())? {
            let deb = deb?.path();
            if deb.extension().is_some_and(|e| e == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(unpacked.path()))?;
            }
        }
        fs::write(unpacked.path().join(".request"), request)?;
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::rename(unpacked.keep(), folder).context("cannot put the unpacked set into its place")
    }

    fn resolve(&self, apt: &Apt) -> Result<Vec<Package>> {
        match self.choice {
            Choice::Closure(suite, packages) => apt.closure(suite, packages),
            Choice::Newest(pattern) | Choice::Old(pattern) => apt.newest(pattern),
        }
    }
}

fn is_complete(folder: &Path, request: &str) -> bool {
    fs::read_to_string(folder.join(".request")).is_ok_and(|found| found == request)
}
