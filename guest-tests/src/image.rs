//! `cargo lab image`: whole Debian systems on disk images, for guests that live on a disk.
//!
//! Packages are resolved and fetched by the cache's own apt, then installed by the dpkg among them in a chroot. All privileges needed are
//! those of a user namespace, as unshare(1) gives them to any user; whom a file belongs to is remembered by fakeroot (a package too) and
//! comes true in the image's file system, made by the new system's own mke2fs. `lab/image.sh` has the stages; nothing of the host is
//! used beyond apt, dpkg-deb and the essential tar, unshare, mount, and chroot.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::apt::{Apt, CURRENT, Package};
use crate::cache::Cache;
use crate::step::step;

const SCRIPT: &str = include_str!("../lab/image.sh");
/// A system to boot, log in to, reach by network and measure.
const PACKAGES: [&str; 22] = [
    "apt",
    "ca-certificates",
    "dbus",
    "e2fsprogs",
    "ethtool",
    "fdisk",
    "fio",
    "grub-common",
    "grub2-common",
    "init",
    "initramfs-tools",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "openssh-server",
    "qemu-utils",
    "systemd-sysv",
    "udev",
    "zstd",
];
/// What the guest's own apt can install, from the repository in the image's /srv/apt that L1 serves.
const REPOSITORY: [&str; 2] = ["hello", "tree"];
/// The stages of `lab/image.sh`, and what they are called on the terminal.
const STAGES: [(&str, &str); 4] = [
    ("unpack", "unpacking the base system"),
    ("install", "installing packages"),
    ("settle", "settings, accounts, boot menu"),
    ("disk", "file system and partition table"),
];

/// A Debian release on a disk.
#[derive(Debug)]
pub struct Image {
    /// The lab's name for it, such as `debian-12`.
    pub name: &'static str,
    suite: &'static str,
}

/// The images the lab can build.
pub const IMAGES: [Image; 2] =
    [Image { name: "debian-12", suite: "bookworm" }, Image { name: "debian-13", suite: "trixie" }];

/// `cargo lab image`.
#[derive(Debug, Args)]
pub struct Build {
    /// debian-12 or debian-13; `debian` is the former
    name: String,
    /// Build it even if the cache has it
    #[arg(long)]
    anew: bool,
}

/// Builds the image unless the cache has it, and prints where it is.
pub fn run(build: &Build) -> Result<u8> {
    let cache = Cache::open()?;
    let image = Image::find(&build.name)?;
    if build.anew && image.folder(&cache).exists() {
        fs::remove_dir_all(image.folder(&cache)).context("cannot remove the old image")?;
    }
    let folder = image.get(&cache)?;
    let disk = folder.join(format!("{}.img", image.name));
    let meta = fs::metadata(&disk).with_context(|| format!("no image {}", disk.display()))?;
    eprintln!("lab: {} MiB, {} MiB of them used", meta.len() >> 20, (meta.blocks() * 512) >> 20);
    println!("{}", disk.display());
    Ok(0)
}

impl Image {
    /// The image of that name.
    pub fn find(name: &str) -> Result<&'static Self> {
        let wanted = if name == "debian" { "debian-12" } else { name };
        let Some(image) = IMAGES.iter().find(|image| image.name == wanted) else {
            bail!("no image {name:?} in the lab; there are {}", IMAGES.map(|i| i.name).join(", "));
        };
        Ok(image)
    }

    /// What a drive of L1 has: an ext4 file system with the image as the file `NAME.img`.
    pub fn drive(&self, cache: &Cache) -> Result<PathBuf> {
        Ok(self.get(cache)?.join("drive.img"))
    }

    /// The image's folder, built unless the cache has it.
    fn get(&self, cache: &Cache) -> Result<PathBuf> {
        let folder = self.folder(cache);
        let request = format!("{self:?} {PACKAGES:?} {REPOSITORY:?}\n{SCRIPT}");
        if is_complete(&folder, &request) {
            return Ok(folder);
        }
        let _lock = cache.lock()?;
        if !is_complete(&folder, &request) {
            step(&format!("image {}", self.name), || self.build(cache, &folder, &request))
                .with_context(|| format!("cannot build the image {}", self.name))?;
        }
        Ok(folder)
    }

    fn folder(&self, cache: &Cache) -> PathBuf {
        cache.root().join("images").join(self.name)
    }

    fn build(&self, cache: &Cache, folder: &Path, request: &str) -> Result<()> {
        let images = cache.root().join("images");
        fs::create_dir_all(&images)?;
        let jail = Jail::open()?;
        jail.clear(&images)?;
        let work = Work(tempfile::Builder::new().prefix("work-").tempdir_in(&images)?.keep(), &jail);
        for part in ["root", "out", "tools", "debs/base", "debs/rest", "debs/tools", "debs/repository"] {
            fs::create_dir_all(work.0.join(part))?;
        }
        self.download(cache, &work.0.join("debs"))?;
        fs::write(work.0.join("image.sh"), SCRIPT)?;
        for (stage, what) in STAGES {
            step(what, || work.stage(stage, self))?;
        }
        fs::write(work.0.join("out/.request"), request)?;
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::rename(work.0.join("out"), folder).context("cannot put the image into its place")
    }

    /// Fetches everything, with fresh lists if the mirror no longer has what the old ones name.
    fn download(&self, cache: &Cache, debs: &Path) -> Result<()> {
        let apt = Apt::open(cache, &CURRENT)?;
        step("packages", || {
            if self.fetch(&apt, debs).is_err() {
                apt.update()?;
                self.fetch(&apt, debs)?;
            }
            Ok(())
        })
    }

    fn fetch(&self, apt: &Apt, debs: &Path) -> Result<()> {
        // A system is born with /bin in /usr; without this apt would choose the package that moves it there.
        let essential = format!("?narrow(?codename(^{}$),?essential)", self.suite);
        let base = apt.closure(self.suite, &[&essential, "usr-is-merged"])?;
        let mut wanted = vec![essential.as_str(), "usr-is-merged"];
        wanted.extend(PACKAGES);
        let all = apt.closure(self.suite, &wanted)?;
        let rest: Vec<Package> = all.into_iter().filter(|package| !base.contains(package)).collect();
        apt.download(&base, &debs.join("base"))?;
        apt.download(&rest, &debs.join("rest"))?;
        for (folder, packages) in
            [("tools", ["fakeroot", "libfakeroot"].as_slice()), ("repository", REPOSITORY.as_slice())]
        {
            let found = apt.closure(self.suite, packages)?;
            let named = |p: &&Package| packages.iter().any(|name| p.spec.starts_with(&format!("{name}=")));
            let found: Vec<Package> = found.iter().filter(named).cloned().collect();
            ensure!(found.len() == packages.len(), "apt finds {found:?} for {packages:?}");
            apt.download(&found, &debs.join(folder))?;
        }
        Ok(())
    }
}

/// L1's drives for guests that use the named images: one per name, before them one more that nobody changes, for L1's own `/tools`:
/// the oldest, whose packages a newer system can install too.
pub fn drives(cache: &Cache, names: &[&str]) -> Result<Vec<PathBuf>> {
    names.iter().min().into_iter().chain(names).map(|name| Image::find(name)?.drive(cache)).collect()
}

fn is_complete(folder: &Path, request: &str) -> bool {
    fs::read_to_string(folder.join(".request")).is_ok_and(|found| found == request)
}

/// How this machine lets us mount and chroot.
struct Jail(&'static [&'static str]);

impl Jail {
    /// A user namespace where the kernel gives one; where it does not, root's own rights.
    fn open() -> Result<Self> {
        const WAYS: [&[&str]; 2] =
            [&["--user", "--map-root-user", "--mount", "--pid", "--fork"], &["--mount", "--pid", "--fork"]];
        let works = |way: &&&[&str]| {
            let mut probe = Command::new("unshare");
            probe.args(**way).args(["mount", "-t", "tmpfs", "tmpfs", "/tmp"]);
            probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
        };
        let Some(way) = WAYS.iter().find(works) else {
            bail!(
                "an image needs user namespaces (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces) \
                 or root with the right to mount; `unshare --user --map-root-user --mount true` fails here"
            );
        };
        Ok(Self(way))
    }

    /// Removes what interrupted builds have left; the caller holds the cache's lock, so none is going on.
    fn clear(&self, images: &Path) -> Result<()> {
        for entry in fs::read_dir(images)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("work-") {
                run_quietly(self.command("rm").arg("-rf").arg(entry.path()));
            }
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(self.0).arg(program).stdin(Stdio::null());
        command
    }
}

/// The folder an image is built in, gone with the value.
struct Work<'a>(PathBuf, &'a Jail);

impl Work<'_> {
    /// Runs one stage; all it says goes to a log whose end is shown if it fails.
    fn stage(&self, stage: &str, image: &Image) -> Result<()> {
        let log = self.0.join(format!("{stage}.log"));
        let out = fs::File::create(&log)?;
        let mut command = self.1.command("sh");
        command.arg(self.0.join("image.sh")).arg(stage).arg(&self.0).args([image.name, image.suite]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        let status = command.stdout(out.try_clone()?).stderr(out).status().context("cannot run unshare")?;
        if !status.success() {
            let kept = self.0.with_file_name(format!("{}-{stage}.log", image.name));
            fs::copy(&log, &kept)?;
            let text = fs::read(&log)?;
            let text = String::from_utf8_lossy(&text);
            let end: Vec<&str> = text.lines().rev().take(3).collect();
            let end: Vec<&str> = end.into_iter().rev().collect();
            bail!("stage {stage} failed ({status}): {}; all of it is in {}", end.join(" / "), kept.display());
        }
        Ok(())
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        run_quietly(self.1.command("rm").arg("-rf").arg(&self.0));
    }
}

/// Removing happens in the namespace, since files without any permission are among them; what stays behind is only space.
fn run_quietly(command: &mut Command) {
    let _ = command.stderr(Stdio::null()).status();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_by_name() {
        assert_eq!(Image::find("debian").expect("a default").name, "debian-12");
        assert_eq!(Image::find("debian-13").expect("in the table").suite, "trixie");
        let error = Image::find("slackware").expect_err("not in the table").to_string();
        assert!(error.contains("slackware") && error.contains("debian-12"), "{error}");
    }
}
