//! The image L1 boots: userland, kernel modules, our programs, guests, and the one script of this run.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::cpio::Archive;
use crate::guests::Guests;
use crate::kernel::Kernel;
use crate::packages::{PASST, USERLAND};
use crate::qemu::add_peer;
use crate::system::{add_modules, add_userland};

const INIT: &str = include_str!("../lab/l1-init.sh");
/// Loaded before anything runs. `virtio` first: the channels are made of it.
const MODULES: [&str; 12] = [
    "virtio_pci",
    "virtio_console",
    "kvm_amd",
    "tun",
    "loop",
    "evdev",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
    "bridge",
    "veth",
    "sch_netem",
];
/// Names under which our multi-call programs are called too.
const LINKS: [(&str, &str); 9] = [
    ("xl", "xlr"),
    ("xenstore-ls", "xenstore"),
    ("xenstore-read", "xenstore"),
    ("xenstore-write", "xenstore"),
    ("xenstore-list", "xenstore"),
    ("xenstore-rm", "xenstore"),
    ("xenstore-exists", "xenstore"),
    ("xenstore-chmod", "xenstore"),
    ("xenstore-watch", "xenstore"),
];

/// What goes into L1 beside its own system.
#[derive(Debug, Default)]
pub struct Contents {
    /// Static programs for `/usr/bin`, under their own file names.
    pub programs: Vec<PathBuf>,
    /// What is below `/guest`.
    pub guests: Guests,
    /// Other files: path in L1 without the leading slash, file on the host.
    pub files: Vec<(String, PathBuf)>,
    /// QEMU too, to compare with.
    pub peer: bool,
    /// Settings of the init as shell assignments.
    pub settings: String,
    /// Shell text that runs the program of this run; its descriptor 9 is the control channel.
    pub start: String,
}

/// Writes the image for `kernel` to `path`.
pub fn write_image(cache: &Cache, kernel: &Kernel, contents: &Contents, path: &Path) -> Result<()> {
    let out = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut image = Archive::new(BufWriter::new(out));
    image.char_device("dev/console", 5, 1)?;
    image.file("init", 0o755, INIT.as_bytes())?;
    for folder in ["proc", "sys", "run", "var", "tmp", "root", "out", "usr/sbin", "guest"] {
        image.dir(folder)?;
    }
    image.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    image.file("etc/group", 0o644, b"root:x:0:\nkvm:x:104:\nnogroup:x:65534:\n")?;
    image.file("etc/profile", 0o644, b"PS1='L1# '\ncat /lab/motd\n")?;
    image.file("lab/motd", 0o644, MOTD.as_bytes())?;
    add_userland(&mut image, &USERLAND.get(cache)?)?;
    for program in ["passt", "passt.avx2"] {
        image.copy(&format!("usr/bin/{program}"), &PASST.get(cache)?.join("usr/bin").join(program))?;
    }
    add_modules(&mut image, "lab/modules", &kernel.modules(&MODULES)?)?;
    for program in &contents.programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        image.copy(&format!("usr/bin/{name}"), program)?;
    }
    for (name, target) in LINKS {
        image.link(&format!("usr/bin/{name}"), target)?;
    }
    contents.guests.add_to(&mut image)?;
    if contents.peer {
        add_peer(&mut image, cache)?;
    }
    for (to, from) in &contents.files {
        image.copy(to, from)?;
    }
    image.file("lab/settings", 0o644, contents.settings.as_bytes())?;
    image.file("lab/start", 0o644, contents.start.as_bytes())?;
    image.finish()?.flush().context("cannot write the image of L1")
}

const MOTD: &str = "\
L1 of the lab: a Linux with KVM_XEN. xlr, xl, xenstore-ls and so on are ours, /debian/bin/xenstore-* are Debian's;
guests are in /guest. `exit` ends it; what lies in /out then goes to the host.
";
