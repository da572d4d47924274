//! What L1 finds below `/guest`: `vmlinuz-NAME` and `initrd-NAME` per Debian kernel, and `micro/NAME` per microkernel.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::packages::USERLAND;
use crate::system::{add_modules, add_userland};

const INIT: &str = include_str!("../lab/guest-init.sh");
/// The Xen drivers Debian builds as modules, and what hears a power button.
const MODULES: [&str; 9] = [
    "xen-blkfront",
    "xen-netfront",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xenfs",
    "button",
    "evdev",
];

/// Guests handed to L1.
#[derive(Debug, Default)]
pub struct Guests {
    linux: Vec<Linux>,
    micro: Vec<PathBuf>,
}

/// A Debian kernel with an initramfs made for it.
#[derive(Debug)]
pub struct Linux {
    /// The lab's name for it.
    pub name: &'static str,
    /// Its unmodified bzImage.
    pub image: PathBuf,
    initrd: Vec<u8>,
}

impl Linux {
    /// The kernel of that name, fetched on first use, and its initramfs.
    pub fn get(cache: &Cache, name: &str) -> Result<Self> {
        let kernel = Kernel::get(cache, name)?;
        let initrd = initrd(&kernel, &USERLAND.get(cache)?)?;
        Ok(Self { name: kernel.name, image: kernel.image()?, initrd })
    }

    /// Writes `vmlinuz-NAME` and `initrd-NAME` into a folder of the host.
    pub fn write_to(&self, folder: &Path) -> Result<()> {
        fs::copy(&self.image, folder.join(format!("vmlinuz-{}", self.name)))?;
        fs::write(folder.join(format!("initrd-{}", self.name)), &self.initrd)
            .context("cannot write the guest's initramfs")
    }
}

impl Guests {
    /// The named Debian kernels and the given microkernels.
    pub fn new(cache: &Cache, linux: &[&str], micro: Vec<PathBuf>) -> Result<Self> {
        let linux = linux.iter().map(|name| Linux::get(cache, name)).collect::<Result<_>>()?;
        Ok(Self { linux, micro })
    }

    /// Puts them below `guest/` of an image.
    pub fn add_to<W: Write>(&self, image: &mut Archive<W>) -> Result<()> {
        for linux in &self.linux {
            image.copy(&format!("guest/vmlinuz-{}", linux.name), &linux.image)?;
            image.file(&format!("guest/initrd-{}", linux.name), 0o644, &linux.initrd)?;
        }
        for path in &self.micro {
            image.copy(
                &format!("guest/micro/{}", path.file_name().unwrap_or_default().to_string_lossy()),
                path,
            )?;
        }
        Ok(())
    }
}

/// Busybox, Debian's XenStore clients, the guest's own modules and an init that does what `lab=` on its command line says.
fn initrd(kernel: &Kernel, userland: &Path) -> Result<Vec<u8>> {
    let mut image = Archive::new(Vec::new());
    image.char_device("dev/console", 5, 1)?;
    for folder in ["proc", "sys", "run", "tmp", "sbin"] {
        image.dir(folder)?;
    }
    image.file("init", 0o755, INIT.as_bytes())?;
    add_userland(&mut image, userland)?;
    add_modules(&mut image, "modules", &kernel.modules(&MODULES)?)?;
    Ok(image.finish()?)
}
